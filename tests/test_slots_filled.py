"""A slot has a worker that takes its connections, whatever else goes on: reloads that wait, workers that drain."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from support.harness import STICKY, Server, addresses, wait_for

from gunicorn_sticky.shared.board import SEATS

pytestmark = pytest.mark.features

CLIENTS = addresses(24)
#: Longer than any test waits.
GRACE = ("--graceful-timeout", "120")


@contextlib.contextmanager
def held(server: Server, client: str) -> Iterator[int]:
    """Have a request under way until the end, and tell which worker serves it."""

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get("/hold", source=client)

    before = server.log.count("held by")
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield int(server.wait_for_log(r"held by (\d+)", before + 1).group(1))
    finally:
        (server.folder / "release").touch()
        thread.join()


#: Tells when a request is held.
TELLS = """
def pre_request(worker, req):
    if req.path == "/hold":
        worker.log.info("held by %d", worker.pid)
"""


@contextlib.contextmanager
def waiting_reload(*options: str) -> Iterator[tuple[Server, str, int]]:
    """Have a server whose reload waits for an old worker; also tell a client of its slot, and the new worker."""
    with Server(*STICKY, "-w", "2", *GRACE, *options, "whoami:app", config=TELLS) as server:
        client = CLIENTS[0]
        with held(server, client) as old:
            server.send_signal(signal.SIGHUP)
            new = wait_for(
                lambda: next((p for p in [server.who(source=client)["pid"]] if p != old), None), "the new worker"
            )
            yield server, client, new
            assert old in server.alive("worker")


def test_a_worker_that_dies_while_a_reload_waits_is_replaced():
    with waiting_reload() as (server, client, new):
        for _ in range(2):
            os.kill(new, signal.SIGKILL)
            successor = server.who(source=client)["pid"]
            assert successor != new
            new = successor
        assert "SIGKILL! Perhaps" in server.log


@pytest.mark.parametrize("kind", ["worker", "dispatcher"])
def test_who_hangs_while_a_reload_waits_is_killed(kind: str):
    with waiting_reload("--timeout", "8") as (server, client, new):  # which the others must not reach
        hung = new if kind == "worker" else server.alive("dispatcher")[-1]
        os.kill(hung, signal.SIGSTOP)
        assert server.who(source=client)["pid"] != hung
        server.wait_for_log(rf"{kind.upper()} TIMEOUT \(pid:{hung}\)")
        wait_for(lambda: hung not in server.alive(kind), "its end")


def test_a_new_master_is_promoted_while_its_reload_waits():
    with Server(*STICKY, "-w", "2", *GRACE, "whoami:app", config=TELLS) as server:
        server.who(source=CLIENTS[0])
        server.send_signal(signal.SIGUSR2)
        new = int(server.wait_for_log(r"\[(\d+)\] \[INFO\] Master.2 accepts connections now").group(1))
        with held(server, CLIENTS[0]):
            os.kill(new, signal.SIGHUP)
            server.wait_for_log("Handling signal: hup")
            server.process.kill()
            server.process.wait()
            server.wait_for_log("Master has been promoted")
        os.kill(new, signal.SIGTERM)
        server.wait_for_log("Shutting down: Master$")


def test_a_slot_whose_workers_all_drain_gets_another_one():
    with Server(*STICKY, "-w", "2", *GRACE, "whoami:app", config=TELLS) as server, contextlib.ExitStack() as stack:
        client = CLIENTS[0]
        draining = []
        for _ in range(SEATS):
            draining.append(stack.enter_context(held(server, client)))
            if len(draining) < SEATS:
                assert set(draining) <= set(server.alive("worker"))
            os.kill(draining[-1], signal.SIGTERM)
            assert wait_for(lambda: server.who(source=client)["pid"] not in draining, "a successor")
        # With all seats taken, who has drained longest has made room.
        wait_for(lambda: draining[0] not in server.alive("worker"), "the oldest to end")
        assert set(draining[1:]) <= set(server.alive("worker"))


def test_a_reload_whose_new_worker_dies_while_it_boots_goes_on():
    """The old one, with the older configuration, serves until another successor is there, and no longer."""
    config = """
import os
def post_fork(server, worker):
    if os.path.exists("die"):
        os.unlink("die")
        os.abort()
"""
    with Server(*STICKY, "-w", "1", "whoami:app", config=config) as server:
        old = server.who()["pid"]
        (server.folder / "die").touch()
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not (server.folder / "die").exists(), "the new worker to die")
        wait_for(lambda: server.alive("worker") not in ([], [old]) and server.who()["pid"] != old, "a successor")
        wait_for(lambda: old not in server.alive("worker"), "the old worker to end")
