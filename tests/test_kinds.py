"""What each kind of worker keeps of the promises: which worker serves whom, what is told of it, and faults.

How connections move between workers is in test_handover.py, and what happens under load in test_faults*.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import websocket
from support.connections import Connection
from support.harness import PATIENCE, Server, addresses, request, wait_for
from support.kinds import KINDS, Kind
from support.status import status

pytestmark = pytest.mark.features

CLIENTS = addresses(24)
KEYS = {
    "ip": (),
    "header": ("--sticky-proxy",),
    "proxy": ("--proxy-protocol", "auto"),
    "session": ("--sticky-by", "session", "--sticky-session-keys", "query:session_id"),
    "cookie": ("--sticky-by", "cookie"),
}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def servers(kind: Kind) -> Iterator[Callable[[str], Server]]:
    """Return a function that returns a server by its key: it is started when it is first asked for."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(by: str) -> Server:
            if by not in started:
                app = kind.app("sessions" if by == "session" else "whoami")
                options = ("-w", "3", "--keep-alive", "30", "--sticky-slot-header")
                started[by] = stack.enter_context(Server(*kind.args, *KEYS[by], *options, app))
                started[by].wait_for_log(r"Slot \d: ready", count=3)
            return started[by]

        yield server


def ask(server: Server, by: str, client: str, **kwargs: Any) -> dict[str, Any]:
    """Send a request as a client that is known by its key, on a connection of its own."""
    if by == "header":
        kwargs["headers"] = {"X-Forwarded-For": client}
    elif by == "ip":
        kwargs["source"] = client
    elif by == "proxy":
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(f"PROXY TCP4 {client} 127.0.0.1 4711 80\r\n".encode())
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))
    response = server.get(**kwargs)
    assert response.status == 200, response
    who = dict(json.loads(response.body))
    assert response.headers["X-Sticky-Slot"] == str(who["slot"])
    return who


# --- who serves whom, and who is told ---


@pytest.mark.parametrize("by", ["ip", "header", "proxy"])
def test_each_client_has_its_worker(kind: Kind, servers: Callable[[str], Server], by: str):
    if by == "proxy" and not kind.has_all:
        with Server(*kind.args, *KEYS[by], kind.app("whoami")) as refused:
            assert refused.process.wait(PATIENCE) == 1
            assert "uvicorn has no proxy_protocol: remove it, or use ASGIStickyWorker" in refused.log
        return
    server = servers(by)
    first = {client: ask(server, by, client) for client in CLIENTS}
    assert {who["slot"] for who in first.values()} == {0, 1, 2}
    for client, who in first.items():
        again = ask(server, by, client)
        assert (again["pid"], again["slot"]) == (who["pid"], who["slot"])
        assert who["key"] == client
        assert who["environment_slot"] == str(who["slot"])


def test_each_session_has_its_worker(servers: Callable[[str], Server]):
    server = servers("session")
    sessions = [ask(server, "session", "", path="/new") for _ in range(12)]
    assert {session["slot"] for session in sessions} == {0, 1, 2}
    for count in (1, 2):
        for session in sessions:
            who = ask(server, "session", "", path=f"/use?session_id={session['id']}")
            assert (who["pid"], who["slot"], who["count"]) == (session["pid"], session["slot"], count)
            assert who["key"] != session["key"]  # that one was of no session yet


def test_each_browser_has_its_worker(servers: Callable[[str], Server]):
    server = servers("cookie")
    first = [server.get() for _ in range(12)]
    slots = [json.loads(response.body)["slot"] for response in first]
    assert set(slots) == {0, 1, 2}
    for response, slot in zip(first, slots, strict=True):
        cookie = response.headers["Set-Cookie"].partition(";")[0]
        again = server.get(headers={"Cookie": cookie})
        assert json.loads(again.body)["slot"] == slot
        assert "Set-Cookie" not in again.headers


