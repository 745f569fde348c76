"""The path of `sticky_cluster_socket`, in a folder where somebody else may put something in the socket's place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from support.harness import PATIENCE, descriptors

import gunicorn_sticky
from gunicorn_sticky.arbiter.sockets import Sockets
from gunicorn_sticky.broadcast import asyncio_driver, thread_driver
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


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


def test_a_member_of_another_version(path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def greet() -> None:
            client, _ = server.accept()
            with client:
                socket.send_fds(client, [b"gunicorn_sticky 0.0"], [0, 0])

        before = Counter(descriptors(os.getpid()))
        greeting = threading.Thread(target=greet)
        greeting.start()
        with pytest.raises(ConnectionError, match=r"gunicorn_sticky 0\.0 is there"):
            Member(str(path)).tell(b"")
        greeting.join()
    assert not Counter(descriptors(os.getpid())) - before  # what earlier tests have left may go meanwhile


def test_what_a_server_has_left_behind_is_replaced(path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    JoinSocket(str(path)).remove()
    assert not path.exists()


def test_a_reload_moves_it_removes_it_and_refuses_what_cannot_be(tmp_path: Path):
    sockets, failures = Sockets(None, None), list[str]()
    owner = {"uid": os.geteuid(), "gid": os.getegid()}

    def reload(path: Path | None) -> set[str]:
        cfg = SimpleNamespace(sticky_cluster_socket=path and str(path), sticky_status=None, **owner)
        sockets.open(cfg, None, lambda text, *args: failures.append(text % args))
        return {found.name for found in tmp_path.iterdir()}

    assert reload(tmp_path / "one") == {"one"}
    assert reload(tmp_path / "one") == {"one"}
    assert reload(tmp_path / "two") == {"two"}
    (tmp_path / "file").touch()
    assert reload(tmp_path / "file") == {"two", "file"}
    assert len(failures) == 1
    assert failures[0].startswith("Invalid sticky_cluster_socket: ")
    assert sockets.join
    assert sockets.join.path == str(tmp_path / "two")
    assert reload(None) == {"file"}
    assert sockets.join is None


# --- hearing ---


class Behind:
    """What two writers tell, of whom one has not finished when the bell rings, and nobody rings again."""

    def __init__(self) -> None:
        self._told = [[b"one"], [], [b"two"]]
        self._bell = os.eventfd(0)

    def hear(self) -> list[bytes]:
        return self._told.pop(0)

    @property
    def is_behind(self) -> bool:
        return bool(self._told)

    def fileno(self) -> int:
        return self._bell

    def listener(self, log: Any) -> Behind:
        return self

    def close(self) -> None:
        os.close(self._bell)


@pytest.fixture
def behind() -> Iterator[Behind]:
    with contextlib.closing(Behind()) as behind:
        yield behind


def test_threads_look_again_for_what_is_not_finished(behind: Behind):
    heard: list[bytes] = []
    messages: Any = thread_driver.messages(behind, None)  # type: ignore[arg-type]
    listening = threading.Thread(target=lambda: heard.extend(itertools.islice(messages, 2)), daemon=True)
    listening.start()
    listening.join(PATIENCE)
    assert heard == [b"one", b"two"]


def test_asyncio_looks_again_for_what_is_not_finished(behind: Behind):
    async def listen() -> list[bytes]:
        messages: Any = asyncio_driver.messages(behind, None)  # type: ignore[arg-type]
        return [await anext(messages) for _ in range(2)]

    assert asyncio.run(asyncio.wait_for(listen(), PATIENCE)) == [b"one", b"two"]


# --- managers outside of workers ---


@pytest.fixture(params=["ClusterManager", "AsyncClusterManager"])
def manager(request: pytest.FixtureRequest) -> Any:
    return getattr(gunicorn_sticky, request.param)


def emit(manager: Any) -> None:
    emitting = manager.emit("news", 1)
    if inspect.isawaitable(emitting):
        asyncio.run(wait(emitting))


async def wait(for_: Awaitable[Any]) -> None:
    await for_


def test_a_path_is_for_those_who_only_emit(manager: Any):
    with pytest.raises(ValueError, match="write_only"):
        manager("/nowhere")


def test_who_only_emits_needs_a_path(manager: Any):
    with pytest.raises(RuntimeError, match="sticky_cluster_socket"):
        emit(manager(write_only=True))


def test_who_only_emits_needs_a_server(manager: Any, path: Path):
    with pytest.raises(ConnectionError, match="sticky_cluster_socket"):
        emit(manager(str(path), write_only=True))


def test_a_server_in_no_worker_is_told_so(manager: Any, caplog: pytest.LogCaptureFixture):
    kind = socketio.AsyncServer if manager.__name__.startswith("Async") else socketio.Server
    server = kind(client_manager=manager(), async_mode="asgi" if kind is socketio.AsyncServer else "threading")
    server.manager.initialize()
    assert f"{manager.__name__} is in no worker of gunicorn_sticky" in caplog.text
