"""Connections that wait because the channel of their worker is full: decisions without a server."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator

import pytest

from gunicorn_sticky.dispatcher.pending import Pending
from gunicorn_sticky.shared.channel import Channel, ConnectionInfo
from gunicorn_sticky.shared.limited_log import LimitedLog

SIZE, PATIENCE = 3, 10.0


class Rig:
    """A channel, and those who wait for it."""

    def __init__(self) -> None:
        self.channel, self.refused = Channel(), list[str]()
        self.pending = Pending(SIZE, PATIENCE, self._refuse, LimitedLog(logging.getLogger(__name__)))

    def _refuse(self, fd: int, info: ConnectionInfo) -> None:
        os.close(fd)
        self.refused.append(str(info.key))

    def come(self, *names: str) -> None:
        for name in names:
            _, ours = pair = socket.socketpair()
            self.pending.pass_on(self.channel, ours.detach(), ConnectionInfo("", "", name))
            pair[0].close()

    def fill(self) -> int:
        """Let come as many as the channel takes, and one more."""
        count = 0
        while not self.pending:
            self.come(f"before {count}")
            count += 1
        return count

    def take(self) -> list[str]:
        """Do as the worker does."""
        taken = []
        while received := self.channel.receive():
            os.close(received[0])
            taken.append(str(received[1].key))
        return taken

    def close(self) -> None:
        for fd, info in self.pending.clear(self.channel):
            self._refuse(fd, info)
        self.take()
        self.channel.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_all_arrive_in_their_order(rig: Rig):
    names = [f"before {n}" for n in range(rig.fill())]
    rig.come("one")
    assert rig.pending.held() == 2
    assert rig.take() == names[:-1]
    rig.come("two")  # who comes later does not come first, though there is room by now
    assert rig.take() == []
    rig.pending.advance(time.monotonic())
    assert rig.take() == [names[-1], "one", "two"]
    assert (rig.refused, len(rig.pending), rig.pending.held()) == ([], 0, 0)


def test_only_so_many_wait(rig: Rig):
    rig.fill()
    rig.come("two", "three", "four", "five")
    assert (rig.pending.held(), rig.refused) == (SIZE, ["four", "five"])


def test_nobody_waits_for_ever_except_while_a_worker_boots(rig: Rig):
    before = time.monotonic()
    last = f"before {rig.fill() - 1}"
    rig.come("one")
    after = time.monotonic()
    rig.pending.advance(before + PATIENCE - 1)
    rig.pending.prolong(rig.channel, 5)
    rig.pending.advance(before + PATIENCE + 4)
    assert rig.refused == []
    rig.pending.advance(after + PATIENCE + 6)
    assert (rig.refused, len(rig.pending)) == ([last, "one"], 0)


def test_a_channel_blocks_if_all_are_full(rig: Rig):
    other = Channel()
    assert not rig.pending.block([rig.channel, other])
    rig.fill()
    assert rig.pending.block([rig.channel])
    assert not rig.pending.block([rig.channel, other])
    other.close()


def test_what_the_system_has_no_room_for_waits_and_the_log_says_why(rig: Rig, caplog: pytest.LogCaptureFixture):
    send = rig.channel.send
    rig.channel.send = lambda fd, info: OSError(errno.ETOOMANYREFS, "Too many references")  # type: ignore[method-assign]
    rig.come("one")
    assert "Too many references (setting: ulimit -n)" in caplog.text
    rig.channel.send = send  # type: ignore[method-assign]
    rig.pending.advance(0)
    assert rig.take() == ["one"]