def test_proxies_that_are_not_trusted_name_no_client(kind: Kind):
    options = ("--sticky-proxy", "--sticky-trusted-proxies", "127.0.0.1", "-w", "2", "--keep-alive", "30")
    with Server(*kind.args, *options, kind.app("whoami")) as server:
        for source, key in (("127.0.0.1", "203.0.113.1"), ("127.0.0.9", "127.0.0.9")):
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE, source_address=(source, 0))
            for _ in range(2):
                client.request("GET", "/", headers={"X-Forwarded-For": "203.0.113.1"})
                assert json.loads(client.getresponse().read())["key"] == key
            client.close()


def test_only_gevents_worker_loads_gevent(kind: Kind):
    with Server(*kind.args, "-w", "1", kind.app("modules")) as server:
        loaded = json.loads(server.get().body)
    assert "gunicorn_sticky.workers.core" in loaded
    assert [name for name in loaded if name.partition(".")[0] == "gevent" and kind.name != "gevent"] == []


# --- figures ---


def test_figures(kind: Kind):
    with Server(*kind.args, *KEYS["header"], "-w", "2", "--keep-alive", "30", kind.app("whoami")) as server:
        home = {client: ask_plainly(server, client)["slot"] for client in CLIENTS}
        here, there = (next(client for client in CLIENTS if home[client] == slot) for slot in (0, 1))
        connection = Connection(server.port)
        for key in [here, here, there, there, here] * 4:
            connection.socket.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {key}\r\n\r\n".encode())
            connection.answer()
        expected = {"requests": len(CLIENTS) + 20, "dispatched": len(CLIENTS) + 1, "handed_over": 8, "taken_over": 8}

        def figures(*names: str) -> dict[str, int]:
            slots = status(server)["slots"]
            return {name: sum(slot[name] for slot in slots) for name in names}

        wait_for(lambda: figures(*expected) == expected, f"{expected}, not {figures(*expected)}")
        wait_for(lambda: connections(server) == 1, "one connection")
        connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.socket.recv(13) == b"HTTP/1.1 400 "
        connection.close()
        wait_for(lambda: figures("refused") == {"refused": 1} and connections(server) == 0, "the end")


def connections(server: Server) -> int:
    return sum(worker["connections"] for slot in status(server)["slots"] for worker in slot["workers"])


def ask_plainly(server: Server, client: str) -> dict[str, Any]:
    return server.who(headers={"X-Forwarded-For": client})


# --- what is full, hangs, or dies ---


@contextlib.contextmanager
def answers(count: int, function: Callable[[int], Any]) -> Iterator[list[Any]]:
    """Do something in as many threads while the block runs, and have all results after it."""
    found: list[Any] = []
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, number) for number in range(count)]
        yield found
        found += [future.result() for future in futures]


def client_of(server: Server, slot: int) -> str:
    return next(client for client in CLIENTS if server.who(source=client)["slot"] == slot)


def waiting(server: Server) -> int:
    return sum(slot["waiting"] for slot in status(server)["slots"])


def test_a_full_worker_leaves_the_rest_in_its_channel(kind: Kind):
    """There, others see it; and nobody else waits."""
    with Server(*kind.args, *kind.limit(2), "-w", "2", kind.app("whoami")) as server:
        full, other = client_of(server, 0), client_of(server, 1)

        def hold(_number: int) -> Any:
            return server.who(path="/hold", source=full, timeout=60)

        # The two first: until its head arrives, a connection has no thread, and another one may be taken beside it.
        with answers(2, hold) as first, contextlib.ExitStack() as stack:
            server.wait_for_log("^held", count=2)
            others = stack.enter_context(answers(4, hold))
            wait_for(lambda: waiting(server) == 4, "four of six to wait")
            assert server.who(source=other)["slot"] == 1
            (server.folder / "release").touch()
        assert [who["slot"] for who in first + others] == [0] * 6
        wait_for(lambda: waiting(server) == 0, "nobody to wait")


