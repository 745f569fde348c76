"""SIGUSR2: of two masters exactly one accepts, and no session is lost while its worker lives."""

from __future__ import annotations

import ast
import contextlib
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gunicornc import control
from support.harness import BIN, STICKY, Server, addresses, descriptors, stat, wait_for
from support.masters import ANOTHER_VERSION, Master, is_running

pytestmark = pytest.mark.features

CLIENTS = addresses(24)
BY_SESSION = ("--sticky-by", "session", "--sticky-session-keys", "query:session_id", "sessions:app")


def ask(server: Server, client: str, path: str = "/") -> dict[str, Any]:
    return dict(json.loads(server.get(path, source=client).body))


def use(server: Server, session: dict[str, Any]) -> dict[str, Any]:
    return ask(server, "127.0.0.1", f"/use?session_id={session['id']}")


def pids(server: Server) -> set[int]:
    return {ask(server, client)["pid"] for client in CLIENTS}


@contextlib.contextmanager
def serving(*args: str, **kwargs: Any) -> Iterator[Server]:
    """Start a server with two workers, and wait for both."""
    with Server(*STICKY, "-w", "2", "--pid", "pid", *args, **kwargs) as server:
        wait_for(lambda: len(pids(server)) == 2, "both workers")
        yield server


def test_every_client_keeps_its_slot():
    with serving("whoami:app") as server:
        before = {client: server.who(source=client)["slot"] for client in CLIENTS}
        old = pids(server)
        new = Master(server)
        assert {client: server.who(source=client)["slot"] for client in CLIENTS} == before
        assert pids(server) == new.workers
        assert all(is_running(pid) for pid in old)
        server.stop()
        new.be_promoted()
        assert {client: server.who(source=client)["slot"] for client in CLIENTS} == before
        assert pids(server) == new.workers
        new.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_the_old_master_accepts_again_when_the_new_one_goes(number: int):
    with serving("whoami:app") as server:
        old = pids(server)
        new = Master(server)
        assert pids(server) == new.workers
        new.end(number)
        wait_for(lambda: pids(server) == old, "the old master to accept")


def test_the_new_master_goes_on_when_the_old_one_is_killed():
    with serving("whoami:app") as server:
        old = pids(server)
        new = Master(server)
        server.stop(signal.SIGKILL)
        wait_for(lambda: not any(is_running(pid) for pid in old), "the old workers to end")
        assert pids(server) == new.workers
        new.be_promoted()
        assert pids(server) == new.workers
        new.end()


def test_the_old_master_may_go_before_the_new_one_is_ready():
    with serving("whoami:app") as server:
        old = pids(server)
        server.send_signal(signal.SIGUSR2)
        new = int(server.wait_for_log(r"\[(\d+)\] \[INFO\] Starting gunicorn", count=2).group(1))
        server.stop()
        assert not pids(server) & old  # what nobody accepts waits in the kernel
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not is_running(new), "the new master to end")


def test_an_upgrade_of_our_own_program():
    """Its file is executed by its path then, and what lies beside that is not the application's to import."""
    config = "import sys\ndef on_starting(server): server.log.info('Path: %s', sys.path)"
    program = [sys.executable, "-m", "gunicorn_sticky"]
    with Server("-w", "2", "--pid", "pid", "whoami:app", config=config, command=program) as server:
        server.wait_for_log(r"Slot \d: ready", count=2)
        new = Master(server)
        assert pids(server) == new.workers
        before, after = (ast.literal_eval(path) for path in re.findall(r"Path: (.*)", server.log))
        assert set(after) == set(before)
        new.end()


def test_an_upgrade_that_fails_changes_nothing():
    with serving("whoami:app") as server:
        old = pids(server)
        server.configure("raise RuntimeError('a broken configuration')")
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log("a broken configuration")
        assert pids(server) == old
        server.configure("")
        # The old master ignores the signal until it has noticed the end of the other one.
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        wait_for(lambda: len(children.read_text().split()) == 3, "the end of the new master")
        new = Master(server)
        assert pids(server) == new.workers
        new.end()


