"""Gunicorn's signals, at every stage of a server's life: what its documentation promises, also with a dispatcher."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harness import PATIENCE, STICKY, Server, addresses, daemon, wait_for
from support.kinds import Kind, each_kind
from support.proxies import reserved_port

pytestmark = pytest.mark.features
steady = pytest.mark.xdist_group("signals")

CLIENTS = addresses(12)
#: Stops a server that starts at the stage that the environment variable names, until the file "go" exists.
PAUSE = """
import os
from waiting import wait_until

def stage(name):
    if os.environ["STAGE"] == name:
        open("here", "w").close()
        wait_until(lambda: os.path.exists("go"))

def nworkers_changed(server, new, old): stage("setup")
def on_starting(server): stage("starting")
def when_ready(server): stage("ready")
def pre_fork(server, worker): stage(f"before worker {worker.age}")
def post_fork(server, worker): stage(f"worker {worker.age}")
def post_worker_init(worker): stage(f"booted worker {worker.age}")
stage("configuration")
"""
#: What Python does by itself, before Gunicorn has handlers; SIGINT is a KeyboardInterrupt with its traceback.
EARLY = ["configuration", "setup", "starting"]
LATER = [
    "ready",
    "before worker 1",
    "before worker 2",
    "worker 1",
    "worker 2",
    "booted worker 1",
    "booted worker 2",
    "dispatcher",
]
#: How many starts are interrupted, each at another moment.
STARTS = int(os.environ.get("STICKY_STARTS", "6"))
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
#: Each stage with SIGTERM, and with one of the two signals for a quick stop, for which Gunicorn does the same.
LATER_STOPS = [(stage, number) for n, stage in enumerate(LATER) for number in (signal.SIGTERM, STOPS[1 + n % 2])]


def all_end(server: Server) -> None:
    """Wait for those that the master has killed last: it does not, and they close sockets before they are gone."""
    wait_for(lambda: not server.session(), "all processes to end")


def nothing_is_left(server: Server, port: int) -> None:
    assert server.process.poll() is not None
    all_end(server)
    socket.create_server(("127.0.0.1", port)).close()


def stop_at(stage: str, number: int) -> tuple[int, str]:
    """Send a starting server a signal, and return its exit code and what it has logged."""
    # A worker that has not heard of the end would be waited for: longer than this test is willing to.
    workers = "2" if "2" in stage else "1"
    args = (*STICKY, "-w", workers, "--graceful-timeout", "60", "whoami:app")
    with (
        reserved_port() as port,
        Server(*args, bind=f"127.0.0.1:{port}", config=PAUSE, env={"STAGE": stage}) as server,
    ):
        if stage == "dispatcher":
            server.wait_for_log("Booting dispatcher")
        else:
            wait_for((server.folder / "here").exists, stage)
        server.send_signal(number)
        if stage.startswith(("worker", "booted")):
            server.wait_for_log("Handling signal")  # before the worker goes on
        (server.folder / "go").touch()
        code = server.process.wait(PATIENCE)
        nothing_is_left(server, port)
        return code, server.log


@pytest.mark.parametrize("stage", EARLY)
def test_stop_before_there_are_handlers(stage: str):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        code, log = stop_at(stage, number)
        assert code == -number
        assert "Booting" not in log


@pytest.mark.parametrize(("stage", "number"), LATER_STOPS)
def test_stop_at_every_stage_of_the_start(stage: str, number: int):
    code, log = stop_at(stage, number)
    assert code == 0
    # Gunicorn's gevent worker may end in two ways at once on a quick stop, and gevent then prints the second one.
    assert log.count("Traceback") == log.count("\nSystemExit: 0\n")
    assert "Shutting down: Master" in log
    assert "SIGKILL" not in log


def test_stop_at_any_time():
    """What the stages above do not name: at moments that are spread over the time that a start takes here."""
    began = time.monotonic()
    args = (*STICKY, "-w", "2", "--graceful-timeout", "60", "whoami:app")
    with Server(*args) as server:
        server.wait_for_log(r"Slot \d: ready", count=2)
        takes = time.monotonic() - began
    for start in range(STARTS):
        number = STOPS[start % len(STOPS)]
        with reserved_port() as port, Server(*args, bind=f"127.0.0.1:{port}") as server:
            time.sleep(takes * start / STARTS)
            server.send_signal(number)
            try:
                code = server.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                # While it imports, Python calls back where it only prints exceptions: nobody else has seen the signal.
                assert re.match("Exception ignored in.*\n(?:.*\n)*?KeyboardInterrupt", server.log), server.log
                continue
            nothing_is_left(server, port)
            # Before there are handlers, Python or the signal itself ends it.
            assert code in ((0,) if "Listening at" in server.log else (0, 1, -number))
            if code == 0:
                assert server.log.count("Traceback") == server.log.count("\nSystemExit: 0\n")


@pytest.mark.parametrize(("stage", "workers"), [("ready", 1), ("before worker 2", 2), ("worker 1", 1)])
def test_what_a_starting_server_is_told_is_done_when_it_has_started(stage: str, workers: int):
    with Server(*STICKY, "-w", str(workers), "whoami:app", config=PAUSE, env={"STAGE": stage}) as server:
        wait_for((server.folder / "here").exists, stage)
        for number in (signal.SIGTTIN, signal.SIGUSR1, signal.SIGWINCH):
            server.send_signal(number)
        (server.folder / "go").touch()
        server.wait_for_log("Handling signal: ttin")
        wait_for(lambda: len(server.alive("worker")) == workers + 1, "one more worker")
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert set(server.slots(addresses(40)).values()) == set(range(workers + 1))
        assert "Traceback" not in server.log
        assert server.stop() == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that goes on whatever its tests do to its processes."""
    with Server(*STICKY, "-w", "2", "--log-level", "debug", "whoami:app") as server:
        yield server


