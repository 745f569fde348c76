"""The control socket: every command of `gunicornc` does what it says, and leaves the clients where they belong."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest
from support.gunicornc import control, gunicornc, order
from support.harness import PATIENCE, STICKY, Server, addresses, request, wait_for

from gunicorn_sticky.status.snapshot import find

pytestmark = [pytest.mark.features, pytest.mark.xdist_group("control_socket")]

CLIENTS = addresses(12)


def ready(server: Server, workers: int, dispatchers: int) -> None:
    server.wait_for_log("Booting dispatcher", count=dispatchers)
    wait_for(lambda: len(server.alive("worker")) == workers, f"{workers} workers")
    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")


@pytest.fixture(scope="module")
def quiet():
    """A server for commands that only look."""
    mode = ("--control-socket-mode", "0640")
    with Server(*STICKY, "-w", "2", *mode, "whoami:app", control_socket=True) as server:
        server.slots(CLIENTS)
        yield server


def test_show_workers(quiet: Server):
    shown = control(quiet, "show workers")
    assert shown["count"] == 2
    assert {worker["pid"] for worker in shown["workers"]} == set(quiet.alive("worker"))
    assert [worker["age"] for worker in shown["workers"]] == [1, 2]
    assert all(worker["last_heartbeat"] < 30 for worker in shown["workers"])


def test_show_all(quiet: Server):
    shown = control(quiet, "show all")
    assert shown["arbiter"]["pid"] == quiet.pid
    assert {worker["pid"] for worker in shown["web_workers"]} == set(quiet.alive("worker"))


def test_show_stats(quiet: Server):
    shown = control(quiet, "show stats")
    assert (shown["pid"], shown["workers_current"], shown["workers_target"]) == (quiet.pid, 2, 2)
    assert (shown["workers_spawned"], shown["reloads"]) == (2, 0)


# --- what we add ---


def stable(shown: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may be another one each time."""
    changing = ("age", "connections", "cpu_seconds", "memory_bytes")
    return {name: value for name, value in shown.items() if name not in changing}


def test_workers_are_shown_with_their_slots(quiet: Server):
    slots = {who["pid"]: who["slot"] for who in (quiet.who(source=client) for client in CLIENTS)}
    for command, name in (("show workers", "workers"), ("show all", "web_workers")):
        shown = control(quiet, command)[name]
        assert {worker["pid"]: worker["slot"] for worker in shown} == slots
        assert [worker["state"] for worker in shown] == ["ready", "ready"]
        assert all(worker["memory_bytes"] > 1 << 20 for worker in shown)


def test_the_dispatcher_is_shown_beside_the_workers(quiet: Server):
    shown = control(quiet, "show all")
    assert [shown["dispatcher"]["pid"]] == quiet.alive("dispatcher")
    assert shown["dispatcher"]["accepted"] >= len(CLIENTS)


def test_stats_have_the_status(quiet: Server):
    shown = control(quiet, "show stats")["sticky"]
    (found,) = find(quiet.pid)
    expected = json.loads(json.dumps(found.status()))
    assert stable(shown["dispatcher"]) == stable(expected["dispatcher"])
    for slot, same in zip(shown["slots"], expected["slots"], strict=True):
        assert [stable(worker) for worker in slot.pop("workers")] == [stable(worker) for worker in same.pop("workers")]
        assert slot == same
    assert (shown["state"], shown["pid"]) == ("ok", quiet.pid)


@pytest.mark.parametrize("command", ["show workers", "show all", "show stats"])
def test_gunicornc_prints_its_own_columns(quiet: Server, command: str):
    """It knows nothing of what is added, and leaves that out."""
    done = gunicornc(quiet, "-c", command)
    assert done.returncode == 0
    assert str(quiet.pid if command == "show stats" else quiet.alive("worker")[0]) in done.stdout
    assert not re.search("slot|sticky|dispatcher|ready", done.stdout)