@pytest.mark.parametrize("by", ["ip", "session"])
def test_term_serves_what_is_still_in_the_channel(kind: Kind, by: str):
    app = kind.app("sessions" if by == "session" else "whoami")
    with Server(*kind.args, *KEYS[by], "-w", "1", app) as server:
        server.wait_for_log("Slot 0: ready")
        path = "/"
        if by == "session":
            path = f"/use?session_id={json.loads(server.get('/new').body)['id']}"
        [worker] = server.alive("worker")
        os.kill(worker, signal.SIGSTOP)
        with answers(8, lambda _: server.get(path)) as found:
            wait_for(lambda: status(server)["dispatcher"]["accepted"] >= 9 - (by == "ip"), "all to be accepted")
            server.send_signal(signal.SIGTERM)
            server.wait_for_log("Handling signal: term")
            os.kill(worker, signal.SIGCONT)
        assert {response.status for response in found} == {200}
        assert {json.loads(response.body)["pid"] for response in found} == {worker}
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("end", ["killed", "hung"])
def test_what_a_worker_has_not_taken_is_its_successors(kind: Kind, end: str):
    timeout = "60" if end == "killed" else "2"
    with Server(*kind.args, "-w", "2", "--timeout", timeout, kind.app("whoami")) as server:
        client, other = client_of(server, 0), client_of(server, 1)
        pid = server.who(source=client)["pid"]

        def accepted() -> int:
            return int(status(server)["dispatcher"]["accepted"])

        before = accepted()
        os.kill(pid, signal.SIGSTOP)
        with answers(4, lambda _: server.who(source=client)) as found:
            wait_for(lambda: accepted() == before + 4, "all to be accepted")
            if end == "killed":  # and not in a moment, maybe before anybody has looked
                wait_for(lambda: waiting(server) == 4, "all to wait")
            assert server.who(source=other)["slot"] == 1
            if end == "killed":
                os.kill(pid, signal.SIGKILL)
            else:
                server.wait_for_log("WORKER TIMEOUT")
        assert {who["slot"] for who in found} == {0}
        assert pid not in {who["pid"] for who in found}


def test_a_killed_dispatcher_takes_no_connection_of_a_worker_along(kind: Kind):
    with Server(*kind.args, "-w", "2", "--keep-alive", "30", kind.app("whoami")) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        client.request("GET", "/")
        first = json.loads(client.getresponse().read())
        os.kill(server.booted("dispatcher")[-1], signal.SIGKILL)
        server.wait_for_log("Booting dispatcher", count=2)
        client.request("GET", "/")
        again = json.loads(client.getresponse().read())
        assert (again["pid"], again["REMOTE_PORT"]) == (first["pid"], first["REMOTE_PORT"])
        assert server.who()["pid"] == first["pid"]
        client.close()


# --- the end of workers ---


@pytest.mark.parametrize("drains", [False, True], ids=["serving", "draining"])
def test_workers_of_a_killed_master_end_at_once(kind: Kind, drains: bool):
    args = (*kind.args, "-w", "2", "--graceful-timeout", "60", kind.app("whoami"))
    with Server(*args) as server, answers(2, lambda _: cut_off(server)):
        wait_for(lambda: connections(server) == 2, "two requests")
        if drains:
            server.send_signal(signal.SIGTERM)
            server.wait_for_log("Handling signal: term")
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not server.session(), "all processes to end")


def test_what_takes_longer_than_the_graceful_timeout_is_cut_off(kind: Kind):
    with Server(*kind.args, "-w", "1", "--graceful-timeout", "1", kind.app("whoami")) as server:
        pid = server.who()["pid"]
        with answers(2, lambda _: cut_off(server)):
            wait_for(lambda: connections(server) == 2, "two requests")
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: pid not in server.alive("worker"), "the old worker's end")
        assert server.who()["pid"] != pid
        assert "WORKER TIMEOUT" not in server.log


#: Lets a response with events go on for as long as there is no file "release".
ENDLESS = """
import os

def post_worker_init(worker):
    import busy
    from waiting import wait_until

    def events(seconds, who):
        yield b"data: {}\\n\\n"
        wait_until(lambda: os.path.exists("release"))
        yield b"data: {}\\n\\n"

    busy.events = events
"""


