"""Sticky by session: a request reaches the worker that minted its session's id, wherever it comes from."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from support.harness import STICKY, TESTS, Server, addresses, npm_ci, request, wait_for
from support.kinds import Kind, each_kind

KEYS = "query:session_id,header:mcp-session-id,cookie:session"
APP = (*STICKY, "--sticky-by", "session", "--sticky-session-keys", KEYS, "sessions:app")
BY_SESSION = ("--sticky-by", "session", "--sticky-session-keys", KEYS)
ENGINEIO = (*STICKY, "--sticky-by", "session", "sio_app:app")
POLL = "/socket.io/?EIO=4&transport=polling"
#: Lets a worker that drains wait so many seconds for its sessions' next requests, which may be late on a busy machine.
QUIET = "from gunicorn_sticky.workers import drain\ndrain.QUIET = {}\n"


def ready(server: Server, count: int) -> None:
    """Wait until `count` workers take new sessions; until then, those that do get all of them."""
    seen: set[int] = set()

    def everybody() -> bool:
        seen.add(json.loads(server.get("/").body)["pid"])
        return len(seen) == count

    wait_for(everybody, "all workers")


def new(server: Server) -> dict[str, Any]:
    return dict(json.loads(server.get("/new").body))


def use(server: Server, session: str, how: str = "query") -> dict[str, Any]:
    """Use a session by a new connection, and return what the application says."""
    path, headers = "/use", {}
    if how == "query":
        path = f"/use?a=b&session_id={session}"
    elif how == "header":
        headers = {"Mcp-Session-Id": session}
    else:
        headers = {"Cookie": f"a=b; session={session}; c=d"}
    response = server.get(path, headers=headers)
    return dict(json.loads(response.body)) | {"status": response.status}


def wait_for_heartbeat(pid: int) -> None:
    """Wait until a worker has shown that it is alive, by the time of a file of which only the descriptor is left."""

    def beat() -> float:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                if "/wgunicorn-" in os.readlink(file):
                    return file.stat().st_mtime
        raise AssertionError("no heartbeat's file")

    before = beat()
    wait_for(lambda: beat() != before, "a heartbeat")


def wait_for_successor(server: Server, session: dict[str, Any]) -> None:
    """Wait until the only worker, which was told to end, has a successor; with its session in use, it stays until then.

    A new session would have to wait, and that one would be quiet meanwhile.
    """

    def is_ready() -> bool:
        use(server, session["id"])
        return any(int(pid) != session["pid"] for pid in re.findall(r"Slot 0: ready \(pid: (\d+)\)", server.log))

    wait_for(is_ready, "its successor")


def test_a_session_stays_with_the_worker_that_minted_it():
    with Server(*APP, "-w", "4") as server:
        ready(server, 4)
        sessions = [new(server) for _ in range(40)]
        assert len({session["pid"] for session in sessions}) == 4
        for count, how in enumerate(("query", "header", "cookie") * 2, 1):
            for session in sessions:
                answer = use(server, session["id"], how)
                assert (answer["pid"], answer["count"]) == (session["pid"], count)


def test_ids_that_are_none_of_ours_are_for_the_application():
    with Server(*APP, "-w", "2") as server:
        real = new(server)["id"]
        foreign = ("", "x", "garbage", "%00%ff%0a", "a" * 4000, "=" * 8)
        for bad in (*foreign, real[:-1], real[1:], real[:-1] + "!", real[::-1]):
            answer = server.get(f"/use?session_id={bad}")
            assert answer.status == 404
        assert use(server, real)["status"] == 200
        assert "Traceback" not in server.log
        assert "Refused" not in server.log


def test_a_session_of_a_worker_that_is_gone():
    with Server(*APP, "-w", "2") as server:
        ready(server, 2)
        session = new(server)
        os.kill(session["pid"], signal.SIGKILL)
        answer = wait_for(lambda: use(server, session["id"]), "an answer")
        assert answer["status"] == 404
        assert answer["pid"] != session["pid"]


@each_kind()
def test_what_a_killed_worker_has_not_taken_is_answered_by_another(kind: Kind):
    with Server(*kind.args, *BY_SESSION, "-w", "2", kind.app("sessions")) as server:
        ready(server, 2)
        session = new(server)
        other = wait_for(lambda: next((it for it in [new(server)] if it["pid"] != session["pid"]), None), "another one")
        os.kill(session["pid"], signal.SIGSTOP)
        answers: list[int] = []

        def run() -> None:
            answers.append(use(server, session["id"])["status"])

        threads = [threading.Thread(target=run) for _ in range(9)]
        for thread in threads:
            thread.start()
        assert use(server, other["id"])["status"] == 200  # and what came before it has been dispatched
        os.kill(session["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert answers == [404] * 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_worker_that_is_gone_has_not_taken_is_answered_also_if_the_dispatcher_dies(number: int):
    """Before that has seen the worker's end; the seat is nobody's, as the successor has another one."""
    with Server(*APP, "-w", "1", "--graceful-timeout", "60", config=QUIET.format(30)) as server:
        ready(server, 1)
        session = new(server)
        os.kill(session["pid"], signal.SIGTERM)
        wait_for_successor(server, session)
        assert use(server, session["id"])["pid"] == session["pid"] != new(server)["pid"]
        os.kill(session["pid"], signal.SIGSTOP)
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(9)]
        for client in clients:
            client.sendall(f"GET /use?session_id={session['id']} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        assert new(server)["pid"] != session["pid"]  # and what came before has been dispatched
        (dispatcher,) = server.alive("dispatcher")
        os.kill(dispatcher, signal.SIGSTOP)
        os.kill(session["pid"], signal.SIGKILL)
        server.wait_for_log(rf"Worker \(pid:{session['pid']}\) was sent SIGKILL")
        os.kill(dispatcher, number)
        if number != signal.SIGKILL:  # which also ends what stands still
            os.kill(dispatcher, signal.SIGCONT)
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 404"
            client.close()


@each_kind()
def test_a_draining_worker_keeps_its_sessions_and_gets_no_new_ones(kind: Kind):
    with Server(*kind.args, *BY_SESSION, "-w", "2", "--graceful-timeout", "60", kind.app("sessions")) as server:
        ready(server, 2)
        session = new(server)
        held = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        held.sendall(f"GET /hold?session_id={session['id']} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_for(lambda: use(server, session["id"])["count"], "the session in use")
        os.kill(session["pid"], signal.SIGTERM)
        server.wait_for_log("Booting worker", count=3)  # its successor, while it drains
        for n in range(1, 30):
            answer = use(server, session["id"])
            assert (answer["status"], answer["pid"]) == (200, session["pid"])
            assert new(server)["pid"] != session["pid"], n
        (server.folder / "release").touch()
        assert held.recv(12) == b"HTTP/1.1 200"
        held.close()
        server.wait_for_log(rf"Worker exiting \(pid: {session['pid']}\)")
        assert wait_for(lambda: use(server, session["id"]), "an answer")["status"] == 404


@each_kind()
def test_a_draining_worker_stays_between_two_requests_of_a_client(kind: Kind):
    args = (*kind.args, *BY_SESSION, "-w", "1", "--graceful-timeout", "60", kind.app("sessions"))
    with Server(*args, config=QUIET.format(8)) as server:
        ready(server, 1)
        session = new(server)
        os.kill(session["pid"], signal.SIGTERM)
        wait_for_successor(server, session)
        assert new(server)["pid"] != session["pid"]
        for _ in range(3):
            wait_for_heartbeat(session["pid"])  # so it has looked whether anybody is busy
            answer = use(server, session["id"])
            assert (answer["status"], answer["pid"]) == (200, session["pid"])
        server.wait_for_log(rf"Worker exiting \(pid: {session['pid']}\)")


@each_kind()
def test_a_full_worker_drains_without_standing_still(kind: Kind):
    args = (*kind.args, *kind.limit(1), *BY_SESSION, "-w", "1", "--graceful-timeout", "60")
    with Server(*args, kind.app("sessions")) as server:
        ready(server, 1)
        session = new(server)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as held:
            held.sendall(f"GET /hold?session_id={session['id']} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            server.wait_for_log("holding")
            os.kill(session["pid"], signal.SIGTERM)
            server.wait_for_log("Booting worker", count=2)
            for _ in range(5):  # one a second: also when its sessions have been quiet
                wait_for_heartbeat(session["pid"])
            (server.folder / "release").touch()
            assert held.recv(12) == b"HTTP/1.1 200"
        assert "WORKER TIMEOUT" not in server.log


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_new_sessions_are_spread_evenly(balance: str):
    with Server(*APP, "-w", "4", "--sticky-balance", balance) as server:
        ready(server, 4)
        counts = collections.Counter(new(server)["pid"] for _ in range(400))
        assert len(counts) == 4
        assert max(counts.values()) <= 1.3 * 100


def test_new_sessions_by_hash_of_the_clients_address():
    with Server(*APP, "-w", "4", "--sticky-balance", "hash") as server:
        where = {source: json.loads(server.get(source=source).body)["pid"] for source in addresses(40)}
        assert len(set(where.values())) == 4
        for source, pid in where.items():
            assert json.loads(server.get(source=source).body)["pid"] == pid


def test_busy_workers_get_fewer_sessions():
    with Server(*APP, "-w", "4") as server:
        ready(server, 4)
        session = new(server)
        held = []
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            connection.sendall(f"GET /hold?session_id={session['id']} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            held.append(connection)
        server.wait_for_log("holding", count=20)
        assert session["pid"] not in {new(server)["pid"] for _ in range(15)}
        (server.folder / "release").touch()
        for connection in held:
            connection.recv(12)
            connection.close()


# --- Engine.IO ---


def ask(connection: http.client.HTTPConnection, *request, **kwargs) -> tuple[int, bytes]:
    """Send a request on a kept-alive connection."""
    connection.request(*request, **kwargs)
    response = connection.getresponse()
    return response.status, response.read()


def handshake(server: Server) -> str:
    return str(json.loads(server.get(POLL).body[1:])["sid"])


def test_engineio_ids_carry_their_owner_and_tell_nothing():
    with Server(*ENGINEIO, "-w", "4") as server:
        ids = [handshake(server) for _ in range(200)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{28}", sid) for sid in ids)  # Engine.IO's own 20 characters, and the tag
    assert len({sid[:16] for sid in ids}) == 200
    assert len({sid[-8:] for sid in ids}) == 200
    for position in range(20, 28):
        assert len({sid[position] for sid in ids}) > 30  # 64 would be all of the alphabet


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_a_session_on_another_sessions_connection(options: tuple[str, ...]):
    """Two handshakes on two connections, then a request of the first session on the second connection."""
    with Server(*ENGINEIO, "-w", "4", "--keep-alive", "30", *options) as server:
        for _ in range(12):
            pair = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(2)]
            sids = [json.loads(ask(connection, "GET", POLL)[1][1:])["sid"] for connection in pair]
            for sid, connection in zip(sids, reversed(pair), strict=True):
                assert ask(connection, "POST", f"{POLL}&sid={sid}", body="40") == (200, b"OK")
            for connection in pair:
                connection.close()


def test_new_sessions_one_after_the_other_on_a_kept_alive_connection_spread():
    """A proxy reuses the connection that was idle last, and between two requests of a session nobody is busy."""
    with Server(*APP, "-w", "2", "--keep-alive", "30") as server:
        ready(server, 2)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        pids = []
        for _ in range(40):
            connection.request("GET", "/new")
            pids.append(json.loads(connection.getresponse().read())["pid"])
        connection.close()
        assert max(Counter(pids).values()) <= 1.3 * 20, Counter(pids)


def test_engineio_imported_by_the_first_request():
    with Server(*STICKY, "--sticky-by", "session", "-w", "4", "late_sio_app:app") as server:
        sids = [handshake(server) for _ in range(20)]
        for sid in sids:
            assert server.get(f"{POLL}&sid={sid}", method="POST", body="40").status == 200


def test_engineio_ids_of_the_applications_own():
    """Made by an attribute of the server, a subclass or a patched class; application and client know the same one."""
    options = ("--sticky-by", "session", "--sticky-balance", "round-robin", "-w", "4")
    with Server(*STICKY, *options, "own_ids_app:app") as server:
        server.wait_for_log(r"Slot \d: ready", count=4)
        for name in ("attribute", "later", "tagged", "subclass", "extended", "patched"):
            path = f"/{name}/?EIO=4&transport=polling"
            sids = [json.loads(server.get(path).body[1:])["sid"] for _ in range(12)]
            for sid in sids:
                session = f"{path}&sid={quote(sid)}"
                assert server.get(session, method="POST", body="4hello").status == 200, (name, sid)
                assert server.get(session).body.decode() == f"4{sid} hello"
            if name == "tagged":  # by the application already, and not once more
                assert {len(sid) for sid in sids} == {32 + 8}


def test_a_lost_session_is_engineios_400():
    with Server(*ENGINEIO, "-w", "2") as server:
        assert request(server.port, f"{POLL}&sid=garbage").status == 400
        sid = handshake(server)
        assert request(server.port, f"{POLL}&sid={sid}").status == 200
        for pid in server.booted("worker"):
            os.kill(pid, signal.SIGKILL)
        assert request(server.port, f"{POLL}&sid={sid}").status == 400


# --- cookies ---


def cookie_of(response) -> str:
    """Return what the client sends back, NAME=VALUE."""
    cookie = response.headers.get("Set-Cookie", "")
    match = re.match(r"(gunicorn_sticky_[0-9a-f]{6}=[\w-]+); Path=/; HttpOnly; SameSite=Lax$", cookie)
    assert match, cookie
    return match.group(1)


def test_cookie():
    with Server(*STICKY, "--sticky-by", "cookie", "-w", "4", "whoami:app") as server:
        ready(server, 4)
        clients = {}
        for _ in range(40):
            response = server.get()
            clients[cookie_of(response)] = json.loads(response.body)["pid"]
        assert len(set(clients.values())) > 1
        for cookie, pid in clients.items():
            response = server.get(headers={"Cookie": f"a=b; {cookie}"})
            assert json.loads(response.body)["pid"] == pid
            assert response.headers["Set-Cookie"] is None
        forged = server.get(headers={"Cookie": f"{cookie[:-1]}!"})
        assert forged.status == 200
        assert cookie_of(forged)
        os.kill(pid, signal.SIGKILL)
        renewed = server.get(headers={"Cookie": cookie})
        assert renewed.status == 200
        assert cookie_of(renewed)


def test_cookie_on_a_kept_alive_connection_of_many_clients():
    with Server(*STICKY, "--sticky-by", "cookie", "-w", "4", "--keep-alive", "30", "whoami:app") as server:
        ready(server, 4)
        clients = {}
        for _ in range(30):
            response = server.get()
            clients[cookie_of(response)] = json.loads(response.body)["pid"]
        assert len(set(clients.values())) > 1
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for cookie, pid in clients.items():
            connection.request("GET", "/", headers={"Cookie": cookie})
            kept = connection.getresponse()
            assert json.loads(kept.read())["pid"] == pid
            assert kept.headers["Set-Cookie"] is None
        connection.request("GET", "/")
        first = connection.getresponse()
        first.read()
        assert cookie_of(first)
        connection.close()


@pytest.mark.parametrize(
    ("options", "scheme", "attributes"),
    [
        ((), "https", "SameSite=Lax; Secure"),
        (("--sticky-cookie-samesite", "Strict"), "http", "SameSite=Strict"),
        (("--sticky-cookie-samesite", "none"), "http", "SameSite=None; Secure"),
    ],
)
def test_cookie_name_and_attributes(options: tuple[str, ...], scheme: str, attributes: str):
    fixed = ("--sticky-by", "cookie", "--sticky-cookie", "where", "--forwarded-allow-ips", "*")
    with Server(*STICKY, *fixed, *options, "whoami:app") as server:
        cookie = server.get(headers={"X-Forwarded-Proto": scheme}).headers["Set-Cookie"]
        assert re.fullmatch(rf"where=[\w-]+; Path=/; HttpOnly; {attributes}", cookie)


def test_cookies_of_two_servers_on_one_host_name():
    """A browser sends the cookies of both to each of them."""
    options = (*STICKY, "--sticky-by", "cookie", "-w", "4", "--keep-alive", "30", "whoami:app")
    with Server(*options) as one, Server(*options, bind="0.0.0.0:0") as other, requests.Session() as browser:
        browser.trust_env = False
        seen: dict[int, set[int]] = {one.port: set(), other.port: set()}
        for _ in range(6):
            for port, pids in seen.items():
                pids.add(browser.get(f"http://127.0.0.1:{port}/", timeout=30).json()["pid"])
        assert [len(pids) for pids in seen.values()] == [1, 1]
        assert len(browser.cookies) == 2


@pytest.mark.programs
def test_cookie_in_a_browser():
    """A visitor stays with one worker over reloads of a page, and other visitors go elsewhere."""
    folder = TESTS / "browser"
    npm_ci(folder)
    with Server(*STICKY, "--sticky-by", "cookie", "-w", "4", "whoami:app") as server:
        ready(server, 4)
        command = ["node", str(folder / "cookie.mjs"), f"http://127.0.0.1:{server.port}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout
    visitors = json.loads(output)
    assert len(visitors) == 4
    for visitor in visitors:
        assert len(visitor["workers"]) == 3
        assert len(set(visitor["workers"])) == 1
        (cookie,) = visitor["cookies"]
        assert re.fullmatch("gunicorn_sticky_[0-9a-f]{6}", cookie["name"])
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert len({visitor["workers"][0] for visitor in visitors}) > 1