# --- the end of a running server ---


@contextlib.contextmanager
def held_request(server: Server) -> Iterator[list[int]]:
    """Have a request under way that ends when the file "release" exists; the list gets its status, or 0."""
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(server.get("/hold", source=CLIENTS[0]).status)
        except (OSError, http.client.HTTPException):
            statuses.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        server.wait_for_log("held")
        wait_for(lambda: server.log.count("booted") == len(server.booted("worker")), "all workers")
        yield statuses
        thread.join(30)
        assert statuses
    finally:
        (server.folder / "release").touch()
        thread.join()


#: Logs workers that are ready.
BOOTED = """
def post_worker_init(worker): worker.log.info("booted")
"""


def test_term_lets_requests_end():
    args = (*STICKY, "-w", "2", "--graceful-timeout", "60", "whoami:app")
    with Server(*args, config=BOOTED) as server, held_request(server) as statuses:
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("Handling signal: term")
        (server.folder / "release").touch()
        assert server.process.wait(PATIENCE) == 0
        wait_for(lambda: statuses == [200], "the answer")
        assert not server.session()


@each_kind()
def test_term_waits_no_longer_than_the_graceful_timeout(kind: Kind):
    args = (*kind.args, "-w", "1", "--graceful-timeout", "1", kind.app("whoami"))
    with Server(*args, config=BOOTED) as server, held_request(server) as statuses:
        assert server.stop() == 0
        wait_for(lambda: statuses == [0], "the request to be cut off")
        all_end(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@each_kind()
def test_quick_stop_does_not_wait_for_requests(kind: Kind, number: int):
    args = (*kind.args, "-w", "1", "--graceful-timeout", "60", kind.app("whoami"))
    with Server(*args, config=BOOTED) as server, held_request(server) as statuses:
        assert server.stop(number) == 0
        # uvicorn answers a request that it cancels.
        wait_for(lambda: statuses == ([0] if kind.has_all else [500]), "the request to be cut off")
        all_end(server)


def test_a_graceful_stop_can_be_made_quick():
    args = (*STICKY, "-w", "1", "--graceful-timeout", "60", "whoami:app")
    with Server(*args, config=BOOTED) as server, held_request(server) as statuses:
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("Handling signal: term")
        server.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        assert "Quick shutdown requested" in server.log
        wait_for(lambda: statuses == [0], "the request to be cut off")
        all_end(server)


# --- WINCH ---


@steady
def test_winch_does_nothing_in_the_foreground(server: Server):
    before = server.slots(CLIENTS)
    workers = server.alive("worker")
    server.send_signal(signal.SIGWINCH)
    server.wait_for_log("SIGWINCH ignored")
    assert server.slots(CLIENTS) == before
    assert server.alive("worker") == workers


def test_winch_stops_the_workers_of_a_daemon_until_hup():
    with daemon(*STICKY, "-w", "2", "whoami:app") as server:
        before = server.slots(CLIENTS)
        server.send_signal(signal.SIGWINCH)
        wait_for(lambda: not server.children(), "workers and dispatcher to end")
        # Nobody accepts; the listener keeps who comes.
        waiting = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        waiting.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert server.is_running
        server.send_signal(signal.SIGHUP)
        assert waiting.recv(12) == b"HTTP/1.1 200"
        waiting.close()
        assert server.slots(CLIENTS) == before
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert len(server.alive("worker")) == 2


@pytest.mark.parametrize("stage", ["before worker 2", "booted worker 2"])
def test_winch_while_a_daemon_starts(stage: str):
    with daemon(*STICKY, "-w", "2", "whoami:app", config=PAUSE, env={"STAGE": stage}) as server:
        wait_for((server.folder / "here").exists, stage)
        server.send_signal(signal.SIGWINCH)
        if stage.startswith(("worker", "booted")):
            server.wait_for_log("Handling signal")
        (server.folder / "go").touch()
        server.wait_for_log("Handling signal: winch")
        wait_for(lambda: not server.children(), "workers and dispatcher to end")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: len(server.alive("worker")) == 2, "two workers")
        assert set(server.slots(CLIENTS).values()) == {0, 1}


