"""The share of requests without a session, without a server: what workers have been given in, a decision out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from support.spread import MOST, worst

from gunicorn_sticky.shared import board as boards
from gunicorn_sticky.shared.board import REQUEST, SEATS, Board
from gunicorn_sticky.shared.metrics import Counter
from gunicorn_sticky.workers.share import FAR, MEMORY, PAUSE, SLACK, Share


class Crew:
    """Workers of some slots, and connections that stay open, of which each leads to one of them."""

    def __init__(self, slots: int, rate: float) -> None:
        self.board = Board()
        self.board.slots = self.board.count = slots
        self.requests = [Counter(memoryview(bytearray(8)).cast("Q")) for _ in range(slots)]
        #: The clock, in seconds, and how often a request comes.
        self.now, self.rate = 1000.0, rate
        self.passed_on = 0
        #: The slot that was chosen last.
        self.last = 0
        for slot in range(slots):
            self.board.take(slot * SEATS, 1 + slot, 1)
            self.board.activate(slot, slot * SEATS)
        self.shares = [Share(self.board, slot * SEATS, self.requests[slot], lambda: self.now) for slot in range(slots)]

    def serve(self, slot: int) -> int:
        """Let a request come to a worker, and return the slot of the one that serves it."""
        self.now += 1 / self.rate
        if self.shares[slot].is_exceeded():
            self.shares[slot].passed_on()
            self.passed_on += 1
            slot = self.choose()
        self.requests[slot].inc()
        self.board.give(slot * SEATS, REQUEST)
        return slot

    def choose(self) -> int:
        """Return where the dispatcher would send it: to the least busy one, of equal ones in turn."""
        turns = sorted(range(self.board.slots), key=lambda slot: (slot - self.last - 1) % self.board.slots)
        self.last = min(filter(self.board.is_open, turns), key=self.board.load)
        return self.last

    def serve_all(self, connections: list[int], turns: Iterator[int]) -> list[int]:
        """Let requests come by connections, and return who has served them."""
        found = []
        for turn in turns:
            connections[turn] = self.serve(connections[turn])
            found.append(connections[turn])
        return found


def the_same(connections: int, requests: int) -> Iterator[int]:
    yield from [0] * requests


def any_of_them(connections: int, requests: int) -> Iterator[int]:
    chance = random.Random(1)
    yield from (chance.randrange(connections) for _ in range(requests))


def the_last_ones_first(connections: int, requests: int) -> Iterator[int]:
    """As a proxy uses the connections that it keeps: again and again those that have just come free."""
    chance, free = random.Random(1), list(range(connections))
    for _ in range(requests):
        turn = free.pop(-1 - min(int(chance.expovariate(1)), connections - 1))
        yield turn
        free.append(turn)


Turns = Callable[[int, int], Iterator[int]]
TURNS: list[Turns] = [the_same, any_of_them, the_last_ones_first]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("slots", [2, 4])
@pytest.mark.parametrize("rate", [1, 100, 1000])
def test_any_run_is_spread_however_long_it_goes_on(turns: Turns, slots: int, rate: float):
    crew, connections = Crew(slots, rate), [0] * 16
    assert worst(crew.serve_all(connections, turns(16, 20_000))[200:], slots) <= MOST


@pytest.mark.parametrize("slots", [2, 4])
def test_of_many_requests_few_are_passed_on(slots: int):
    crew, connections = Crew(slots, 10_000.0 * slots), [n % slots for n in range(16)]
    found = crew.serve_all(connections, any_of_them(16, 100_000))
    assert crew.passed_on < 0.002 * len(found)
    assert max(map(found.count, range(slots))) < 1.05 * len(found) / slots


@pytest.mark.parametrize("split", [(16, 0), (10, 6), (9, 7)])
def test_connections_that_are_shared_out_badly_are_shared_out_well_before_long(split: tuple[int, int]):
    crew = Crew(2, 2000)
    connections = [slot for slot, count in enumerate(split) for _ in range(count)]
    crew.serve_all(connections, any_of_them(16, 2000))
    assert 6 <= connections.count(0) <= 10
    assert crew.passed_on < 100


def test_never_more_often_than_every_so_many_seconds():
    """A worker may be busier than others for as long as its WebSockets last."""
    crew = Crew(4, 100_000)
    crew.board.busy(0)[0] = 1000
    for _ in range(10_000):
        crew.serve(0)
    assert 0 < crew.passed_on <= 10_000 / crew.rate / PAUSE + 1


def test_who_was_behind_does_not_catch_up():
    crew = Crew(2, 100)
    for _ in range(1000):
        crew.requests[0].inc()
        crew.board.give(0, REQUEST)
        crew.shares[1].is_exceeded()
        crew.now += 1 / crew.rate
    found = [crew.serve(1) for _ in range(20)]
    assert found.index(0) <= 10 * SLACK / REQUEST


def test_who_is_alone_keeps_all():
    crew = Crew(2, 1000)
    crew.board.close(SEATS)
    assert crew.serve_all([0], the_same(1, 1000)) == [0] * 1000
    assert crew.passed_on == 0


def test_a_slot_more_and_another_worker_in_a_slot():
    crew = Crew(2, 1000)
    crew.serve_all([0], the_same(1, 100))
    crew.board.take(SEATS + 1, 9, 9)
    crew.board.activate(1, SEATS + 1)
    crew.board.slots = crew.board.count = 3
    crew.serve_all([0], the_same(1, 10))
    assert crew.serve_all([0], the_same(1, 100)).count(1) > 20


@pytest.mark.parametrize("garbage", [0, 1, (1 << 62) - 1, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("cell", [boards._GIVEN, boards._SKIPPED, boards._BUSY])
@pytest.mark.parametrize("slot", [0, 1])
def test_after_garbage_in_shared_memory_all_is_well_before_long(garbage: int, cell: int, slot: int):
    crew = Crew(2, 1000)
    crew.serve_all([0], the_same(1, 1000))
    crew.board._cells[boards._ROWS + slot * SEATS * boards._ROW + cell] = garbage
    if cell == boards._BUSY:
        crew.serve_all([0], the_same(1, 100))
        crew.board.busy(slot * SEATS)[0] = 0  # as its worker says with its next request
    crew.serve_all([0], the_same(1, FAR + int(60 * MEMORY * crew.rate)))
    assert worst(crew.serve_all([0], the_same(1, 1000)), 2) <= MOST
