"""Lines between the processes of a run: when one dies, the others say so and end.

A process that waits in a collective operation for one that is gone would wait for JAX's heartbeat
and then abort with pages of addresses. So every process keeps an idle TCP connection to process 0.
The operating system closes a killed process's connections at once (and keep-alive probes notice a
machine that is gone within half a minute); whoever sees his line cut without a goodbye prints one
line and ends, which cuts the lines of all others.
"""

import atexit
import os
import socket
import sys
import threading
from contextlib import suppress

import jax
import numpy as np
from jax.experimental import multihost_utils

_GOODBYE = b"g"
_lines: list[socket.socket] = []
_threads: list[threading.Thread] = []
#: Seconds that a process waits for the others, to connect at first and to finish at the end.
PATIENCE = 300


def connect(host: str) -> None:
    """Connects every process with process 0 on ``host``; a collective, after jax.distributed's."""
    atexit.register(_say_goodbye)
    if jax.process_index() == 0:
        with socket.create_server(("", 0), backlog=jax.process_count()) as server:
            server.settimeout(PATIENCE)
            _exchange(server.getsockname()[1])
            for _ in range(jax.process_count() - 1):
                _watch(server.accept()[0])
    else:
        _watch(socket.create_connection((host, _exchange(0)), timeout=PATIENCE))


def _exchange(port: int) -> int:
    """Process 0's port, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(port)))


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
    for line in _lines:
        with suppress(OSError):
            line.sendall(_GOODBYE)
    # Process 0 holds the service that the others need to the end.
    for thread in _threads:
        thread.join(PATIENCE)