def test_the_answers_stay_when_workers_come_and_go():
    """The control server is stopped and started around each fork."""
    with Server(*STICKY, "-w", "1", "busy:app", control_socket=True) as server:
        server.wait_for_log("Slot 0: ready")
        order(server, "worker add 2")
        server.wait_for_log("Slot [12]: ready", 2)
        wait_for(lambda: control(server, "show stats")["sticky"]["state"] == "ok", "their dispatcher")
        assert [worker["slot"] for worker in control(server, "show workers")["workers"]] == [0, 1, 2]
        source = next(client for client in addresses(60) if server.who(source=client)["slot"] == 2)
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE, (source, 0)) as client:
            client.sendall(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for(lambda: control(server, "show workers")["workers"][2]["connections"] == 1, "its request")
            order(server, "worker remove")
            wait_for(
                lambda: (
                    [(worker["slot"], worker["state"]) for worker in control(server, "show workers")["workers"]]
                    == [(0, "ready"), (1, "ready"), (None, "draining")]
                ),
                "the worker of a slot that is no more",
            )
            (server.folder / "release").touch()
            assert client.recv(12) == b"HTTP/1.1 200"


def test_show_config(quiet: Server):
    shown = control(quiet, "show config")
    assert shown["workers"] == 2
    assert "GeventStickyWorker" in shown["worker_class"]


def test_show_listeners(quiet: Server):
    (listener,) = control(quiet, "show listeners")["listeners"]
    assert listener["address"] == f"http://127.0.0.1:{quiet.port}"
    assert listener["type"] == "tcp"


def test_show_dirty(quiet: Server):
    assert control(quiet, "show dirty")["enabled"] is False


def test_help(quiet: Server):
    assert "show workers" in json.dumps(control(quiet, "help"))


def test_a_command_that_there_is_not(quiet: Server):
    done = gunicornc(quiet, "-c", "sing")
    assert (done.returncode, "Unknown command" in done.stderr) == (1, True)


def test_interactive(quiet: Server):
    home = {"HOME": str(quiet.folder)}  # it writes its history there
    done = gunicornc(quiet, input="show workers\nquit\n", env=home)
    assert done.returncode == 0
    for worker in quiet.alive("worker"):
        assert str(worker) in done.stdout


def test_workers_are_added_and_removed():
    with Server(*STICKY, "-w", "2", "whoami:app", control_socket=True) as server:
        before = server.slots(CLIENTS)
        assert order(server, "worker add 2").get("total", 4) == 4
        ready(server, workers=4, dispatchers=2)
        assert {server.who(source=client)["slot"] for client in addresses(60)} == {0, 1, 2, 3}
        assert order(server, "worker remove 9").get("total", 1) == 1
        ready(server, workers=1, dispatchers=3)
        assert order(server, "worker add").get("total", 2) == 2
        ready(server, workers=2, dispatchers=4)
        assert server.slots(CLIENTS) == before
        assert control(server, "show stats")["workers_current"] == 2


def test_a_worker_is_ended_and_replaced_in_its_slot():
    with Server(*STICKY, "-w", "2", "whoami:app", control_socket=True) as server:
        before = server.slots(CLIENTS)
        victim = server.who(source=CLIENTS[0])
        assert order(server, f"worker kill {victim['pid']}").get("killed", victim["pid"]) == victim["pid"]
        wait_for(lambda: server.who(source=CLIENTS[0])["pid"] != victim["pid"], "the successor")
        wait_for(lambda: victim["pid"] not in server.children(), "the worker's end")
        assert server.slots(CLIENTS) == before
        assert len(server.booted("worker")) == 3
        # The dispatcher is no worker.
        (dispatcher,) = server.alive("dispatcher")
        assert control(server, f"worker kill {dispatcher}")["success"] is False


def test_reload():
    with Server(*STICKY, "-w", "2", "whoami:app", control_socket=True) as server:
        before = server.slots(CLIENTS)
        old = set(server.alive("worker"))
        assert order(server, "reload") in ({}, {"status": "reloading"})
        wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")
        ready(server, workers=2, dispatchers=2)
        assert server.slots(CLIENTS) == before
        assert control(server, "show stats")["reloads"] == 1


def test_reopen():
    logs = ("--error-logfile", "log", "--access-logfile", "access.log")
    with Server(*STICKY, "-w", "1", *logs, "whoami:app", control_socket=True) as server:
        port, access = server.port, server.folder / "access.log"
        request(port, "/one")
        wait_for(lambda: "/one" in access.read_text(), "the request in the log")
        access.rename(server.folder / "old.log")
        assert order(server, "reopen") == {"status": "reopening"}
        wait_for(lambda: (request(port, "/two"), access.exists() and "/two" in access.read_text())[1], "the new file")


@pytest.mark.parametrize(("command", "name"), [("shutdown", "term"), ("shutdown quick", "int")])
def test_shutdown(command: str, name: str):
    with Server(*STICKY, "-w", "1", "whoami:app", control_socket=True) as server:
        server.slots(CLIENTS)
        assert order(server, command) in ({}, {"status": "shutting_down", "mode": command[9:] or "graceful"})
        assert server.process.wait(PATIENCE) == 0
        assert f"Handling signal: {name}" in server.log
        wait_for(lambda: not server.session(), "all processes to end")  # a dispatcher that is killed in the end, too
        assert not (server.folder / "control").exists()


def test_mode_of_the_socket(quiet: Server):
    quiet.wait_for_log("Control socket listening")
    assert oct((quiet.folder / "control").stat().st_mode)[-3:] == "640"