@pytest.mark.parametrize("why", ["reload", "max_requests"])
def test_what_was_to_stay_open_does_when_its_worker_drains_before_the_end_of_the_response(kind: Kind, why: str):
    """Its client may have sent the next request already."""
    options = ("--max-requests", "3") if why == "max_requests" else ()
    with Server(*kind.args, "-w", "1", "--keep-alive", "30", *options, kind.app("busy"), config=ENDLESS) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        client.request("GET", "/events")
        response = client.getresponse()
        assert client.sock
        address = client.sock.getsockname()
        if why == "reload":
            server.send_signal(signal.SIGHUP)
        else:
            server.get()
            server.get()
        server.wait_for_log("Slot 0: ready", count=2)
        new = server.booted("worker")[-1]
        wait_for(lambda: json.loads(server.get().body)["pid"] == new, "the successor")
        (server.folder / "release").touch()
        assert response.read().endswith(b"}\n\n")
        client.request("GET", "/")
        assert json.loads(client.getresponse().read())["pid"] == new
        assert client.sock.getsockname() == address
        client.close()


def test_websockets_keep_no_worker_beyond_the_graceful_timeout(kind: Kind):
    """Not even for as long as some servers wait for clients to say goodbye."""
    with Server(*kind.args, "-w", "1", "--graceful-timeout", "1", kind.app("busy")) as server, ExitStack() as stack:
        for _ in range(8):
            client = websocket.create_connection(f"ws://127.0.0.1:{server.port}/socket", timeout=PATIENCE)
            stack.callback(client.shutdown)
            client.send("?")
            pid = json.loads(client.recv())["pid"]
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Slot 0: ready", count=2)
        wait_for(lambda: pid not in server.alive("worker"), "the old worker's end", 5)


def cut_off(server: Server) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert server.get("/hold", timeout=60).status == 500


def test_a_life_full_of_changes(kind: Kind):
    """Reloads, recycled, added and removed workers, and an upgrade and the way back: no request fails."""
    rounds = int(os.environ.get("STICKY_FAULTS", "1"))
    options = ("--max-requests", "150", "--max-requests-jitter", "50", "--pid", "pid", "-w", "2")
    # The clients here are quick: workers that drain need not wait for them as long as for others.
    config = "import gunicorn_sticky.workers.drain\ngunicorn_sticky.workers.drain.QUIET = 1.0"
    with Server(*kind.args, *KEYS["session"], *options, kind.app("sessions"), config=config) as server:
        server.wait_for_log(r"Slot \d: ready", count=2)
        done = threading.Event()
        wrong: list[str] = []
        served = [0] * 6

        def client(number: int) -> None:
            source, session = CLIENTS[number], ""
            while not done.wait(0.05):
                path = f"/use?session_id={session}" if session else "/new"
                try:
                    response = request(server.port, path, source=source)
                except Exception as error:
                    wrong.append(repr(error))
                    return
                if response.status == 404 and session:  # it has gone with its worker
                    session = ""
                elif response.status != 200:
                    wrong.append(repr(response))
                    return
                served[number] += 1
                # Each is given up in time, so that workers that drain can end.
                session = json.loads(response.body)["id"] if served[number] % 10 else ""

        threads = [threading.Thread(target=client, args=[number]) for number in range(len(served))]
        for thread in threads:
            thread.start()
        try:
            server.wait_for_log("Autorestarting")
            for _ in range(rounds):
                change(server, served, wrong)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert wrong == []


def change(server: Server, served: list[int], wrong: list[str]) -> None:
    def go_on() -> None:
        before = list(served)
        wait_for(lambda: wrong or all(now > then + 5 for now, then in zip(served, before, strict=True)), "requests")

    def slots(count: int) -> None:
        wait_for(lambda: [slot["state"] for slot in status(server)["slots"]] == ["ready"] * count, f"{count} slots")
        go_on()

    for _ in range(2):
        old = set(server.alive("worker"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not old & set(server.alive("worker")), "the old workers' end")  # noqa: B023
        go_on()
    server.send_signal(signal.SIGTTIN)
    slots(3)
    server.send_signal(signal.SIGTTOU)
    slots(2)
    server.send_signal(signal.SIGUSR2)
    file = server.folder / "pid.2"
    new = int(wait_for(lambda: file.exists() and file.read_text(), "the new master"))
    go_on()
    os.kill(new, signal.SIGTERM)
    wait_for(lambda: not file.exists(), "the new master's end")
    go_on()