@pytest.mark.parametrize("hook", ["raise RuntimeError('no upgrade')", "server.START_CTX[0] = '/nowhere'"])
def test_an_upgrade_that_cannot_be_executed_changes_nothing(hook: str):
    with serving("whoami:app", config=f"def pre_exec(server): {hook}") as server:
        old, dispatcher = pids(server), server.alive("dispatcher")
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log("Exception in the new master")
        assert pids(server) == old
        assert server.alive("dispatcher") == dispatcher
        assert (server.folder / "pid").read_text().strip() == str(server.pid)
        assert server.stop() == 0


def test_an_upgrade_to_another_version():
    """The new master closes what it cannot use, and nobody waits for it on the board."""
    with serving(*BY_SESSION, config=ANOTHER_VERSION) as server:
        before = descriptors(server.pid)
        server.send_signal(signal.SIGUSR2)
        new = int(server.wait_for_log(r"\[(\d+)\] \[INFO\] Starting gunicorn", count=2).group(1))
        server.wait_for_log(rf"\[{new}\] \[INFO\] Slot \d: ready", count=2)
        for kind in ("socket:", "/memfd:"):
            count = sum(name.startswith(kind) for name in before)
            assert sum(name.startswith(kind) for name in descriptors(new)) == count
        server.stop()
        wait_for(lambda: not (server.folder / "pid.2").exists(), "the new master's promotion")
        assert pids(server) <= set(server.booted("worker")[2:])
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not is_running(new), "the new master to end")


def test_the_environment_shows_no_secret():
    """As /proc does to whoever may look, for as long as a process lives."""
    no_titles = {"SPT_NOENV": "1"}  # setproctitle would put them there
    with serving(*BY_SESSION, env=no_titles) as server:
        new = Master(server)
        processes = [str(new.pid), *Path(f"/proc/{new.pid}/task/{new.pid}/children").read_text().split()]
        assert len(processes) >= 4
        for pid in processes:
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            (value,) = [v.partition("=")[2] for v in variables if v.startswith("GUNICORN_STICKY_MASTER=")]
            _version, fds, memory = json.loads(value)
            assert all(isinstance(fd, int) for fd in (*fds, memory))
            assert not any("gunicorn-sticky-upgrade" in name for name in descriptors(int(pid)))
        new.end()


def test_what_led_to_masters_that_are_gone_is_closed():
    """In the master and in its dispatcher, however many there have been."""
    with serving(*BY_SESSION) as server:

        def sockets() -> list[int]:
            """Return how many sockets the server's master and its dispatcher have."""
            with contextlib.suppress(OSError):  # one of them has just ended
                server.pid = int((server.folder / "pid").read_text())
                processes = [server.pid, *server.alive("dispatcher")]
                return [sum(name.startswith("socket:") for name in descriptors(pid)) for pid in processes]
            return []

        (dispatcher,) = server.alive("dispatcher")
        wait_for(lambda: stat(str(dispatcher))[0] == "S", "the dispatcher to have closed what it has passed on")
        at_first = sockets()
        assert len(at_first) == 2
        new = Master(server)
        server.send_signal(signal.SIGQUIT)
        new.be_promoted()
        wait_for(lambda: sockets() == at_first, "what led to the old master to be closed")
        Master(server).end()
        wait_for(lambda: sockets() == at_first, "what led to the new master to be closed")
        new.end()


def test_the_new_master_goes_on_while_nobody_has_waited_for_the_old_one():
    """Then the pid in its file is still in use, but not by it."""
    with serving("whoami:app") as server:
        new = Master(server)
        os.kill(server.pid, signal.SIGKILL)
        new.be_promoted()
        assert pids(server) == new.workers
        new.end()


def test_upgrades_one_after_the_other():
    with serving(*BY_SESSION) as server:
        master = server.pid
        for _ in range(2):
            old = [ask(server, client, "/new") for client in CLIENTS]
            new = Master(server, master)
            sessions = [ask(server, client, "/new") for client in CLIENTS]
            assert {session["pid"] for session in sessions} == new.workers
            assert all(use(server, session)["pid"] == session["pid"] for session in (*old, *sessions))
            os.kill(master, signal.SIGTERM)
            if master == server.pid:
                server.process.wait(30)
            new.be_promoted()
            assert all(use(server, session)["pid"] == session["pid"] for session in sessions)
            assert all(use(server, session)["count"] is None for session in old)
            master = new.pid
        new.end()


