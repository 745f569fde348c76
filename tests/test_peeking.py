"""Connections that have not shown their key yet, without a server."""

from __future__ import annotations

import _socket
import logging
import math
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from support.harness import wait_for

from gunicorn_sticky.dispatcher.lingering import Lingering
from gunicorn_sticky.dispatcher.peeking import Peeking
from gunicorn_sticky.dispatcher.poller import READABLE, Events, Handler
from gunicorn_sticky.routing.affinity import Affinity, Reader
from gunicorn_sticky.routing.key import HEADER
from gunicorn_sticky.shared.channel import Channel, ConnectionInfo
from gunicorn_sticky.shared.limited_log import LimitedLog
from gunicorn_sticky.shared.metrics import Metrics

PATIENCE = 10.0
PEER = ("192.0.2.1", 4000)
HALF = b"GET / HTTP/1.1\r\nX-Forwarded-"
REST = b"For: 198.51.100.7\r\n\r\n"


class WatchedEvents(Events):
    """Remembers who is called."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Handler] = {}

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        self.watched[fd] = handler
        super().watch(fd, events, handler)


class Rig:
    """What is peeked at, and its clients."""

    def __init__(self) -> None:
        self.events = WatchedEvents()
        self.metrics = Metrics().dispatcher(0)
        log = LimitedLog(logging.getLogger(__name__))
        self.lingering = Lingering(self.events, log, False, self.metrics)
        reader = Reader(Affinity(by="header", header="x-forwarded-for"))
        self.keys: list[str] = []
        self.peeking = Peeking(reader, PATIENCE, self._dispatch, self.events, self.lingering, log, self.metrics)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []

    def _dispatch(self, fd: int, info: ConnectionInfo) -> None:
        _socket.close(fd)
        self.keys.append(str(info.key))

    def accepted(self, sent: bytes = b"") -> tuple[socket.socket, _socket.socket]:
        """Return a client that has sent something, and the server's end of its connection."""
        client = socket.create_connection(self._listener.getsockname(), 5)
        self._clients.append(client)
        client.sendall(sent)
        ours, _ = self._listener.accept()
        if sent:
            arrives(ours.fileno())
        return client, _socket.socket(fileno=ours.detach())

    def come(self, sent: bytes = b"") -> socket.socket:
        client, ours = self.accepted(sent)
        self.peeking.look(ours, ("127.0.0.1", 80), PEER)
        return client

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let events be handled until something is true."""

        def is_true() -> bool:
            self.events.wait(0.01)
            return condition()

        wait_for(is_true, "events")

    def close(self) -> None:
        self.peeking.expire(math.inf)
        while self.lingering.drop():
            pass
        for client in self._clients:
            client.close()
        self._listener.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def arrives(fd: int) -> None:
    """Wait until there is something to be read: on a busy machine, it need not be there as soon as it has been sent."""
    assert select.select([fd], [], [], PATIENCE)[0]


def reset(client: socket.socket) -> None:
    """Go without a word (RST)."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def answer(client: socket.socket) -> bytes:
    return client.recv(65536).partition(b"\r\n")[0]


def test_a_key_is_found_as_soon_as_it_is_there(rig: Rig):
    rig.come(HALF + REST)
    client = rig.come(HALF)
    assert rig.keys == ["198.51.100.7"]
    client.sendall(REST)
    rig.wait(lambda: len(rig.keys) > 1)
    assert rig.keys == ["198.51.100.7"] * 2
    assert (len(rig.peeking), rig.metrics.keys[HEADER].value) == (0, 2)


def test_flags_are_not_joined_for_each_connection(rig: Rig):
    """They are members of an enum: each `|` runs code in Python that takes longer than the system call."""
    _, ours = rig.accepted(HALF + REST)
    channel, modules = Channel(), set()
    sys.setprofile(lambda frame, _event, _arg: modules.add(frame.f_globals["__name__"]))
    try:
        rig.peeking.look(ours, ("127.0.0.1", 80), PEER)
        assert channel.send(0, ConnectionInfo(("127.0.0.1", 80), PEER, "198.51.100.7")) is None
    finally:
        sys.setprofile(None)
        channel.close()
    assert "gunicorn_sticky.shared.channel" in modules
    assert "enum" not in modules


def test_at_the_end_of_the_server_nobody_is_waited_for_as_long(rig: Rig):
    half, silent = rig.come(HALF), rig.come()
    now = time.monotonic()
    rig.peeking.hurry(now + 2)
    rig.peeking.hurry(now + 5)
    assert rig.peeking.deadline() == now + 2
    rig.peeking.expire(now + 2)
    assert len(rig.peeking) == 0
    assert answer(half) == b"HTTP/1.1 408 Request Timeout"
    assert answer(silent) == b""


def test_who_has_waited_longest_makes_room(rig: Rig, caplog: pytest.LogCaptureFixture):
    silent, half = rig.come(), rig.come(HALF)
    assert rig.peeking.drop("Too many open files")
    assert answer(silent) == b""
    assert "Closed a connection from 192.0.2.1: too many connections (Too many open files)" in caplog.text
    assert rig.peeking.drop("Too many open files")
    assert answer(half) == b"HTTP/1.1 503 Service Unavailable"
    assert not rig.peeking.drop("Too many open files")


def test_a_client_that_resets_its_connection_is_forgotten(rig: Rig):
    client, ours = rig.accepted()
    reset(client)
    arrives(ours.fileno())
    rig.peeking.look(ours, ("127.0.0.1", 80), PEER)
    assert (ours.fileno(), len(rig.peeking)) == (-1, 0)
    reset(rig.come(HALF))
    rig.wait(lambda: not len(rig.peeking))
    assert (len(rig.peeking), len(rig.lingering), rig.keys) == (0, 0, [])


def test_a_client_that_is_gone_with_half_a_head_is_forgotten(rig: Rig):
    rig.come(HALF).close()
    rig.wait(lambda: not len(rig.peeking))
    rig.come().close()
    rig.wait(lambda: not len(rig.peeking))
    assert (len(rig.peeking), len(rig.lingering), rig.keys) == (0, 0, [])


def test_nothing_new_is_not_the_end(rig: Rig):
    """Whatever epoll has said (select(2), BUGS)."""
    silent = rig.come()
    half = rig.come(HALF)
    for handler in list(rig.events.watched.values()):
        handler(READABLE)
    assert len(rig.peeking) == 2
    for number, (client, text) in enumerate(((silent, HALF + REST), (half, REST)), 1):
        client.sendall(text)
        rig.wait(lambda: len(rig.keys) == number)  # noqa: B023
    assert rig.keys == ["198.51.100.7"] * 2
