"""What is full, under load: nothing is dropped that has a place to wait, nothing spins, and all recovers by itself."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.harness import BIN, Server, wait_for
from support.under_load import (
    CLIENTS,
    Load,
    assert_nobody_moved,
    assert_nothing,
    busy_server,
    cpu_seconds,
    times,
    under_load,
)

pytestmark = pytest.mark.load

#: What the dispatcher may log and use, while something is missing.
LINES_A_SECOND, CPU = 1, 0.5


def limited(count: int) -> list[str]:
    """Return a command that runs gunicorn with a limit on open files."""
    return ["sh", "-c", f'ulimit -n {count}; exec "$0" "$@"', str(BIN / "gunicorn")]


@contextlib.contextmanager
def connections(server: Server, sources: list[str], data: bytes) -> Iterator[list[socket.socket]]:
    """Open many connections, without waiting for any of them to be accepted, and send something on each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    opened = []
    try:
        for source in sources:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=(source, 0))
            connection.sendall(data)
            opened.append(connection)
        yield opened
    finally:
        for connection in opened:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if b"application/json" in head else {}


def backlog(server: Server) -> int:
    """Return how many connections wait in the kernel to be accepted."""
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == server.port:
                return int(fields[4].split(":")[1], 16)
    raise AssertionError("nobody listens")


def turns(load: Load, count: int) -> list[str]:
    """Return clients of the slots 0 and 1 in turn."""
    homes = load.homes()
    mine = [[client for client, home in homes.items() if home == slot] for slot in (0, 1)]
    return [mine[n % 2][n // 2 % len(mine[n % 2])] for n in range(count)]


GET = b"GET %s HTTP/1.1\r\nConnection: close\r\nX-Forwarded-For: %s\r\n\r\n"


def test_full_workers_leave_connections_in_the_kernel_and_lose_none():
    full = 4.0
    with busy_server("ip", 2, "--worker-connections", "150", "--timeout", "60") as server:
        for _ in range(times(1, 10)):
            with under_load(server, workers=2, waits=60) as load:
                homes = load.homes()
                clients = turns(load, 300)
                with connections(server, clients, GET % (b"/hold", b"-")) as held:
                    start = time.monotonic()
                    more = turns(load, 800)
                    with connections(server, more, GET % (b"/", b"-")) as waiting:
                        wait_for(lambda: backlog(server) > 20, "the kernel's backlog to fill")
                        (server.folder / "release").touch()
                        for connection, client in zip((*held, *waiting), (*clients, *more), strict=True):
                            status, who = answer(connection)
                            assert (status, who["slot"]) == (200, homes[client])
                (server.folder / "release").unlink()
                load.wait_for_answers(time.monotonic(), CLIENTS)
            assert time.monotonic() - start < 60 + full
            assert_nothing([r for r in load.records if r.failed], "failed", start)
            assert_nobody_moved(load)


@contextlib.contextmanager
def quiet(server: Server, seconds: float) -> Iterator[None]:
    """Have a dispatcher that neither logs nor works much for as long as this lasts: at least so many seconds."""
    [dispatcher] = server.alive("dispatcher")
    start, used, lines = time.monotonic(), cpu_seconds(dispatcher), len(complaints(server))
    yield
    wait_for(lambda: time.monotonic() - start > seconds, "time to pass")
    lasted = time.monotonic() - start
    assert cpu_seconds(dispatcher) - used < CPU * lasted
    new = complaints(server)[lines:]
    assert new
    assert len(new) <= LINES_A_SECOND * lasted + 2, "\n".join(new)


def complaints(server: Server) -> list[str]:
    return re.findall(r".*ulimit -n.*", server.log)


def test_a_dispatcher_without_descriptors_says_so_and_recovers():
    with busy_server("header", 2, command=limited(256)) as server:
        with under_load(server, "header", workers=2) as load:
            for _ in range(times(1, 10)):
                start = time.monotonic()
                with quiet(server, 3), connections(server, ["127.0.0.1"] * 400, b"GET / HTTP/1.1\r\n"):
                    load.wait_for_answers(start, CLIENTS)
                load.wait_for_answers(time.monotonic(), CLIENTS)
        # Those who have not shown their heads make room for those who have.
        assert_nothing([r for r in load.records if r.failed and not r.split], "failed", start)
        assert_nobody_moved(load)


def test_too_many_descriptors_in_flight_are_waited_for():
    """The kernel lets an unprivileged user have as many in flight as open files."""
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    # The workers keep their user, because the Python that runs the tests may be one that only its owner can read.
    config = "def post_fork(server, worker):\n    worker.cfg.set('user', None)\n    worker.cfg.set('group', None)"
    owner = ("--user", entry.pw_name, "--group", str(entry.pw_gid))
    with busy_server("ip", 2, *owner, "--timeout", "60", command=limited(256), config=config) as server:
        with under_load(server, workers=2, waits=20) as load:
            for _ in range(times(1, 10)):
                homes = load.homes()
                sources = [client for client, home in homes.items() if home == 0][:10] * 40
                victim = load.worker(0)
                start = time.monotonic()
                os.kill(victim, signal.SIGSTOP)
                with quiet(server, 3), connections(server, sources, GET % (b"/", b"-")) as waiting:
                    wait_for(lambda: complaints(server), "the line in the log")
                    wait_for(lambda: time.monotonic() - start > 2, "the limit to last a while")  # noqa: B023
                    os.kill(victim, signal.SIGCONT)
                    answers = [answer(connection) for connection in waiting]
                    assert {(status, who["slot"]) for status, who in answers} == {(200, 0)}
                load.wait_for_answers(time.monotonic(), CLIENTS)
        assert_nothing([r for r in load.records if r.failed], "failed", start)
        assert_nobody_moved(load)
