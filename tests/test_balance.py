"""Least connections: any run of requests without a session is spread evenly, whatever came before."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.harness import STICKY, Server, wait_for
from support.spread import MOST, RUN, worst

from gunicorn_sticky.dispatcher import balancing
from gunicorn_sticky.dispatcher.balancing import Channels, SessionRoute
from gunicorn_sticky.routing.affinity import Affinity
from gunicorn_sticky.shared import board as boards
from gunicorn_sticky.shared.board import REQUEST, SEATS, SESSION, Board

# --- the decision ---


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(balancing, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "LOOK", 0.0)


class Workers:
    """Workers that have answered before the next request comes."""

    def __init__(self, count: int, balance: str = "least-connections") -> None:
        self.board = Board()
        self.board.slots = self.board.count = count
        #: How often the load of a slot has been looked at.
        self.looks = 0
        channels = [SimpleNamespace(queued=self._queued) for _ in range(count)]
        self._route = SessionRoute(
            Channels(channels, [], [], channels[0]),  # type: ignore[arg-type]
            bytes(16),
            Affinity(by="session", balance=balance),
            self.board,
            self.board.other(),
        )
        self._slots = {id(channel): slot for slot, channel in enumerate(channels)}
        for slot in range(count):
            self.boot(slot)

    def _queued(self) -> int:
        self.looks += 1
        return 0

    def boot(self, slot: int, seat: int = 0, age: int = 1) -> None:
        self.board.take(slot * SEATS + seat, 1 + slot, age)
        self.board.activate(slot, slot * SEATS + seat)

    def serve(self, kind: str = "page") -> int:
        """Return the slot that has got a request; that is for a page, or begins a session."""
        slot = self._slots[id(self._route.channel("127.0.0.1"))]
        self.board.give(self.board.active_seat(slot), REQUEST + SESSION * (kind == "session"))
        return slot


def in_a_row(workers: Workers) -> Iterator[str]:
    yield from ["session"] * 1000 + ["page"] * 400


def in_turn(workers: Workers) -> Iterator[str]:
    yield from ["page", "session"] * 300


def mixed(workers: Workers) -> Iterator[str]:
    chance = random.Random(1)
    for _ in range(60):
        yield from [chance.choice(["page", "session"])] * chance.randrange(40)


def a_new_worker(workers: Workers) -> Iterator[str]:
    yield from ["page"] * 1000
    workers.boot(1, seat=1, age=2)
    yield from ["page"] * 400


def a_worker_that_was_busy(workers: Workers) -> Iterator[str]:
    workers.board.busy(workers.board.active_seat(1))[0] = 10_000
    yield from ["meanwhile"] * 1000
    workers.board.busy(workers.board.active_seat(1))[0] = 0
    yield from ["page"] * 400


def a_worker_with_sessions_out_of_nowhere(workers: Workers) -> Iterator[str]:
    for _ in range(3):
        workers.board.give(workers.board.active_seat(1), 1000 * SESSION)
        yield from ["page"] * 400


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize(
    "requests", [in_a_row, in_turn, mixed, a_new_worker, a_worker_with_sessions_out_of_nowhere, a_worker_that_was_busy]
)
def test_any_run_is_spread(requests: Callable[[Workers], Iterator[str]], count: int):
    workers = Workers(count)
    served = [(kind, workers.serve(kind)) for kind in requests(workers)]
    sessions = [slot for kind, slot in served if kind == "session"]
    assert worst([slot for kind, slot in served if kind != "meanwhile"], count) <= MOST
    if sessions:
        assert worst(sessions, count) <= MOST


def test_a_busy_worker_gets_nothing():
    workers = Workers(4)
    workers.board.busy(workers.board.active_seat(1))[0] = 20
    assert {workers.serve() for _ in range(RUN)} == {0, 2, 3}


@pytest.mark.parametrize("slots", [2, 64, 1024])
def test_looking_at_loads_takes_no_longer_with_more_slots(slots: int, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(balancing, "LOOK", 0.001)
    workers = Workers(slots)
    for _ in range(RUN * 10):
        workers.serve()
        clock.now += 0.002
    assert workers.looks <= clock.now / 0.001 + slots


@pytest.mark.parametrize("count", [2, 8])
def test_between_two_looks_sessions_are_spread(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(balancing, "LOOK", 3600.0)
    workers = Workers(count)
    workers.serve()
    workers.board.busy(workers.board.active_seat(1))[0] = 20  # nobody looks
    assert worst([workers.serve() for _ in range(2 * RUN)], count) <= MOST
    assert workers.looks == count


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_a_worker_that_ends_gets_nothing_from_then_on(balance: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(balancing, "LOOK", 3600.0)
    workers = Workers(4, balance)
    assert {workers.serve() for _ in range(4)} == {0, 1, 2, 3}
    workers.board.close(workers.board.active_seat(2))
    assert {workers.serve() for _ in range(RUN)} == {0, 1, 3}
    for slot in (0, 1, 3):
        workers.board.close(workers.board.active_seat(slot))
    assert {workers.serve() for _ in range(RUN)} == {0, 1, 2, 3}


def share_while_slow(requests: int, done: int) -> float:
    """Return a worker's share of requests, of which it has done so many, when the three others have done all theirs."""
    workers = Workers(4)
    waiting = 0
    workers._route._channels.slots[1].queued = lambda: waiting  # type: ignore[method-assign]
    found = []
    for _ in range(requests):
        workers._route._look_at = 0.0
        slot = workers._slots[id(workers._route.channel("127.0.0.1"))]
        found.append(slot)
        if slot != 1:
            workers.board.give(workers.board.active_seat(slot), REQUEST)
        elif found.count(1) > done:
            waiting += 1
        else:
            workers.board.give(workers.board.active_seat(1), REQUEST)
    return found.count(1) / requests


