"""The path of `sticky_cluster_socket`, in a folder where somebody else may put something in the socket's place."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn_sticky.broadcast.cluster import Cluster
from gunicorn_sticky.broadcast.join_socket import JoinSocket, Member

NOBODY = 65534


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def another_socket(path: Path, victim: Path) -> None:
    """What another program listens at; it was created there, and its path leads to it twice."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim.with_name("other")))
    os.link(victim.with_name("other"), path)


def another_server(path: Path, victim: Path) -> None:
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(); input()"
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    servers.append(process)
    assert process.stdout
    assert process.stdout.readline()


def nothing(path: Path, victim: Path) -> None:
    pass


servers: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def ending() -> Iterator[None]:
    yield
    while servers:
        servers.pop().communicate()


SWAPS = [link, hard_link, another_socket, another_server, nothing]


@pytest.mark.parametrize("swap", SWAPS)
def test_nothing_else_changes_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[..., None]):
    """Somebody is faster than the master, and has replaced the socket once it is bound."""
    path, victim, chown = tmp_path / "socket", tmp_path / "victim", os.chown
    victim.touch()
    changed: list[str] = []

    def bound(self: JoinSocket, *args: int) -> None:
        path.rename(tmp_path / "moved")
        swap(path, victim)
        give_to(self, *args)

    def change(*args: Any) -> None:
        changed.append(os.readlink(args[0]))
        chown(args[0], -1, -1)

    give_to = JoinSocket._give_to
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", change)
    monkeypatch.setattr(JoinSocket, "_give_to", bound)
    with pytest.raises(OSError, match=str(path)):
        JoinSocket(str(path), uid=NOBODY, gid=NOBODY)
    assert not changed
    monkeypatch.setattr(JoinSocket, "_give_to", give_to)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    JoinSocket(str(path), uid=NOBODY, gid=NOBODY).remove()
    assert changed == [str(path)]
    assert not path.exists()


@pytest.mark.parametrize("swap", SWAPS)
def test_nothing_else_is_removed(tmp_path: Path, swap: Callable[..., None]):
    path, victim = tmp_path / "socket", tmp_path / "victim"
    victim.touch()
    served = JoinSocket(str(path), uid=os.geteuid(), gid=os.getegid())
    path.unlink()
    swap(path, victim)
    listed = set(tmp_path.iterdir())
    served.remove()
    assert set(tmp_path.iterdir()) == listed


def test_a_socket_whose_server_does_not_accept_is_in_use(tmp_path: Path):
    """And nobody waits for it."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(OSError, match=str(path)) as error:
            JoinSocket(str(path))
        assert error.value.errno == errno.EADDRINUSE
        JoinSocket(str(path), replace=True).remove()


def test_a_doorbell_that_is_full_is_emptied():
    """Any program that has joined can do that."""
    shared = Cluster()
    listener = shared.listener(None)
    _, doorbell = shared.fds()
    os.eventfd_write(doorbell, (1 << 64) - 2)
    listener._bell.poll(0)
    for text in (b"one", b"two"):
        shared.tell(text)
        assert listener._bell.poll(0)
        assert list(listener._reader.read()) == [text]
    os.set_blocking(doorbell, True)
    os.eventfd_write(doorbell, (1 << 64) - 2 - os.eventfd_read(doorbell))
    another = Cluster((os.dup(shared.fds()[0]), os.dup(doorbell)))
    another.tell(b"three")
    assert list(listener._reader.read()) == [b"three"]
    another.close()
    shared.close()


def test_a_member_of_nobody(tmp_path: Path):
    with pytest.raises(ConnectionError, match="sticky_cluster_socket"):
        Member(str(tmp_path / "none")).tell(b"")
