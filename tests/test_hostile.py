"""Clients that mean no good: each is cut off at its deadline, and the others hardly notice.

Hundreds of them here; with STICKY_FAULTS=50 (`make faults`) 1 000, and 2 000 that stay silent.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.harness import PARSER, STICKY, TESTS, Server, addresses, wait_for
from support.proxies import HAPROXY, haproxy

pytestmark = [pytest.mark.load, pytest.mark.xdist_group("hostile")]

CLIENTS = max(200, 20 * int(os.environ.get("STICKY_FAULTS", "1")))
#: Seconds for a head: `sticky_header_timeout` in the dispatcher, and in the worker Gunicorn's default for `keepalive`.
DISPATCHER, WORKER = 1.0, 2.0
#: Seconds that Linux holds back a connection without data for the dispatcher (TCP_DEFER_ACCEPT).
DEFERRED = 1.0
#: Seconds by which any of that may be late on a busy machine.
LATE = 6.0

SERVERS = {
    "header": ("--sticky-proxy", "--sticky-header-timeout", f"{DISPATCHER:g}"),
    "ip": (),
    "idle": (),
    "session": ("--sticky-by", "session", "--sticky-session-keys", "header:x-sid", "--sticky-header-timeout", "1"),
    "forwarded": ("--sticky-proxy", "--sticky-header", "forwarded", "--sticky-header-timeout", "1"),
    "trusted": ("--sticky-proxy", "--sticky-trusted-proxies", "127.0.0.0/8", "--sticky-header-timeout", "1"),
    "query": ("--sticky-by", "session", "--sticky-header-timeout", "1"),
    "cookie": ("--sticky-by", "cookie", "--sticky-cookie", "gunicorn_sticky", "--sticky-header-timeout", "1"),
}
#: By mode and kind of attack (see clients/hostile.py): how each connection ends, and its deadline.
ATTACKS = {
    ("header", "reset"): ("closed", 0.0),
    ("header", "silent"): ("closed", DEFERRED + DISPATCHER),
    ("header", "drip"): ("408", DISPATCHER),
    ("header", "pieces"): ("408", DISPATCHER),
    ("header", "huge"): ("431 408", DISPATCHER),  # if less than 64 KiB arrive in time
    ("header", "rest"): ("closed", WORKER),
    ("header", "second"): ("408", DISPATCHER),
    ("ip", "reset"): ("closed", 0.0),
    ("ip", "silent"): ("closed", WORKER),
    ("ip", "drip"): ("closed", WORKER),
    ("ip", "second"): ("200", WORKER),
    ("session", "half"): ("408", DISPATCHER),
}
#: How many of `CLIENTS`: those that cause much work by themselves are fewer.
SHARES = {"silent": 2, "huge": 0.05, "pieces": 0.25, "second": 0.25}
#: Modes, and forms of heads that cost their reader most; the short form has those that cost most without its limits.
FORMS = [("header", "nodes"), ("forwarded", "elements"), ("session", "ids"), ("cookie", "cookies")]
if "STICKY_FAULTS" in os.environ:
    FORMS += [
        *(("trusted", "nodes"), ("forwarded", "parameters"), ("query", "query")),
        *(("cookie", "pairs"), ("cookie", "others")),
    ]
#: How they end: by us, or by Gunicorn's limits.
REFUSED = "400 408 414 431 closed"
#: How many of them begin in a second, and for how many seconds they do.
RATES, FLOOD = ((25, 100) if "STICKY_FAULTS" in os.environ else (100,)), 1.5
FLOODS = [(*form, rate) for form in FORMS for rate in RATES]


def serve(mode: str) -> Server:
    return Server(*STICKY, "-w", "4", *PARSER, *SERVERS[mode], "whoami:app")


@pytest.fixture(scope="module")
def server_for() -> Iterator[Callable[[str], Server]]:
    """Start a server for each mode that is asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(mode: str) -> Server:
            server = stack.enter_context(serve(mode))
            pids: set[int] = set()
            clients = itertools.cycle(addresses(40))

            def all_answer() -> bool:
                pids.add(ask(server, next(clients))["pid"])
                return len(pids) == 4

            wait_for(all_answer, "all workers")
            return server

        yield start


def ask(server: Server, client: str) -> dict[str, Any]:
    return server.who(source=client, headers={"X-Forwarded-For": client, "Forwarded": f"for={client}"})


def hostile(kind: str, port: int, count: int, seconds: float = 1.0) -> dict[str, Any]:
    """Let `count` clients of a kind connect, all of them within so many seconds, and return how they ended."""
    command = [sys.executable, str(TESTS / "clients" / "hostile.py"), kind, *map(str, (port, count, seconds))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    return dict(json.loads(done.stdout))


class Honest:
    """Clients that ask each server about ten times a second, by new connections, and note how long that takes.

    Args:
        servers: whom they ask
    """

    def __init__(self, *servers: Server) -> None:
        self._servers = servers
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[n]) for n in range(10)]
        #: By server.
        self.seconds: list[list[float]] = [[] for _ in servers]
        self.failures: list[str] = []

    def _run(self, number: int) -> None:
        for n in itertools.cycle(range(200)):
            for server, seconds in zip(self._servers, self.seconds, strict=True):
                started = time.monotonic()
                try:
                    ask(server, f"127.200.{number}.{1 + n}")
                except Exception as error:
                    self.failures.append(repr(error))
                seconds.append(time.monotonic() - started)
            if self._done.wait(0.1):
                return

    def wait(self, count: int) -> None:
        """Wait for so many requests to each server."""
        counts = [len(seconds) + count for seconds in self.seconds]
        wait_for(lambda: all(len(s) >= n for s, n in zip(self.seconds, counts, strict=True)), "requests")

    def __enter__(self) -> Honest:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]


