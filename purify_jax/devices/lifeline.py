"""Lines between the processes of a run: when one dies, the others say so and end.

A process that waits in a collective operation for one that is gone would wait for JAX's heartbeat
and then abort with pages of addresses. So every process keeps an idle TCP connection to process 0.
The operating system closes a killed process's connections at once (and keep-alive probes notice a
machine that is gone within half a minute); whoever sees his line cut without a goodbye prints one
line and ends, which cuts the lines of all others.
"""

import atexit
import hmac
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress

import jax
import numpy as np
from jax.experimental import multihost_utils

_GOODBYE = b"g"
_SECRET_BYTES = 32
_lines: list[socket.socket] = []
_threads: list[threading.Thread] = []
#: Seconds that a process waits for the others, to connect at first and to finish at the end.
PATIENCE = 300
#: Seconds that whoever connects has to show the secret.
INTRODUCTION = 5


def connect(host: str) -> None:
    """Connects every process with process 0 on ``host``; a collective, after jax.distributed's.

    Process 0 listens on the coordinator's address alone, and takes a connection for a process of this
    run only if it shows a secret that the processes exchange through JAX. Anybody else (a port scan)
    is sent away and changes nothing.
    """
    atexit.register(_say_goodbye)
    peers = jax.process_count() - 1
    if jax.process_index() == 0:
        with listen(host, peers) as server:
            secret = secrets.token_bytes(_SECRET_BYTES)
            _exchange(server.getsockname()[1], secret)
            for line in accept(server, secret, peers):
                _watch(line)
    else:
        port, secret = _exchange(0, bytes(_SECRET_BYTES))
        line = socket.create_connection((host, port), timeout=PATIENCE)
        line.sendall(secret)
        _watch(line)


def listen(host: str, peers: int) -> socket.socket:
    """A server on the host's own address.

    On all addresses where that is none of this machine's, or where a host's name leads back to the
    machine itself (as many do in their own /etc/hosts), so that other hosts reach it; the secret
    still keeps strangers out.
    """
    try:
        address = socket.gethostbyname(host)
        if address.startswith("127.") and host not in ("localhost", address):
            address = ""
        return socket.create_server((address, 0), backlog=peers + 8)
    except OSError:
        return socket.create_server(("", 0), backlog=peers + 8)


def accept(server: socket.socket, secret: bytes, peers: int) -> list[socket.socket]:
    """The connections of ``peers`` processes that show the secret; all others are closed.

    Everybody is heard at the same time, so that a silent stranger delays nobody. Raises TimeoutError
    if not all have come after :data:`PATIENCE` seconds.
    """
    found: list[socket.socket] = []
    enough = threading.Lock()

    def introduce(line: socket.socket) -> None:
        genuine = hmac.compare_digest(_received(line, len(secret)), secret)
        with enough:
            if genuine and len(found) < peers:
                found.append(line)
                return
        line.close()

    deadline = time.monotonic() + PATIENCE
    while len(found) < peers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{peers - len(found)} of {peers} processes have not connected")
        server.settimeout(0.1)
        with suppress(TimeoutError):
            line, _ = server.accept()
            threading.Thread(target=introduce, args=(line,), daemon=True).start()
    return found


def _received(line: socket.socket, count: int) -> bytes:
    """The first ``count`` bytes that come within the time for an introduction."""
    content = b""
    deadline = time.monotonic() + INTRODUCTION
    with suppress(OSError):
        while len(content) < count and (left := deadline - time.monotonic()) > 0:
            line.settimeout(left)
            part = line.recv(count - len(content))
            if not part:
                break
            content += part
    return content


def _exchange(port: int, secret: bytes) -> tuple[int, bytes]:
    """Process 0's port and secret, in every process."""
    message = np.array([port, *secret], np.int32)
    port, *numbers = (int(n) for n in multihost_utils.broadcast_one_to_all(message))
    return port, bytes(numbers)


def _watch(line: socket.socket) -> None:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    _lines.append(line)
    _threads.append(threading.Thread(target=_wait, args=(line,), daemon=True, name="lifeline"))
    _threads[-1].start()


def _wait(line: socket.socket) -> None:
    received = b""
    with suppress(OSError):
        received = line.recv(1)
    if received == _GOODBYE:
        return
    print(
        f"error: processes: another of the {jax.process_count()} processes of this run ended before "
        "its work was done, expected all to the end; start all again with the same flags, and they "
        "continue from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _say_goodbye() -> None:
    """At a regular end; after an exception the lines are cut without it, so that all end."""
    if hasattr(sys, "last_value"):
        os._exit(1)
    if jax.process_index() > 0:
        # Before process 0 hears the goodbye and ends, and with it the service: JAX aborts without it.
        with suppress(RuntimeError):
            jax.distributed.shutdown()
    for line in _lines:
        with suppress(OSError):
            line.sendall(_GOODBYE)
    # Process 0 holds the service that the others need to the end.
    for thread in _threads:
        thread.join(PATIENCE)
