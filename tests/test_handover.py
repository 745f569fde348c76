"""Kept-alive connections that carry the requests of many clients: each is served by its own client's worker."""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.connections import Connection
from support.harness import LINGERING, Server, wait_for
from support.kinds import Kind, each_kind, one_each

BY_HEADER = ("--sticky-proxy", "--keep-alive", "90")
KEYS = [f"203.0.113.{n}" for n in range(1, 60)]
#: Of tests whose requests leave a server as it was.
on_one_server = each_kind(group="handover")


@pytest.fixture(scope="module")
def server(kind: Kind) -> Iterator[Server]:
    options = ("-w", "2", "--sticky-header-timeout", "5", "--limit-request-field_size", "65536")
    with Server(*kind.args, *BY_HEADER, *options, kind.app("whoami")) as server:
        yield server


def request(number: int, key: str, body: bytes | None = None, chunked: bool = False) -> bytes:
    head = f"{'GET' if body is None else 'POST'} /{number} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {key}\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[n : n + 50_000] for n in range(0, len(body), 50_000)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + framed + b"0\r\n\r\n"


def where(server: Server) -> dict[str, int]:
    return {key: server.who(headers={"X-Forwarded-For": key})["slot"] for key in KEYS}


def converse(kind: Kind, server: Server, slots: dict[str, int], seed: int, count: int) -> None:
    """Send `count` mixed requests over one connection, up to 30 of them at once, and check every answer."""
    chance = random.Random(seed)
    connection = Connection(server.port)
    sent = 0
    while sent < count:
        batch: list[tuple[int, str, bytes | None, bytes]] = []
        for _ in range(min(chance.choice([1, 1, 1, 3, 30]), count - sent)):
            key, body = chance.choice(KEYS), None
            if chance.random() < 0.4:
                body = chance.randbytes(chance.choice([0, 1, 100, 10_000, 1_000_000 if len(batch) < 2 else 500]))
            batch.append((sent, key, body, request(sent, key, body, chunked=chance.random() < 0.5)))
            sent += 1
        writer = threading.Thread(target=connection.socket.sendall, args=[b"".join(item[3] for item in batch)])
        writer.start()
        for number, key, body, _ in batch:
            who = connection.answer()
            assert who["PATH_INFO"] == f"/{number}"
            assert (who["key"], who["slot"]) == (key, slots[key])
            assert (who["REMOTE_ADDR"], int(who["REMOTE_PORT"])) == connection.address or not kind.shows_peer
            assert (who["size"], who["sha256"]) == (len(body or b""), hashlib.sha256(body or b"").hexdigest())
        writer.join()
    connection.close()


def together(count: int, function, *args) -> None:
    wrong: list[BaseException] = []

    def run(n: int) -> None:
        try:
            function(*args[:-1], n, args[-1])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=[n]) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


@pytest.mark.parametrize(("kind", "workers", "requests"), one_each([(2, 50), (4, 250), (8, 50)], [(4, 50)]))
def test_mixed_keys_on_kept_alive_connections(kind: Kind, workers: int, requests: int):
    """Each request is served once, in order, by its key's worker; hooks and access log see it there and only there."""
    requests = int(os.environ.get("STICKY_REQUESTS", requests))
    config = """
def pre_request(worker, req):
    worker.log.info("pre %s %s %s", worker.slot, dict(req.headers)["X-FORWARDED-FOR"], req.path)
"""
    form = "access %({X-Sticky-Slot}o)s %({X-Forwarded-For}i)s %(U)s"
    access = ("--sticky-slot-header", "--access-logfile", "access.log", "--access-logformat", form)
    with Server(*kind.args, *BY_HEADER, "-w", str(workers), *access, kind.app("whoami"), config=config) as server:
        slots = where(server)
        assert set(slots.values()) == set(range(workers))
        together(20, converse, kind, server, slots, requests)
        if not kind.has_all:
            return
        total = 20 * requests + len(KEYS)

        def logged() -> list[str]:
            lines = (server.folder / "access.log").read_text().splitlines()
            return lines if len(lines) >= total else []

        lines = [line.split() for line in wait_for(logged, "the access log")]
        assert len(lines) == total
        assert all(slots[key] == int(slot) for _, slot, key, _ in lines)
        counts = collections.Counter(path for *_, path in lines if path != "/")
        assert set(counts.values()) == {20}
        hooks = [line.split()[-3:] for line in server.log.splitlines() if "] pre " in line]
        assert len(hooks) == total
        assert all(slots[key] == int(slot) for slot, key, _ in hooks)


