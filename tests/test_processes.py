"""Signals, crashes and reloads: no connection that no worker has taken is lost, and no client moves without need."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import pwd
import re
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.harness import BIN, PATIENCE, STICKY, Server, addresses, descriptors, request, wait_for

CLIENTS = addresses(24)


def slots(server: Server, clients: list[str] = CLIENTS) -> dict[str, int]:
    return {client: server.who(source=client)["slot"] for client in clients}


@contextlib.contextmanager
def load(server: Server) -> Iterator[list[str]]:
    """Let clients send requests all the time, and fail if one of them fails or moves to another slot."""
    done, wrong, answered = threading.Event(), [], []
    before = slots(server)

    def run(clients: list[str]) -> None:
        for client in itertools.cycle(clients):
            if done.wait(0.015):  # some 200 requests a second, so that the server has time for what is tested
                return
            try:
                who = server.who(source=client)
            except Exception as error:
                wrong.append(f"{client}: {error!r}")
            else:
                answered.append(client)
                if who["slot"] != before[client]:
                    wrong.append(f"{client} moved from {before[client]} to {who['slot']}")

    threads = [threading.Thread(target=run, args=[CLIENTS[n::3]]) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
        count = len(answered)
        wait_for(lambda: wrong or len(answered) > count + 30, "requests after the event")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


# --- what dies is replaced ---


def test_a_killed_worker_is_replaced_in_its_slot():
    with Server(*STICKY, "-w", "4", "whoami:app") as server:
        before = {client: server.who(source=client) for client in CLIENTS}
        victim = before[CLIENTS[0]]
        os.kill(victim["pid"], signal.SIGKILL)
        # Nobody waits for the new worker: what comes in between stays in the channel.
        after = {client: server.who(source=client) for client in CLIENTS}
        for client, who in before.items():
            assert after[client]["slot"] == who["slot"]
            assert (after[client]["pid"] == who["pid"]) == (who["slot"] != victim["slot"])


def test_connections_sent_to_a_dying_worker_are_served_by_its_successor():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        where = slots(server)
        victim = server.who(source=CLIENTS[0])
        mine = [client for client in CLIENTS if where[client] == victim["slot"]]
        os.kill(victim["pid"], signal.SIGSTOP)
        answers: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda c=client: answers.append(server.who(source=c))) for client in mine * 3
        ]
        for thread in threads:
            thread.start()
        # Another slot's client is not kept waiting by them, and by then they have all been dispatched.
        other = next(client for client in CLIENTS if where[client] != victim["slot"])
        assert server.who(source=other)["slot"] == where[other]
        os.kill(victim["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert len(answers) == len(threads)
        assert {who["slot"] for who in answers} == {victim["slot"]}
        assert victim["pid"] not in {who["pid"] for who in answers}


def queue(server: Server, worker: int, source: str, other: str, paths: Sequence[str]) -> list[socket.socket]:
    """Stop a worker, and let requests on connections of their own wait for it; `other` is another worker's client."""
    stat = Path(f"/proc/{worker}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the worker to wait for connections")
    os.kill(worker, signal.SIGSTOP)
    clients = []
    for path in paths:
        clients.append(socket.create_connection(("127.0.0.1", server.port), 30, source_address=(source, 0)))
        clients[-1].sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert server.get(source=other).status == 200  # accepted last, so all the others have been dispatched
    return clients