def descriptors(server: Server) -> dict[int, int]:
    """Return how many descriptors each process of the server has open."""
    return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in [server.pid, *server.children()]}


def check_others(
    servers: Sequence[Server],
    attack: Callable[[], dict[str, Any]],
    ends: str,
    deadline: float,
) -> None:
    """Check that the others' p99 stays below twice its idle value, or below 50 ms, and that nobody dies or leaks.

    Attackers, clients and other tests share the machine with the server. So the idle value is that of another server
    at the same time, and one good round of five will do: what is slow by itself is so every time.

    Args:
        servers: the one that is attacked, and the other one
        attack: returns how the attackers ended
        ends: how they may end
        deadline: seconds after which they do
    """
    server = servers[0]
    dispatcher = server.booted("dispatcher")[0]
    before = descriptors(server)
    rounds = []
    for _ in range(5):
        with Honest(*servers) as honest:
            honest.wait(20)
            report = attack()
            honest.wait(50)  # after a short attack too, because it may go on in the server
        assert not honest.failures
        assert set(report["ends"]) <= set(ends.split())
        assert report["longest"] < deadline + LATE
        busy, idle = map(p99, honest.seconds)
        if busy < max(2 * idle, 0.05):
            break
        rounds.append((busy, idle))
    else:
        pytest.fail(f"p99 of the attacked server and of the idle one, in seconds: {rounds}")
    memory = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{dispatcher}/status").read_text())
    assert memory
    assert int(memory.group(1)) < 100 * 1024
    assert descriptors(server).keys() == before.keys()  # nobody died
    wait_for(
        lambda: all(count <= before[pid] for pid, count in descriptors(server).items()), "connections to be closed"
    )


@pytest.mark.parametrize(("mode", "kind"), ATTACKS, ids=map("-".join, ATTACKS))
def test_the_others_hardly_notice(server_for: Callable[[str], Server], mode: str, kind: str):
    servers = server_for(mode), server_for("idle")
    count = int(CLIENTS * SHARES.get(kind, 1))
    ends, deadline = ATTACKS[mode, kind]
    check_others(servers, lambda: hostile(kind, servers[0].port, count), ends, deadline)


@pytest.mark.parametrize(("mode", "form", "rate"), FLOODS)
def test_heads_that_cost_much_to_read(server_for: Callable[[str], Server], mode: str, form: str, rate: int):
    """They do not end, so they stay where they cost little."""
    servers = server_for(mode), server_for("idle")
    check_others(servers, lambda: hostile(form, servers[0].port, int(rate * FLOOD), FLOOD), REFUSED, WORKER)


@pytest.mark.parametrize(("mode", "form"), FORMS)
def test_such_a_head_after_a_request(server_for: Callable[[str], Server], mode: str, form: str):
    """A single one for each worker, a byte every 10 ms."""
    servers = server_for(mode), server_for("idle")
    check_others(servers, lambda: hostile(f"second-{form}", servers[0].port, 4, 0.1), f"200 {REFUSED}", WORKER)


@pytest.mark.parametrize(("mode", "form"), FORMS)
def test_such_heads_through_haproxy(server_for: Callable[[str], Server], tmp_path: Path, mode: str, form: str):
    """Heads that end, of as many bytes as HAProxy takes."""
    servers = server_for(mode), server_for("idle")
    with haproxy(tmp_path, servers[0].port, HAPROXY) as port:
        check_others(
            servers, lambda: hostile(f"whole-{form}", port, int(max(RATES) * FLOOD), FLOOD), f"200 {REFUSED}", 0.0
        )


def test_heads_without_end_in_a_worker():
    """By address the worker reads the head. Gunicorn's limits end it, so nobody dies, and nobody waits for long."""
    with serve("ip") as server:
        server.get()
        before = descriptors(server).keys()
        report = hostile("huge", server.port, 8)
        assert sum(report["ends"].get(end, 0) for end in ("closed", "400", "431")) == 8
        assert report["longest"] < WORKER + LATE
        assert server.get().status == 200
        assert descriptors(server).keys() == before


def test_slowhttptest():
    """Its slow heads are cut off, and its own probe finds the server available all the time."""
    with serve("header") as server:
        server.get()
        command = ["slowhttptest", "-H", "-c", str(CLIENTS), "-r", str(CLIENTS), "-i", "1", "-p", "10", "-l", "30"]
        done = subprocess.run(
            [*command, "-u", f"http://127.0.0.1:{server.port}/"], stdout=subprocess.PIPE, check=True, timeout=60
        )
        output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode())
        assert "No open connections left" in output
        assert set(re.findall(r"service available:\s+(\w+)", output)) == {"YES"}
        assert server.log.count(": 408, ") > 0


def test_nobody_writes_lines_of_their_own_into_the_log():
    """The key goes there before Gunicorn has refused the line break, which a folded header may contain."""
    options = ("--sticky-header", "forwarded", "--sticky-sync", "--sticky-sync-timeout", "1")
    with Server(*STICKY, *options, "--sticky-proxy", "whoami:app") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b'GET / HTTP/1.1\r\nForwarded: for="a\r\n [CRITICAL] forged"\r\n\r\n')
            assert client.recv(12) == b"HTTP/1.1 503"
        server.wait_for_log("Refused a connection with key blake2b:.*: 503, ")
        assert "forged" not in server.log