# --- USR2 ---


def upgrade(server: Server) -> int:
    """Start a second master with USR2, and return its pid when it has a dispatcher."""
    dispatchers = len(server.booted("dispatcher"))
    server.send_signal(signal.SIGUSR2)
    pid = server.folder / "pid.2"
    new = int(wait_for(lambda: pid.exists() and pid.read_text(), "the new master's pid"))
    server.wait_for_log("Booting dispatcher", count=dispatchers + 1)
    return new


def ended(pid: int) -> bool:
    """Tell whether a process is gone, and its parent knows."""
    return not Path(f"/proc/{pid}").exists()


def test_an_upgrade_can_be_undone():
    """USR2, WINCH, and then HUP and QUIT: the procedure that Gunicorn's documentation gives."""
    with daemon(*STICKY, "-w", "2", "whoami:app") as server:
        before = server.slots(CLIENTS)
        old = server.alive("worker")
        new = upgrade(server)
        server.send_signal(signal.SIGWINCH)
        wait_for(lambda: set(server.children()) == {new}, "the old workers to end")
        assert server.slots(CLIENTS) == before
        assert server.who()["pid"] not in old
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: len(server.alive("worker")) == 2, "the old master's workers")
        server.wait_for_log("Booting dispatcher", count=3)
        os.kill(new, signal.SIGQUIT)
        wait_for(lambda: ended(new), "the new master to end")
        assert server.slots(CLIENTS) == before
        assert (server.folder / "pid").read_text().strip() == str(server.pid)
        assert not (server.folder / "pid.2").exists()


def test_a_second_upgrade_waits_for_the_end_of_the_first_one():
    with Server(*STICKY, "-w", "2", "--pid", "pid", "whoami:app") as server:
        before = server.slots(CLIENTS)
        new = upgrade(server)
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log("USR2 signal ignored. Child exists")
        os.kill(new, signal.SIGUSR2)
        server.wait_for_log("USR2 signal ignored. Parent exists")
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: ended(new), "the new master to end")
        new = upgrade(server)
        assert server.stop() == 0
        server.wait_for_log("Master has been promoted")
        pid = server.folder / "pid"  # which is renamed after that has been logged
        wait_for(lambda: pid.exists() and pid.read_text().strip() == str(new), "the new master's pid in its file")
        assert server.slots(CLIENTS) == before
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not server.session(), "all processes to end")


# --- signals to those behind the master ---


@steady
def test_a_worker_that_is_told_to_end_is_replaced_in_its_slot(server: Server):
    before, workers = server.slots(CLIENTS), len(server.booted("worker"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
        victim = server.who(source=CLIENTS[0])["pid"]
        os.kill(victim, number)
        wait_for(lambda: victim not in server.children(), "the worker to end")  # noqa: B023
        assert server.slots(CLIENTS) == before
    assert len(server.booted("worker")) == workers + 4


@steady
def test_a_dispatcher_that_is_told_to_end_is_replaced(server: Server):
    before, workers = server.slots(CLIENTS), server.booted("worker")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        count = len(server.booted("dispatcher"))
        os.kill(server.alive("dispatcher")[-1], number)
        server.wait_for_log("Booting dispatcher", count=count + 1)
        assert server.slots(CLIENTS) == before
    assert server.booted("worker") == workers


@steady
def test_a_dispatcher_does_not_care_for_the_masters_signals(server: Server):
    """As when a terminal sends them to the whole process group."""
    before = server.slots(CLIENTS)
    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
    (dispatcher,) = server.alive("dispatcher")
    for name in ("HUP", "TTIN", "TTOU", "USR2", "WINCH"):
        os.kill(dispatcher, getattr(signal, f"SIG{name}"))
        assert server.slots(CLIENTS) == before
    assert server.alive("dispatcher") == [dispatcher]


def test_interrupt_from_the_terminal_ends_all_at_once():
    """Ctrl-C reaches every process of the group."""
    with Server(*STICKY, "-w", "2", "--graceful-timeout", "60", "whoami:app", config=BOOTED) as server:
        server.slots(CLIENTS)
        server.wait_for_log("booted", count=2)
        os.killpg(server.pid, signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        all_end(server)