def test_a_worker_takes_no_connection_before_it_can_serve_it():
    config = """
import os, signal

def pre_request(worker, request):
    if request.path == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    with Server(*STICKY, "-w", "2", "whoami:app", config=config) as server:
        where = slots(server)
        mine, other = CLIENTS[0], next(client for client in CLIENTS if where[client] != where[CLIENTS[0]])
        victim = server.who(source=mine)["pid"]
        clients = queue(server, victim, mine, other, ["/die", *["/"] * 20])
        os.kill(victim, signal.SIGCONT)
        assert clients[0].recv(1) == b""
        for client in clients[1:]:
            response = http.client.HTTPResponse(client)
            response.begin()
            assert response.status == 200
            assert json.loads(response.read())["pid"] in {*server.alive("worker")} - {victim}
        for client in clients:
            client.close()


def test_connections_that_are_served_in_a_row_share_no_context():
    with Server(*STICKY, "-w", "2", "contexts:app") as server:
        where = {client: int(server.get(source=client).body.split()[0]) for client in CLIENTS}
        mine, other = CLIENTS[0], next(client for client in CLIENTS if where[client] != where[CLIENTS[0]])
        clients = queue(server, where[mine], mine, other, ["/"] * 20)
        os.kill(where[mine], signal.SIGCONT)
        answers = [client.makefile("rb").read().splitlines()[-1].split() for client in clients]
        assert {int(pid) for pid, _served, _left in answers} == {where[mine]}
        assert max(int(served) for _pid, served, _left in answers) > 1  # in a row
        assert {left for _pid, _served, left in answers} == {b"nothing"}
        for client in clients:
            client.close()


def test_what_a_killed_dispatcher_has_not_accepted_is_served_by_its_successor():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        where = slots(server)
        for round_ in range(3):
            dispatcher = server.booted("dispatcher")[-1]
            os.kill(dispatcher, signal.SIGSTOP)
            waiting = {client: open_clients(server, client, 3) for client in CLIENTS}
            os.kill(dispatcher, signal.SIGKILL)
            for client, connections in waiting.items():
                for connection in connections:
                    answer = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023
                    connection.close()
                    assert json.loads(answer.partition(b"\r\n\r\n")[2])["slot"] == where[client]
            server.wait_for_log("Booting dispatcher", count=round_ + 2)
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert server.log.count("has died") == 3
        assert len(server.booted("worker")) == 2


def test_a_hung_dispatcher_is_replaced():
    with Server(*STICKY, "-w", "1", "--timeout", "2", "whoami:app") as server:
        slots(server)
        os.kill(server.booted("dispatcher")[-1], signal.SIGSTOP)
        assert server.who()
        server.wait_for_log("DISPATCHER TIMEOUT")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTERM])
def test_a_hung_dispatcher_is_killed_also_when_it_is_to_drain(number: int):
    options = ("--timeout", "3", "--graceful-timeout", "120", "--sticky-proxy")
    with Server(*STICKY, "-w", "1", *options, "whoami:app") as server:
        server.who(headers={"X-Forwarded-For": CLIENTS[0]})
        hung = server.booted("dispatcher")[-1]
        before = set(descriptors(hung))  # and then a client, whose head is not complete
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            wait_for(lambda: set(descriptors(hung)) - before, "the dispatcher to have it")
            os.kill(hung, signal.SIGSTOP)
            server.send_signal(number)
            server.wait_for_log(rf"DISPATCHER TIMEOUT \(pid:{hung}\)")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        wait_for(lambda: hung not in server.alive("dispatcher"), "its end")
        assert server.log.count("DISPATCHER TIMEOUT") == 1
        assert server.stop() == 0


@pytest.mark.parametrize("timeout", ["2", "0"])
def test_a_dispatcher_that_has_never_shown_life_is_replaced(timeout: str):
    config = """
import os, signal
from gunicorn_sticky.arbiter import arbiter
from gunicorn_sticky.dispatcher import process as dispatcher
arbiter.HUNG = 2.0
run = dispatcher.run