def test_sessions_of_the_old_workers_reach_them_also_when_the_old_master_is_back():
    with serving(*BY_SESSION) as server:
        sessions = [ask(server, client, "/new") for client in CLIENTS]
        new = Master(server)
        assert [use(server, session)["count"] for session in sessions] == [1] * len(sessions)
        new.end(signal.SIGKILL)
        assert [use(server, session)["count"] for session in sessions] == [2] * len(sessions)
        again = Master(server)
        assert pids(server) == again.workers
        again.end()


def test_sessions_of_both_masters_on_one_kept_alive_connection():
    """Whichever worker has the connection, of the old master or of the new one."""
    with serving("--keep-alive", "60", *BY_SESSION) as server:
        old = ask(server, CLIENTS[0], "/new")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

        def on_it(path: str) -> dict[str, Any]:
            connection.request("GET", path)
            return dict(json.loads(connection.getresponse().read()))

        assert on_it(f"/use?session_id={old['id']}")["pid"] == old["pid"]
        new = Master(server)
        assert on_it(f"/use?session_id={old['id']}")["pid"] == old["pid"]
        young = on_it("/new")
        assert young["pid"] in new.workers
        for session in (old, young, young, old, young):
            answer = on_it(f"/use?session_id={session['id']}")
            assert (answer["pid"], answer["count"] is not None) == (session["pid"], True)
        connection.close()
        new.end()


def test_the_control_socket_belongs_to_the_old_master_and_then_to_the_new_one():
    with serving("whoami:app", control_socket=True) as server:
        server.wait_for_log("Control socket listening")

        def master() -> int:
            return int(control(server, "show stats")["pid"])

        assert master() == server.pid
        gone = Master(server)
        assert master() == server.pid
        gone.end()
        assert master() == server.pid
        new = Master(server)
        server.stop()
        wait_for(lambda: master() == new.pid, "the new master's control socket")
        new.end()


def test_an_idle_connection_leads_to_the_master_in_charge():
    """Its next request does, by the new number of slots; and back, when the old master is the only one again."""
    options = (*STICKY, "--keep-alive", "60", "--graceful-timeout", "60", "--pid", "pid")
    with Server(*options, "whoami:app", config="workers = 2") as server:
        connections = [
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=30, source_address=(client, 0))
            for client in CLIENTS
        ]

        def where() -> list[int]:
            for connection in connections:
                connection.request("GET", "/")
            return [json.loads(connection.getresponse().read())["pid"] for connection in connections]

        def fresh() -> list[int]:
            return [ask(server, client)["pid"] for client in CLIENTS]

        wait_for(lambda: len(set(fresh())) == 2, "both workers")
        old = fresh()
        assert where() == old
        server.configure("workers = 3")
        new = Master(server)
        assert set(where()) == new.workers
        assert where() == fresh()
        os.kill(new.pid, signal.SIGTERM)
        wait_for(lambda: where() == old, "the old master's workers")
        assert fresh() == old
        for connection in connections:
            connection.close()


def test_an_upgrade_needs_open_files():
    """With too few, which the start does not need, the old master says so and goes on."""
    command = ["sh", "-c", 'ulimit -n 90 && exec "$0" "$@"', str(BIN / "gunicorn")]
    with Server(*STICKY, "-w", "4", "--pid", "pid", *BY_SESSION, command=command) as server:
        server.wait_for_log(r"Slot \d: ready", count=4)
        session = ask(server, CLIENTS[0], "/new")
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log(r"USR2 signal ignored: two masters need \d+ open files each, .* 90 \(setting: ulimit -n\)")
        assert use(server, session)["count"] == 1
        assert server.alive("worker") == server.booted("worker")
        assert not (server.folder / "pid.2").exists()
        assert server.stop() == 0
