"""Only processes of the run count: strangers who connect are sent away and end nothing."""

import socket
import threading

import pytest

from purify_jax.devices import lifeline

SECRET = bytes(range(32))


@pytest.fixture
def accepting(monkeypatch):
    """A server that waits for so many peers; (address, results once they have come)."""
    monkeypatch.setattr(lifeline, "INTRODUCTION", 0.3)
    monkeypatch.setattr(lifeline, "PATIENCE", 20)

    def start(peers):
        server, found = lifeline.listen("127.0.0.1", peers), []
        work = lambda: found.extend(lifeline.accept(server, SECRET, peers))
        thread = threading.Thread(target=work)
        thread.start()
        return server, thread, found

    return start


def _connect(server, content=b""):
    line = socket.create_connection(server.getsockname())
    if content:
        line.sendall(content)
    return line


def test_strangers_take_nobodys_place(accepting):
    server, thread, found = accepting(2)
    assert server.getsockname()[0] == "127.0.0.1"
    strangers = [
        _connect(server),  # says nothing
        _connect(server, b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"),
        _connect(server, SECRET[:-1]),  # stops short
    ]
    _connect(server).close()  # a port scan
    peers = [_connect(server, SECRET), _connect(server, SECRET[:5])]
    peers[1].sendall(SECRET[5:])  # the network may cut it anywhere
    thread.join(20)
    assert len(found) == 2
    ports = {line.getpeername()[1] for line in found}
    assert ports == {line.getsockname()[1] for line in peers}
    for line in strangers:
        line.settimeout(5)
        with _closed():
            assert line.recv(1) == b""
    for line in [*strangers, *peers, *found, server]:
        line.close()


class _closed:
    """The other side has hung up: end of file, or a reset."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, ConnectionError)


def test_waiting_ends(accepting, monkeypatch):
    monkeypatch.setattr(lifeline, "PATIENCE", 0.2)
    with lifeline.listen("127.0.0.1", 1) as server, pytest.raises(TimeoutError):
        lifeline.accept(server, SECRET, 1)