def stop_first(*args):
    if not os.path.exists("stopped"):
        open("stopped", "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    run(*args)

dispatcher.run = stop_first
"""
    with Server(*STICKY, "-w", "1", "--timeout", timeout, "whoami:app", config=config) as server:
        server.wait_for_log("DISPATCHER TIMEOUT")
        assert server.who()


def test_everything_ends_with_a_killed_master():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        slots(server)
        port, processes = server.port, [*server.booted("worker"), *server.booted("dispatcher")]
        server.send_signal(signal.SIGKILL)
        server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes to end")
        socket.create_server(("127.0.0.1", port)).close()


# --- reloads and recycling ---


def test_reload_loses_nothing():
    with Server(*STICKY, "-w", "2", "whoami:app") as server, load(server):
        for round_ in range(3):
            old = set(server.alive("worker"))
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("Booting dispatcher", count=round_ + 2)
            wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")  # noqa: B023
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "the old dispatcher to end")
        assert len(server.alive("worker")) == 2


def test_a_worker_that_boots_during_a_reload_gives_way_to_the_newer_one():
    config = """
import os
from waiting import wait_until

def post_fork(server, worker):
    if os.path.exists("slow"):
        os.unlink("slow")
        wait_until(lambda: os.path.exists("go"))
"""
    with Server(*STICKY, "-w", "2", "whoami:app", config=config) as server:
        slots(server)
        (server.folder / "slow").touch()
        os.kill(server.booted("worker")[0], signal.SIGKILL)
        server.wait_for_log("Booting worker", count=3)
        wait_for(lambda: not (server.folder / "slow").exists(), "the slow one to boot")
        slow = server.booted("worker")[2]
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Booting worker", count=5)

        def serving() -> set[int]:
            return {server.who(source=client)["pid"] for client in CLIENTS}

        wait_for(lambda: serving() == set(server.booted("worker")[3:]), "the new workers")
        (server.folder / "go").touch()
        server.wait_for_log(rf"Worker exiting \(pid: {slow}\)")
        assert serving() == set(server.booted("worker")[3:])


def test_reload_with_another_number_of_workers():
    config = "workers = {}"
    with Server(*STICKY, "whoami:app", config=config.format(2)) as server:
        assert set(slots(server).values()) == {0, 1}
        for count in (4, 3):
            server.configure(config.format(count))
            dispatchers = len(server.booted("dispatcher"))
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("Booting dispatcher", count=dispatchers + 1)
            wait_for(lambda: len(server.alive("worker")) == count, f"{count} workers")  # noqa: B023
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
            assert set(slots(server).values()) == set(range(count))


def test_reload_with_another_address():
    with Server(*STICKY, "-w", "1", "whoami:app", bind=None, config="bind = '127.0.0.1:0'") as server:
        old = server.port
        slots(server)
        server.configure("bind = ['127.0.0.1:0', '127.0.0.2:0']")
        server.send_signal(signal.SIGHUP)
        new = server.wait_for_log(r"Listening at: http://127\.0\.0\.1:(\d+),http://127\.0\.0\.2:(\d+)$")
        assert int(new.group(1)) != old
        assert request(int(new.group(1))).status == 200
        assert request(int(new.group(2)), host="127.0.0.2").status == 200

        def closed() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", old)) != 0

        wait_for(closed, "the old listener to close")


def test_ttin_and_ttou_move_few_clients():
    clients = addresses(120)
    with Server(*STICKY, "-w", "3", "whoami:app") as server:
        before = slots(server, clients)
        server.send_signal(signal.SIGTTIN)
        server.wait_for_log("Booting dispatcher", count=2)
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "the old dispatcher to end")
        more = slots(server, clients)
        moved = [client for client in clients if more[client] != before[client]]
        assert moved
        assert {more[client] for client in moved} == {3}
        kept = set(server.alive("worker")[:3])
        server.send_signal(signal.SIGTTOU)
        server.wait_for_log("Booting dispatcher", count=3)
        wait_for(lambda: len(server.alive("worker")) == 3, "three workers")
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert slots(server, clients) == before
        assert set(server.alive("worker")) == kept  # the worker of the highest slot went, not the oldest one


def test_workers_added_and_removed_in_quick_succession():
    """Each dispatcher is told to drain while it starts."""
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        before = slots(server)
        for number in (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU) * 3:
            handled = server.log.count("Handling signal")
            server.send_signal(number)
            wait_for(lambda: server.log.count("Handling signal") > handled, "the signal to be handled")  # noqa: B023
        server.wait_for_log("Booting dispatcher", count=13)  # the last one's signal is logged before it is handled
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        wait_for(lambda: len(server.alive("worker")) == 2, "two workers")
        assert slots(server) == before
        assert "Traceback" not in server.log


def test_ttou_routes_anew_what_the_removed_slot_has_not_taken():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        where = slots(server)
        stopped = next(client for client in CLIENTS if where[client] == 1)
        victim = server.who(source=stopped)["pid"]
        os.kill(victim, signal.SIGSTOP)
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(server.who(source=stopped)))
        thread.start()
        other = next(client for client in CLIENTS if where[client] == 0)
        assert server.who(source=other)  # by now the dispatcher has passed the other one on
        server.send_signal(signal.SIGTTOU)
        thread.join(30)
        assert answers[0]["slot"] == 0
        os.kill(victim, signal.SIGKILL)


def test_max_requests_replaces_a_worker_while_it_drains():
    with Server(*STICKY, "-w", "2", "--max-requests", "30", "whoami:app") as server:
        where = slots(server)
        client = CLIENTS[0]
        held: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: held.append(server.who(source=client, path="/hold")))
        thread.start()
        server.wait_for_log("^held")
        old = server.who(source=client)["pid"]
        new = wait_for(
            lambda: next((p for p in [server.who(source=client)["pid"]] if p != old), None),
            "another worker, while the old one still serves a request",
        )
        assert {old, new} <= set(server.alive("worker"))
        assert slots(server) == where
        (server.folder / "release").touch()
        thread.join()
        assert held[0]["pid"] == old
        server.wait_for_log(rf"Worker exiting \(pid: {old}\)")


def test_max_requests_under_load_loses_nothing():
    with Server(*STICKY, "-w", "2", "--max-requests", "40", "whoami:app") as server, load(server):
        server.wait_for_log("Autorestarting", count=4)


def test_upgrade_of_the_master_keeps_every_client_in_its_slot():
    with Server(*STICKY, "-w", "4", "--pid", "pid", "whoami:app") as server:
        where = slots(server)
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log("Booting dispatcher", count=2)
        new = int(wait_for(lambda: (server.folder / "pid.2").exists() and (server.folder / "pid.2").read_text(), "pid"))
        server.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert slots(server) == where
        assert "GUNICORN_STICKY_SECRET" not in Path(f"/proc/{new}/cmdline").read_text()
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{new}").exists(), "the new master to end")


def test_code_reload():
    options = ("--reload", "--reload-engine", "poll")
    with Server(*STICKY, "-w", "2", *options, "--reload-extra-file", "gunicorn.conf.py", "whoami:app") as server:
        before = slots(server)
        old = set(server.alive("worker"))
        os.utime(server.config)
        wait_for(lambda: len(set(server.alive("worker")) - old) == 2, "new workers")
        assert slots(server) == before


def test_preloaded_application_that_patches_the_standard_library():
    with Server(*STICKY, "-w", "2", "--preload", "patched:app") as server:
        assert set(slots(server).values()) == {0, 1}
        dispatcher = server.booted("dispatcher")[0]
        before = len(descriptors(dispatcher))
        slots(server)
        wait_for(lambda: len(descriptors(dispatcher)) <= before, "the dispatcher to close what it has passed on")


@pytest.mark.parametrize("where", ["configuration", "application"])
def test_who_dies_is_noticed_when_gevent_has_patched_the_master(where: str):
    """Also who dies at the end of a reload: else the server would wait for it when it stops."""
    config = "from gevent import monkey\nmonkey.patch_all()" if where == "configuration" else ""
    application = ["whoami:app"] if where == "configuration" else ["--preload", "patched:app"]
    options = ("-w", "2", "--graceful-timeout", "120")
    with Server(*STICKY, *options, *application, config=config) as server:
        for kind in ("worker", "dispatcher"):
            pid = wait_for(lambda: server.alive(kind), kind)[-1]  # noqa: B023
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: server.booted(kind)[-1] != pid, "another one")  # noqa: B023
            slots(server)
        for _ in range(2):
            workers, dispatchers = set(server.alive("worker")), set(server.alive("dispatcher"))
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: len(set(server.alive("worker")) - workers) == 2, "new workers")  # noqa: B023
            wait_for(lambda: len(set(server.alive("dispatcher")) - dispatchers) == 1, "a new dispatcher")  # noqa: B023
            wait_for(lambda: len(server.children()) == 3, "the old ones to end")
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop(number: int):
    with Server(*STICKY, "-w", "1", "--graceful-timeout", "120", "whoami:app") as server:
        slots(server)
        processes = [*server.booted("worker"), *server.booted("dispatcher")]
        assert server.stop(number) == 0
        # A dispatcher that has been killed in the end may take a moment longer than the master.
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes to end")


def test_term_while_the_workers_boot():
    for _ in range(3):
        with Server(*STICKY, "-w", "4", "--graceful-timeout", "120", "whoami:app") as server:
            server.wait_for_log("Booting dispatcher")
            assert server.stop() == 0


# --- who may do what ---


def test_only_arbiter_and_dispatcher_have_the_listener():
    with Server(*STICKY, "-w", "3", "whoami:app") as server:
        slots(server)
        listening = {
            f"socket:[{line.split()[9]}]"
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        }
        assert set(descriptors(server.pid)) & listening
        assert set(descriptors(server.booted("dispatcher")[0])) & listening
        for worker in server.booted("worker"):
            assert not set(descriptors(worker)) & listening

            def sockets() -> int:
                return sum(link.startswith("socket:") for link in descriptors(worker))  # noqa: B023

            # Its inbox and the way back; a client's connection may take a moment to close.
            wait_for(lambda: sockets() == 2, "connections to close")


def test_the_dispatcher_gives_up_privileges():
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    # The workers keep theirs, because the Python that runs the tests may be one that only its owner can read.
    config = "def post_fork(server, worker):\n    worker.cfg.set('user', None)\n    worker.cfg.set('group', None)"
    owner = ("--user", entry.pw_name, "--group", str(entry.pw_gid))
    with Server(*STICKY, "-w", "1", *owner, "whoami:app", config=config) as server:
        slots(server)
        status = Path(f"/proc/{server.booted('dispatcher')[0]}/status").read_text()
        assert "Uid:" + f"\t{entry.pw_uid}" * 4 in status
        assert "Gid:" + f"\t{entry.pw_gid}" * 4 in status
        assert f"Uid:\t{os.geteuid()}\t" in Path(f"/proc/{server.pid}/status").read_text()


@pytest.mark.parametrize(
    ("config", "dispatcher", "others"),
    [
        ("", os.SCHED_BATCH, os.SCHED_OTHER),
        ("import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))", os.SCHED_IDLE, os.SCHED_IDLE),
    ],
    ids=["default", "chosen"],
)
def test_the_dispatcher_interrupts_nobody_unless_its_policy_has_been_chosen(config: str, dispatcher: int, others: int):
    with Server(*STICKY, "-w", "1", "whoami:app", config=config) as server:
        assert os.sched_getscheduler(server.who()["pid"]) == others
        assert os.sched_getscheduler(server.pid) == others
        assert os.sched_getscheduler(*server.alive("dispatcher")) == dispatcher


def test_logs_are_reopened_in_the_dispatcher():
    with Server(*STICKY, "-w", "1", "--sticky-proxy", "--error-logfile", "error.log", "whoami:app") as server:
        log = server.folder / "error.log"
        wait_for(lambda: log.exists() and "Slot 0: ready" in log.read_text(), "the worker")
        port = int(re.findall(r"Listening at: http://127.0.0.1:(\d+) ", log.read_text())[0])
        wait_for(lambda: request(port, headers={"X-Forwarded-For": "1"}).status == 200, "an answer")
        log.rename(server.folder / "old.log")
        server.send_signal(signal.SIGUSR1)
        wait_for(lambda: (request(port), log.exists() and "Refused" in log.read_text())[1], "the line in the new file")


def test_systemd_socket_activation():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        script = f"""import os, sys
os.dup2({fd}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[1], sys.argv[1:])"""
        command = [sys.executable, "-c", script, str(BIN / "gunicorn")]
        with Server(*STICKY, "-w", "1", "whoami:app", command=command, bind=None, pass_fds=[fd]) as server:
            assert request(listener.getsockname()[1]).status == 200
            assert "Booting dispatcher" in server.log


def test_nothing_leaks_over_reloads():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        slots(server)
        at_first = len(descriptors(server.pid))
        for round_ in range(3):
            slots(server)
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("Booting dispatcher", count=round_ + 2)
            wait_for(lambda: len(server.alive("worker")) == 2, "two workers")
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
            wait_for(lambda: len(descriptors(server.pid)) <= at_first, "the arbiter's descriptors")


# --- what is full ---


def open_clients(server: Server, client: str, count: int) -> list[socket.socket]:
    found = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30, source_address=(client, 0))
        connection.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        found.append(connection)
    return found


@pytest.mark.features
def test_a_worker_that_stands_still_keeps_its_clients_and_no_others():
    with Server(*STICKY, "-w", "2", "--timeout", "60", "whoami:app") as server:
        where = slots(server)
        victim = server.who(source=CLIENTS[0])
        other = next(client for client in CLIENTS if where[client] != victim["slot"])
        os.kill(victim["pid"], signal.SIGSTOP)
        waiting = open_clients(server, CLIENTS[0], 700)  # more than a channel holds
        assert server.who(source=other)["slot"] == where[other]
        os.kill(victim["pid"], signal.SIGCONT)
        answers = [connection.recv(20) for connection in waiting]
        assert answers == [b"HTTP/1.1 200 OK\r\nSer"] * 700
        for connection in waiting:
            connection.close()


@pytest.mark.features
def test_more_than_may_wait_is_refused_with_503():
    with Server(*STICKY, "-w", "2", "--backlog", "64", "--timeout", "60", "whoami:app") as server:
        slots(server)
        victim = server.who(source=CLIENTS[0])
        os.kill(victim["pid"], signal.SIGSTOP)
        waiting = open_clients(server, CLIENTS[0], 600)
        server.wait_for_log(r"Refused a connection from .*: 503, .*worker_connections")
        os.kill(victim["pid"], signal.SIGCONT)
        answers = [connection.recv(12) for connection in waiting]
        assert set(answers) == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        assert answers.index(b"HTTP/1.1 503") > 64
        for connection in waiting:
            connection.close()


@pytest.mark.features
def test_what_waits_too_long_is_refused_with_503():
    options = ("--timeout", "5", "--worker-connections", "1")
    with Server(*STICKY, "-w", "1", *options, "whoami:app") as server:
        client = CLIENTS[0]
        thread = threading.Thread(target=lambda: server.who(source=client, path="/hold"))
        thread.start()
        server.wait_for_log("^held")  # or those that come before it do not wait
        waiting = open_clients(server, client, 500)
        server.wait_for_log(r"Refused a connection from .*: 503, .* \(setting: workers or worker_connections\)")
        (server.folder / "release").touch()
        thread.join()
        assert {connection.recv(12) for connection in waiting} == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        for connection in waiting:
            connection.close()


@pytest.mark.features
def test_a_slot_whose_workers_die_is_refused_with_503():
    config = """
import os

def post_worker_init(worker):
    if os.path.exists("broken"):
        os._exit(9)
"""
    with Server(*STICKY, "-w", "1", "--timeout", "2", "whoami:app", config=config) as server:
        victim = server.who(source=CLIENTS[0])
        (server.folder / "broken").touch()
        os.kill(victim["pid"], signal.SIGKILL)
        response = server.get(source=CLIENTS[0])
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert "there has been no worker for this client for 2 s" in response.body.decode()
        server.wait_for_log(rf"Refused a connection from {CLIENTS[0]}: 503, there has .* 2 s \(setting: timeout\)")
        (server.folder / "broken").unlink()
        wait_for(lambda: server.get(source=CLIENTS[0]).status == 200, "the slot to have a worker again")


@pytest.mark.features
def test_who_waits_for_a_worker_that_boots_waits_for_as_long_as_that_takes():
    config = """
import os
from waiting import wait_until

def post_worker_init(worker):
    wait_until(lambda: not os.path.exists("hold"))
"""
    with Server(*STICKY, "-w", "1", "--timeout", "2", "whoami:app", config=config) as server:
        victim = server.who(source=CLIENTS[0])
        (server.folder / "hold").touch()
        os.kill(victim["pid"], signal.SIGKILL)
        waiting = open_clients(server, CLIENTS[0], 500)  # more than the channel takes
        assert not select.select(waiting, [], [], 5)[0]
        (server.folder / "hold").unlink()
        assert {connection.recv(12) for connection in waiting} == {b"HTTP/1.1 200"}
        for connection in waiting:
            connection.close()


@pytest.mark.features
def test_how_long_a_slot_may_stand_still():
    """As long as Gunicorn's timeout, where 0 is no limit."""
    config = """
timeout = 0
from gunicorn_sticky.dispatcher import process as dispatcher
run = dispatcher.run

def tell(plan, log, heartbeat):
    log.info("patience: %s", plan.slot_timeout)
    run(plan, log, heartbeat)

dispatcher.run = tell
"""
    with Server(*STICKY, "-w", "1", "whoami:app", config=config) as server:
        server.wait_for_log("patience: inf$")
        server.configure(config.replace("timeout = 0", "timeout = 7"))
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("patience: 7$")


def limited(count: int) -> list[str]:
    """Return a command that runs gunicorn with a limit on open files."""
    return ["sh", "-c", f'ulimit -n {count}; exec "$0" "$@"', str(BIN / "gunicorn")]


@pytest.mark.features
def test_a_dispatcher_without_free_descriptors_drops_the_slowest():
    with Server(*STICKY, "-w", "1", "--sticky-proxy", "whoami:app", command=limited(100)) as server:
        slow = []
        for sent, answer in ((b"", b""), (b"G", b"HTTP/1.1 503")):
            for _ in range(200):
                slow.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                slow[-1].sendall(sent)
            assert server.who(headers={"X-Forwarded-For": "1.2.3.4"})["key"] == "1.2.3.4"
            assert slow[-200].recv(12) == answer
        server.wait_for_log(r"too many connections .*ulimit -n")
        for connection in slow:
            connection.close()


@pytest.mark.features
def test_no_more_workers_than_there_are_descriptors_for():
    with Server(*STICKY, "-w", "2", "whoami:app", command=limited(42)) as server:
        assert set(slots(server).values()) == {0, 1}
        server.send_signal(signal.SIGTTIN)
        server.wait_for_log(r"Number of workers stays 2: workers = 3 needs .* open files.*ulimit -n")
        assert set(slots(server).values()) == {0, 1}


@pytest.mark.features
def test_workers_that_cannot_boot_end_the_server_as_gunicorn_does():
    config = "def post_worker_init(worker):\n    raise RuntimeError('all of them')"
    options = ("--graceful-timeout", "120", "--pid", "pid")
    with Server(*STICKY, "-w", "4", *options, "whoami:app", config=config) as server:
        assert server.process.wait(PATIENCE) == 3  # less than graceful_timeout
        assert "Reason: Worker failed to boot." in server.log
        assert not (server.folder / "pid").exists()


@pytest.mark.features
def test_a_dispatcher_without_free_descriptors_drops_who_has_been_answered():
    """Refused clients that do not close would keep the others waiting for seconds."""
    with Server(*STICKY, "-w", "1", "--sticky-proxy", "whoami:app", command=limited(100)) as server:
        refused = []
        for _ in range(200):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            refused.append(client)
        assert server.who(headers={"X-Forwarded-For": "1.2.3.4"})["key"] == "1.2.3.4"
        assert "cannot accept" not in server.log
        for client in refused:
            client.close()


@pytest.mark.features
def test_a_worker_without_free_descriptors_loses_no_connection():
    with Server(*STICKY, "-w", "1", "whoami:app", command=limited(64)) as server:
        server.who()
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(100)]
        server.wait_for_log("Too many open files")
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * 100
        for client in clients:
            client.close()