@each_kind()
def test_max_requests_counts_served_requests_only(kind: Kind):
    """Not those that a worker has looked at and handed over."""
    limit = 100
    with Server(*kind.args, *BY_HEADER, "-w", "2", "--max-requests", str(limit), kind.app("whoami")) as server:
        slots = where(server)
        counts = collections.Counter(slots.values())
        busy = max(counts, key=lambda slot: counts[slot])  # it reaches the limit first
        here = next(key for key in KEYS if slots[key] == busy)
        there = next(key for key in KEYS if slots[key] != busy)
        connection = Connection(server.port)
        pids = set()
        for n in range(limit - 1 - counts[busy]):
            for key in (here, there):
                connection.socket.sendall(request(n, key))
                who = connection.answer()
                pids.add((key, who["pid"]))
        assert len(pids) == 2
        assert "Autorestarting" not in server.log
        connection.socket.sendall(request(0, here))
        assert (here, connection.answer()["pid"]) in pids
        server.wait_for_log("Autorestarting")
        connection.close()


@on_one_server
def test_missing_header_on_a_later_request(server: Server):
    connection = Connection(server.port)
    connection.socket.sendall(request(0, KEYS[0]))
    connection.answer()
    connection.socket.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
    assert connection.socket.recv(13) == b"HTTP/1.1 400 "
    connection.close()
    server.wait_for_log("400, the request lacks the header x-forwarded-for .*sticky_ignore_missing_header")


@on_one_server
def test_no_header_in_64_kib_of_a_later_request(server: Server):
    connection = Connection(server.port)
    connection.socket.sendall(request(0, KEYS[0]))
    connection.answer()
    connection.socket.sendall(b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000)
    assert connection.socket.recv(13) == b"HTTP/1.1 431 "
    connection.close()
    server.wait_for_log(r"431, the first 65536 bytes do not show .* x-forwarded-for \(setting: sticky_header\)")


@on_one_server
def test_half_a_head_of_a_later_request(server: Server):
    connection = Connection(server.port)
    connection.socket.sendall(request(0, KEYS[0]))
    connection.answer()
    connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert connection.socket.recv(13) == b"HTTP/1.1 408 "
    connection.close()
    server.wait_for_log(r"408, the request header x-forwarded-for did not arrive .* \(setting: sticky_header_timeout\)")


@each_kind()
@pytest.mark.parametrize(
    ("by", "line"),
    [
        ("header", b"X-Forwarded-For: " + b'"",' * 99),
        ("session", b"Cookie: " + b"sid=aaaaaaaaaaaaaaaa; " * 15),
    ],
)
def test_a_later_head_that_is_made_to_cost_time(kind: Kind, by: str, line: bytes):
    """Each of its bytes could be the reason to read all of it again. Others are served all the time."""
    options = ("--sticky-by", by, "--sticky-session-keys", "cookie:sid", "--keep-alive", "30", "-w", "1")
    args = (*kind.args, *options, "--sticky-header-timeout", "60", kind.app("whoami"))
    with Server(*args, config=LINGERING) as server:
        server.who(headers={"X-Forwarded-For": KEYS[0]})
        connection = Connection(server.port)
        connection.socket.sendall(request(0, KEYS[0]))
        pid = connection.answer()["pid"]
        connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + (line + b"\r\n") * 140)
        seconds = []
        for _ in range(50):
            connection.socket.sendall(b"a")
            started = time.monotonic()
            assert server.who(headers={"X-Forwarded-For": KEYS[0]})["pid"] == pid
            seconds.append(time.monotonic() - started)
        assert sorted(seconds)[25] < 0.1
        connection.close()