def test_who_is_slow_for_a_moment_gets_its_share():
    """Others that are faster must not get what comes at once: it will stay with them."""
    assert share_while_slow(200, 10) > 0.23


def test_who_hangs_gets_no_more_after_a_while():
    assert share_while_slow(4000, 0) < 0.05


def test_garbage_in_shared_memory_ends_nobody():
    workers = Workers(4)
    workers.board._cells[boards._MOST] = 2**64 - 1
    workers.board._cells[boards._ROWS + boards._GIVEN] = 2**64 - 1
    # The others may be behind by so much, and catch up first.
    assert {workers.serve() for _ in range(4 * boards.LAG // boards.REQUEST)} == {0, 1, 2, 3}


# --- the real thing ---

BY = {
    "session": ("--sticky-by", "session", "--sticky-session-keys", "query:session_id"),
    "cookie": ("--sticky-by", "cookie"),
}


@pytest.fixture(params=BY)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(*STICKY, "-w", "4", "--keep-alive", "30", *BY[request.param], "sessions:app") as server:
        seen: set[int] = set()

        def everybody() -> bool:
            seen.add(ask(server))
            return len(seen) == 4

        wait_for(everybody, "all workers")
        yield server


def ask(server: Server, path: str = "/") -> int:
    return int(json.loads(server.get(path).body)["pid"])


def test_new_connections_after_a_burst_of_sessions(server: Server):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(server, "/new"), range(200)))
    assert worst([ask(server) for _ in range(RUN + 50)], 4) <= MOST


def test_a_kept_alive_connection_after_a_burst_of_sessions(server: Server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def serve(path: str) -> int:
        connection.request("GET", path)
        return int(json.loads(connection.getresponse().read())["pid"])

    for _ in range(60):
        serve("/new")
    found = []
    for n in range(RUN + 50):
        found.append(serve("/"))
        if n % 10 == 0:
            ask(server, "/new")
    connection.close()
    assert worst(found, 4) <= MOST
