"""Who is started, seated and dismissed, with a made-up crew and no process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from gunicorn_sticky.arbiter.crew import RESPAWN, Crew
from gunicorn_sticky.shared.board import SEATS, MasterBoard

SLOTS = 3
_ages: Iterator[int] = count(1)


@dataclass
class Made:
    """A worker that is not there."""

    slot: int
    seat: int
    alive: bool = True
    leaving: bool = False
    age: int = field(default_factory=lambda: next(_ages))
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        self.pid = 1000 + self.age


class Rig:
    """A master's crew, without the master."""

    def __init__(self) -> None:
        self.board = MasterBoard()
        self.board.slots = self.board.count = SLOTS
        self.workers: list[Made] = []
        self.crew = Crew(self.board, lambda: self.workers)

    def start(self, slot: int, now: float = 0.0) -> Made:
        seat, victim = self.crew.place(slot)
        if victim:
            self.end(next(worker for worker in self.workers if worker is victim))
        worker = Made(slot, seat)
        self.board.take(seat, worker.age, worker.age)
        self.crew.starts(slot, now)
        self.workers.append(worker)
        return worker

    def boot(self, slot: int, now: float = 0.0) -> Made:
        worker = self.start(slot, now)
        self.board.activate(slot, worker.seat)
        return worker

    def end(self, worker: Made) -> None:
        self.workers.remove(worker)
        self.crew.ended(worker)
        self.crew.vacate()

    def drain(self, worker: Made) -> None:
        worker.alive = False
        self.board.close(worker.seat)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def needy(rig: Rig, now: float = 0.0) -> list[int]:
    return [slot for slot in range(SLOTS) if rig.crew.needs_worker(slot, now)]


def test_each_slot_has_one(rig: Rig):
    assert needy(rig) == [0, 1, 2]
    rig.start(1)
    assert needy(rig, RESPAWN) == [0, 2]  # one that boots is enough
    rig.boot(0)
    rig.boot(2)
    assert needy(rig, RESPAWN) == []


def test_who_dies_is_replaced_at_once(rig: Rig):
    worker = rig.boot(0, now=10.0)
    assert not rig.crew.needs_worker(0, 10.0)
    rig.end(worker)
    assert rig.crew.needs_worker(0, 10.0)


def test_who_dies_while_it_boots_is_replaced_after_a_moment(rig: Rig):
    rig.end(rig.start(0, now=10.0))
    assert not rig.crew.needs_worker(0, 10.0)
    assert not rig.crew.needs_worker(0, 10.0 + RESPAWN - 0.1)
    assert rig.crew.needs_worker(0, 10.0 + RESPAWN)


def test_who_is_told_to_end_while_it_boots_is_no_failure(rig: Rig):
    worker = rig.start(0, now=10.0)
    worker.alive = False
    rig.end(worker)
    assert rig.crew.needs_worker(0, 10.0)


def test_who_leaves_goes_on_until_there_is_a_successor(rig: Rig):
    old = rig.boot(0)
    old.leaving = True
    assert rig.crew.needs_worker(0, RESPAWN)
    new = rig.start(0)
    assert not rig.crew.needs_worker(0, RESPAWN)
    assert rig.crew.superfluous(SLOTS) == []
    rig.board.activate(0, new.seat)
    assert rig.crew.superfluous(SLOTS) == [old]


def test_who_leaves_waits_while_another_one_drains(rig: Rig):
    drains = rig.boot(0)
    rig.drain(drains)
    leaves = rig.boot(0)
    leaves.leaving = True
    assert not rig.crew.needs_worker(0, RESPAWN)
    rig.end(drains)
    assert rig.crew.needs_worker(0, RESPAWN)


def test_who_has_an_older_configuration_goes_on_until_there_is_a_successor(rig: Rig):
    old = rig.boot(0)
    rig.crew.outdate(old.age)
    new = rig.start(0, now=10.0)
    assert not rig.crew.needs_worker(0, 20.0)
    rig.end(new)  # while it boots
    assert not rig.crew.needs_worker(0, 10.0)
    assert rig.crew.needs_worker(0, 10.0 + RESPAWN)
    assert rig.crew.superfluous(SLOTS) == []
    rig.boot(0, now=11.0)
    assert rig.crew.superfluous(SLOTS) == [old]
    rig.end(old)
    assert not rig.crew.needs_worker(0, 20.0)


def test_of_two_that_boot_the_older_one_goes(rig: Rig):
    first, second = rig.start(0), rig.start(0)
    assert rig.crew.superfluous(SLOTS) == [first]
    rig.board.activate(0, second.seat)
    assert rig.crew.superfluous(SLOTS) == [first]


def test_a_slot_with_nobody_who_takes_always_gets_a_worker(rig: Rig):
    for _ in range(SEATS):
        rig.drain(rig.boot(0))
        assert rig.crew.needs_worker(0, RESPAWN)


def test_slots_that_are_no_more(rig: Rig):
    workers = [rig.boot(slot) for slot in range(SLOTS)]
    assert rig.crew.superfluous(1) == workers[1:]
    assert [rig.board.active_seat(slot) for slot in range(SLOTS)] == [0, -1, -1]


def test_the_next_one_is_for_the_slot_with_the_oldest(rig: Rig):
    rig.boot(2)
    rig.boot(0)
    assert rig.crew.neediest(SLOTS) == 1
    rig.boot(1)
    assert rig.crew.neediest(SLOTS) == 2
    rig.workers[1].alive = False
    assert rig.crew.neediest(SLOTS) == 0


def test_seats_of_a_slot_are_its_own_and_used_again(rig: Rig):
    rig.boot(0)
    first = rig.boot(1)
    assert first.seat == SEATS
    second = rig.boot(1)
    assert second.seat == SEATS + 1
    rig.end(first)
    assert rig.boot(1).seat == SEATS


def test_who_serves_nobody_yet_is_killed_first_for_a_seat(rig: Rig):
    drains, takes, boots = rig.boot(0), rig.boot(0), rig.start(0)
    rig.drain(drains)
    assert rig.crew.place(0).victim is boots
    rig.end(boots)
    rig.boot(0)  # takes over
    assert rig.crew.place(0).victim is drains
    assert takes in rig.workers