@each_kind()
def test_a_dispatcher_that_takes_nothing_back(kind: Kind):
    """Workers wait for it, and in the end refuse what they cannot hand over."""
    config = f"import {kind.limits}\n{kind.limits}.HAND_OVER = 0.5"
    with Server(*kind.args, *BY_HEADER, "-w", "2", "--timeout", "60", kind.app("whoami"), config=config) as server:
        slots = where(server)
        here, there = (next(key for key in KEYS if slots[key] == slot) for slot in (0, 1))
        connections = [Connection(server.port) for _ in range(400)]  # more than a channel holds
        for connection in connections:
            connection.socket.sendall(request(0, here))
            connection.answer()
        [dispatcher] = server.alive("dispatcher")
        os.kill(dispatcher, signal.SIGSTOP)
        try:
            for connection in connections:
                connection.socket.sendall(request(1, there))
            server.wait_for_log(r"503, the dispatcher takes no connections \(setting: workers or worker_connections\)")
        finally:
            os.kill(dispatcher, signal.SIGCONT)
        answers = collections.Counter(connection.socket.recv(12) for connection in connections)
        assert answers.keys() == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        for connection in connections:
            connection.close()


@each_kind()
def test_missing_header_ignored_on_a_later_request(kind: Kind):
    with Server(*kind.args, *BY_HEADER, "-w", "4", "--sticky-ignore-missing-header", kind.app("whoami")) as server:
        connection = Connection(server.port)
        connection.socket.sendall(request(0, KEYS[0]))
        assert connection.answer()["key"] == KEYS[0]
        connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.answer()["key"] == "127.0.0.1"
        connection.close()


@on_one_server
def test_heads_in_pieces_and_large_ones(server: Server):
    slots = where(server)
    connection = Connection(server.port)
    for n, key in enumerate(KEYS):
        filler = b"".join(b"A-%d: %s\r\n" % (m, b"b" * 1000) for m in range(n))
        head = b"GET /%d HTTP/1.1\r\nHost: a\r\n%sX-Forwarded-For: %s\r\n\r\n" % (n, filler, key.encode())
        cut = random.Random(n).randrange(1, len(head))
        connection.socket.sendall(head[:cut])
        connection.socket.sendall(head[cut:])
        who = connection.answer()
        assert (who["PATH_INFO"], who["slot"]) == (f"/{n}", slots[key])
    connection.close()


