"""Descriptor passing, without a server."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from support.harness import descriptors

from gunicorn_sticky.shared.channel import Channel, ConnectionInfo

LISTENER, PEER = ("127.0.0.1", 80), ("127.0.0.1", 4000)


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 256 * 1024, 3_000_000])
def test_bytes_of_any_number_travel(size: int):
    channel, (ours, theirs) = Channel(), socket.socketpair()
    before = Counter(descriptors(os.getpid()))
    sent = ConnectionInfo(LISTENER, PEER, "key", os.urandom(size), {"client_addr": "192.0.2.1", "client_port": 5})
    assert channel.send(theirs.fileno(), sent) is None
    received = channel.receive()
    assert received
    fd, info = received
    assert info == sent
    with socket.socket(fileno=fd) as passed:
        passed.send(b"through")
        assert ours.recv(100) == b"through"
    assert channel.receive() is None
    assert not Counter(descriptors(os.getpid())) - before
    for end in (ours, theirs, channel):
        end.close()


@pytest.mark.parametrize("limit", [64 * 1024, 100_000])
def test_bytes_that_no_memory_file_takes_are_not_sent_in_part(limit: int):
    """Memory files are files to `ulimit -f`, and a write that reaches the limit succeeds in part."""
    channel, (ours, theirs) = Channel(), socket.socketpair()
    before = Counter(descriptors(os.getpid()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        error = channel.send(theirs.fileno(), ConnectionInfo(LISTENER, PEER, "key", b"x" * 150_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error
    assert error.errno == errno.EFBIG
    assert channel.receive() is None
    assert not Counter(descriptors(os.getpid())) - before
    for end in (ours, theirs, channel):
        end.close()


def test_a_channel_that_is_closed_is_not_full():
    channel = Channel()
    channel.close_sender()
    with pytest.raises(OSError, match="Bad file descriptor"):
        channel.send(0, ConnectionInfo(LISTENER, PEER, "key"))
    channel.close_receiver()


def until_there_are_none_left() -> Iterator[int]:
    with contextlib.suppress(OSError):
        while True:
            yield os.dup(0)


def test_at_the_limit_of_open_files_a_connection_stays_in_the_channel():
    channel, (ours, theirs) = Channel(), socket.socketpair()
    for unread in (b"", b"x" * 100_000):
        assert channel.send(theirs.fileno(), ConnectionInfo(LISTENER, PEER, "key", unread)) is None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, limits[1]))
    fillers: list[int] = []
    gc.disable()  # it might close what earlier tests have left, and then there were room
    try:
        fillers.extend(until_there_are_none_left())
        for _ in range(2):
            with pytest.raises(OSError, match="Too many open files"):
                channel.receive()
            os.close(fillers.pop())
        received = channel.receive()
        assert received
        os.close(received[0])
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gc.enable()
    received = channel.receive()
    assert received
    os.close(received[0])
    assert received[1].unread == b"x" * 100_000
    for end in (ours, theirs, channel):
        end.close()
