"""What a worker takes from its inboxes, and until when it stays for that: decisions, without a server or a clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gunicorn_sticky.shared.board import RUNNING, STOPPED, STOPPING
from gunicorn_sticky.workers.drain import QUIET, Intake

LAST_CALL = 30.0


class Worker:
    """A worker's place, and its two inboxes."""

    def __init__(self, phase: int = RUNNING, *, is_active_master: bool = True) -> None:
        self.is_active = True
        self.last_served = 0.0
        self.is_orphan = False
        self.board = SimpleNamespace(phase=phase, is_active_master=is_active_master)
        self.slots, self.own = (self.intake(is_own=is_own) for is_own in (False, True))

    def intake(self, *, is_own: bool) -> Intake:
        seat = cast("Any", SimpleNamespace(board=self.board, is_active=lambda: self.is_active))
        return Intake(
            seat,
            is_own=is_own,
            last_call=LAST_CALL,
            last_served=lambda: self.last_served,
            is_orphan=lambda: self.is_orphan,
        )


def test_the_slots_connections_are_the_active_workers():
    worker = Worker()
    assert worker.slots.may_take()
    worker.is_active = False
    assert not worker.slots.may_take()
    assert worker.own.may_take()


def test_who_drains_leaves_the_slots_connections_to_its_successor():
    worker = Worker()
    worker.slots.drain(100.0)
    assert not worker.slots.goes_on(100.0)
    assert not worker.slots.may_take()  # although its successor may still boot


def test_who_drains_stays_until_its_sessions_are_quiet():
    worker = Worker()
    worker.last_served = 99.0
    worker.own.drain(100.0)
    assert worker.own.may_take()
    assert worker.own.goes_on(100.0 + QUIET - 0.1)
    worker.last_served = 102.0
    assert worker.own.goes_on(102.0 + QUIET - 0.1)
    assert not worker.own.goes_on(102.0 + QUIET + 0.1)
    assert worker.own.may_take()  # for as long as it lives


@pytest.mark.parametrize("phase", [RUNNING, STOPPING])
def test_who_has_lost_its_master_stays_for_nothing(phase: int):
    worker = Worker(phase)
    for intake in (worker.slots, worker.own):
        intake.drain(100.0)
    worker.is_orphan = True
    assert not worker.slots.goes_on(100.1)
    assert not worker.own.goes_on(100.1)


def test_a_server_that_ends_has_nothing_for_who_is_not_its_slots_worker_any_more():
    worker = Worker(STOPPING)
    worker.slots.drain(100.0)
    assert worker.slots.goes_on(100.0)
    worker.is_active = False  # it looks, and takes nothing
    assert not worker.slots.goes_on(100.1)
    worker.own.drain(100.0)
    assert worker.own.goes_on(100.1)


def test_a_server_that_ends_takes_the_rest():
    worker = Worker(STOPPING)
    for intake in (worker.slots, worker.own):
        intake.drain(100.0)
        for now in (100.0, 101.0):
            assert intake.goes_on(now)
            assert intake.may_take()
            intake.took_all()  # more may still come
        worker.board.phase = STOPPED
        assert intake.goes_on(102.0)  # once more: what came between the last look and the end of the dispatcher
        intake.took_all()
        assert not intake.goes_on(103.0)
        worker.board.phase = STOPPING


def test_what_came_while_it_looked_is_seen_by_the_next_look():
    worker = Worker(STOPPING)
    worker.slots.drain(100.0)
    assert worker.slots.goes_on(100.0)
    worker.board.phase = STOPPED  # after the look has begun
    worker.slots.took_all()
    assert worker.slots.goes_on(100.1)


def test_who_could_not_look_looks_again():
    """There were no descriptors left, or no thread."""
    worker = Worker(STOPPED)
    worker.slots.drain(100.0)
    assert worker.slots.goes_on(100.0)
    assert worker.slots.goes_on(100.1)


def test_the_rest_is_not_waited_for_for_ever():
    worker = Worker(STOPPING)
    worker.slots.drain(100.0)
    assert worker.slots.goes_on(100.0 + LAST_CALL - 0.1)
    assert not worker.slots.goes_on(100.0 + LAST_CALL + 0.1)


@pytest.mark.parametrize("phase", [STOPPING, STOPPED])
def test_sessions_go_on_if_another_master_accepts(phase: int):
    worker = Worker(phase, is_active_master=False)
    worker.own.drain(100.0)
    assert not worker.own.is_last_call
    assert worker.own.goes_on(100.0 + QUIET - 0.1)
    assert not worker.own.goes_on(100.0 + QUIET + 0.1)