def memory(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@on_one_server
def test_alternating_for_ever_exhausts_nothing(kind: Kind, server: Server):
    count = int(os.environ.get("STICKY_HANDOVERS", "4000" if kind.name == "gevent" else "1000"))
    slots = where(server)
    pair = [next(key for key in KEYS if slots[key] == slot) for slot in (0, 1)]

    def alternate(number: int) -> None:
        connection = Connection(server.port)
        for n in range(number):
            connection.socket.sendall(request(n, pair[n % 2]))
            assert connection.answer()["slot"] == n % 2
        connection.close()

    def figures() -> list[tuple[int, int]]:
        pids = [server.pid, *server.booted("dispatcher"), *server.booted("worker")]
        return [(len(list(Path(f"/proc/{pid}/fd").iterdir())), memory(pid)) for pid in pids]

    alternate(count // 2)
    before = figures()
    alternate(count // 2)
    wait_for(lambda: [fds for fds, _ in figures()] <= [fds for fds, _ in before], "descriptors to be closed")
    for (_, old), (_, new) in zip(before, figures(), strict=True):
        assert new <= old * 1.05 + 1000
    assert len(server.booted("worker")) == 2


@each_kind()
def test_what_a_killed_dispatcher_has_not_taken_back_is_routed_by_its_successor(kind: Kind):
    with Server(*kind.args, *BY_HEADER, "-w", "4", kind.app("whoami")) as server:
        slots = where(server)
        chance = random.Random(1)
        for round_ in range(3):
            connections = []
            for _ in range(12):
                connection = Connection(server.port)
                connection.socket.sendall(request(0, KEYS[0]))
                assert connection.answer()["slot"] == slots[KEYS[0]]
                connections.append((connection, chance.choice(KEYS)))
            dispatcher = server.booted("dispatcher")[-1]
            os.kill(dispatcher, signal.SIGSTOP)
            for connection, key in connections:
                connection.socket.sendall(request(1, key))
            os.kill(dispatcher, signal.SIGKILL)
            for connection, key in connections:
                assert connection.answer()["slot"] == slots[key]
                connection.close()
            server.wait_for_log("Booting dispatcher", count=round_ + 2)
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")


@each_kind()
def test_handover_during_reloads_moves_nobody(kind: Kind):
    """A worker that drains closes its connections after a response, as Gunicorn's do; until then they are right."""
    with Server(*kind.args, *BY_HEADER, "-w", "2", kind.app("whoami")) as server:
        slots = where(server)
        done, wrong, served = threading.Event(), [], []

        def run(seed: int) -> None:
            chance, n = random.Random(seed), 0
            while not done.is_set():
                key, n = chance.choice(KEYS), n + 1
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                for _ in range(20):  # http.client connects again where the server has closed
                    done.wait(0.005)  # some 500 requests a second, so that the server has time for what is tested
                    try:
                        connection.request("GET", f"/{n}", headers={"X-Forwarded-For": key})
                        response = connection.getresponse()
                        who = json.loads(response.read())
                    except Exception as error:
                        wrong.append(repr(error))
                        break
                    served.append(key)
                    if who["slot"] != slots[key]:
                        wrong.append(f"{key} was served by {who['slot']}")
                    key, n = chance.choice(KEYS), n + 1
                connection.close()

        threads = [threading.Thread(target=run, args=[n]) for n in range(3)]
        for thread in threads:
            thread.start()
        for round_ in range(2):
            old = set(server.alive("worker"))
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("Booting dispatcher", count=round_ + 2)
            wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")  # noqa: B023
        count = len(served)
        wait_for(lambda: wrong or len(served) > count + 50, "requests after the reloads")
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.parametrize(
    ("kind", "by", "event"),
    one_each([(by, event) for by in ("ip", "header") for event in ("HUP", "max_requests")], [("header", "HUP")]),
)
def test_an_idle_connection_leads_to_the_successor(kind: Kind, by: str, event: str):
    """Its next request does, while others of the same client are served there already."""
    options: tuple[str, ...] = ("-w", "2", "--keep-alive", "30", "--graceful-timeout", "60")
    if by == "header":
        options += ("--sticky-proxy",)
    if event == "max_requests":
        options += ("--max-requests", "8")
    with Server(*kind.args, *options, kind.app("whoami")) as server:
        key = KEYS[0]
        headers = {"X-Forwarded-For": key}
        connections = [Connection(server.port) for _ in range(3)]
        old = set()
        for connection in connections:
            connection.socket.sendall(request(0, key))
            old.add(connection.answer()["pid"])
        assert len(old) == 1
        if event == "HUP":
            server.send_signal(signal.SIGHUP)

        def successor() -> int | None:  # by connections of their own, which also exhaust max_requests
            pid = server.who(headers=headers)["pid"]
            return pid if pid not in old else None

        new = wait_for(successor, "a successor")
        for connection in connections:
            for n in range(2):
                connection.socket.sendall(request(n, key))
                assert connection.answer()["pid"] == new
            connection.close()
