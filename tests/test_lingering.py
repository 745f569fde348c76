"""Answering in the place of a worker, and closing so that the answer arrives, without a server."""

from __future__ import annotations

import _socket
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from gunicorn_sticky.dispatcher.lingering import Lingering
from gunicorn_sticky.dispatcher.poller import READABLE, Events, Handler
from gunicorn_sticky.shared.limited_log import LimitedLog
from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.shared.refusals import FULL_WORKER, LINGER

PEER = ("192.0.2.1", 4000)


class Rig:
    """What lingers, and its clients."""

    def __init__(self, tls: bool = False) -> None:
        self.events = Events()
        self.metrics = Metrics().dispatcher(0)
        log = LimitedLog(logging.getLogger(__name__))
        self.lingering = Lingering(self.events, log, tls, self.metrics)
        self._clients: list[socket.socket] = []

    def connected(self) -> tuple[socket.socket, _socket.socket]:
        """Return a client, and the server's end of its connection."""
        client, ours = socket.socketpair()
        client.settimeout(1)
        self._clients.append(client)
        return client, _socket.socket(fileno=ours.detach())

    def refused(self) -> socket.socket:
        """Return a client that has been refused."""
        client, ours = self.connected()
        self.lingering.refuse(ours, PEER, FULL_WORKER)
        return client

    def close(self) -> None:
        while self.lingering.drop():
            pass
        for client in self._clients:
            client.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_the_answer_arrives_whatever_the_client_still_sends(rig: Rig):
    client = rig.refused()
    for _ in range(3):
        client.sendall(b"x" * 50_000)
        rig.events.wait(0)
    assert len(rig.lingering) == 1
    assert client.recv(65536) == FULL_WORKER.response()
    assert client.recv(1) == b""
    client.close()
    rig.events.wait(0)
    rig.events.wait(0)
    assert len(rig.lingering) == 0
    assert rig.metrics.refused[503].value == 1


def test_a_client_that_does_not_close_is_closed_in_the_end(rig: Rig):
    first = rig.refused()
    began = time.monotonic()
    second = rig.refused()
    deadline = rig.lingering.deadline()
    assert deadline
    assert deadline <= began + LINGER
    rig.lingering.expire(deadline)
    assert len(rig.lingering) == 1
    with pytest.raises(BrokenPipeError):
        first.send(b"x")
    second.send(b"x")
    rig.lingering.expire(time.monotonic() + LINGER)
    assert (len(rig.lingering), rig.lingering.deadline()) == (0, None)
    with pytest.raises(BrokenPipeError):
        second.send(b"x")


def test_the_first_one_gives_way(rig: Rig):
    """As a descriptor is needed for another connection."""
    first, second = rig.refused(), rig.refused()
    assert rig.lingering.drop()
    with pytest.raises(BrokenPipeError):
        first.send(b"x")
    second.send(b"x")
    assert rig.lingering.drop()
    assert not rig.lingering.drop()


def test_a_client_that_has_gone_is_not_waited_for(rig: Rig):
    client, ours = rig.connected()
    client.close()
    rig.lingering.refuse(ours, PEER, FULL_WORKER)
    assert len(rig.lingering) == 0
    assert ours.fileno() == -1


def test_nothing_to_be_read_is_not_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """Whatever epoll has said of it (select(2), BUGS)."""
    handlers: list[Handler] = []
    watch = rig.events.watch

    def also_watch(fd: int, events: int, handler: Handler) -> None:
        handlers.append(handler)
        watch(fd, events, handler)

    monkeypatch.setattr(rig.events, "watch", also_watch)
    client = rig.refused()
    handlers[0](READABLE)
    client.send(b"x")
    assert len(rig.lingering) == 1


def test_a_client_that_speaks_tls_could_not_read_an_answer():
    rig = Rig(tls=True)
    client = rig.refused()
    assert client.recv(1) == b""
    assert len(rig.lingering) == 0
    assert rig.metrics.refused[503].value == 1
    rig.close()
