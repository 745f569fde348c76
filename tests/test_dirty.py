"""Gunicorn's dirty arbiter and its workers, beside ours."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from support.gunicornc import control, order
from support.harness import STICKY, Server, addresses, wait_for

pytestmark = pytest.mark.features

CLIENTS = addresses(12)


@pytest.fixture
def arguments() -> Iterator[dict[str, Any]]:
    """A TMPDIR for each server: Gunicorn keeps a file there that is named after the program, and sockets."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own would make a socket's name too long
        yield {"env": {"TMPDIR": folder}, "control_socket": True}


# Gunicorn's dirty arbiter, if told to end in the middle of a reload, waits for its workers as long as it may.
# It also forgets what a worker that it ends has been asked, which then fails after the other time.
TIMES = ("--dirty-graceful-timeout", "2", "--dirty-timeout", "2")
DIRTY = (*STICKY, "-w", "2", *TIMES, "--dirty-app", "dirty:Task", "--dirty-workers", "2", "dirty:app")


def works(server: Server) -> None:
    server.wait_for_log(r"Dirty worker \d+ listening", count=2)
    before = server.slots(CLIENTS)
    assert set(before.values()) == {0, 1}
    found = [server.who(source=client) for client in CLIENTS]
    assert {who["square"] for who in found} == {9}
    assert {who["slot"] for who in found} == {0, 1}
    assert not {who["dirty"] for who in found} & {server.pid, *server.alive("worker")}
    assert server.slots(CLIENTS) == before


def reload(server: Server) -> None:
    """Reload, and see that all new workers can have something done, by one of the dirty workers.

    Not by each of them: one that Gunicorn's dirty arbiter tells to end while it boots stays, and answers nobody.
    """
    old = set(server.alive("worker"))
    server.send_signal(signal.SIGHUP)
    wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")
    server.wait_for_log("Booting dispatcher", count=2)
    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
    server.wait_for_log("Reloading dirty workers")
    for client in CLIENTS:
        wait_for(lambda: server.get(source=client).status == 200, f"an answer to {client}")  # noqa: B023


def test_dirty_workers_work_for_all_workers(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        assert control(server, "show dirty")["enabled"] is True
        assert server.stop() == 0
        wait_for(lambda: not server.session(), "all processes to end")  # a dispatcher that is killed in the end, too


def test_quick_stop(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        assert server.stop(signal.SIGINT, timeout=15) == 0
        wait_for(lambda: not server.session(), "all processes to end")  # a dispatcher that is killed in the end, too


def test_reload(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        reload(server)


def test_a_killed_dirty_arbiter_is_replaced(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        pid = int(server.wait_for_log(r"Spawned dirty arbiter \(pid: (\d+)\)").group(1))
        before = server.alive("worker"), server.alive("dispatcher")
        os.kill(pid, signal.SIGKILL)
        server.wait_for_log("Spawned dirty arbiter", count=2)
        # Gunicorn's workers know the old one's socket until they are replaced.
        assert (server.alive("worker"), server.alive("dispatcher")) == before
        server.wait_for_log(r"Dirty worker \d+ listening", count=4)
        reload(server)


def test_dirty_workers_are_added_and_removed(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        assert order(server, "dirty add 1")["success"] is True
        server.wait_for_log(r"Dirty worker \d+ listening", count=3)
        assert order(server, "dirty remove 1")["success"] is True
        server.wait_for_log("Dirty worker exited")
        works(server)


def test_everything_ends_with_a_killed_master(arguments):
    with Server(*DIRTY, **arguments) as server:
        works(server)
        server.send_signal(signal.SIGKILL)
        server.process.wait()
        wait_for(lambda: not server.session(), "all processes to end")


def test_hooks(arguments):
    config = """
def record(name):
    with open("calls", "a") as calls:
        print(name, file=calls)

def on_dirty_starting(arbiter): record("on_dirty_starting")
def dirty_post_fork(arbiter, worker): record("dirty_post_fork")
def dirty_worker_init(worker): record("dirty_worker_init")
def dirty_worker_exit(arbiter, worker): record("dirty_worker_exit")
"""
    with Server(*DIRTY, config=config, **arguments) as server:
        works(server)
        assert server.stop() == 0
        calls = (server.folder / "calls").read_text().split()
        assert calls[0] == "on_dirty_starting"
        assert calls.count("dirty_post_fork") == calls.count("dirty_worker_init") == 2
        assert calls[-1] == "dirty_worker_exit"
