"""When the role of the active master changes hands, with two halves of a board and a made-up clock."""

from __future__ import annotations

import pytest

from gunicorn_sticky.arbiter.succession import SHOW_UP, Succession
from gunicorn_sticky.shared.board import RUNNING, SEATS, STARTING, STOPPED, STOPPING, MasterBoard

SLOTS = 2


class Masters:
    """The old master, and the new one from the moment when it shows up."""

    def __init__(self) -> None:
        self.board = MasterBoard()
        self.board.slots = self.board.count = SLOTS
        self.old = Succession(self.board)

    def execute(self, now: float = 0.0) -> None:
        self.old.expect(now)

    def show_up(self) -> None:
        self.new_board = MasterBoard(self.board.fd, 1)
        self.new_board.slots = self.new_board.count = SLOTS
        self.new = Succession(self.new_board)

    def boot(self, slots: int = SLOTS) -> None:
        for slot in range(slots):
            self.new_board.take(slot * SEATS, 11 + slot, 1 + slot)
            self.new_board.activate(slot, slot * SEATS)

    def settle(self, now: float = 0.0) -> tuple[bool, bool]:
        """Let both look, and return which of them has become active."""
        return self.old.settle(now, True, False, SLOTS), self.new.settle(now, True, True, SLOTS)

    def active(self) -> str:
        assert self.board.is_active_master != self.new_board.is_active_master
        return "old" if self.board.is_active_master else "new"


@pytest.fixture
def masters() -> Masters:
    two = Masters()
    two.execute()
    two.show_up()
    return two


def test_the_new_one_is_active_once_all_its_slots_have_workers(masters: Masters):
    assert masters.settle() == (False, False)
    masters.boot(SLOTS - 1)
    assert masters.settle() == (False, False)
    masters.boot()
    assert masters.settle() == (False, True)
    assert masters.active() == "new"
    assert masters.settle() == (False, False)


def test_an_old_one_that_is_told_to_end_does_not_wait_for_that(masters: Masters):
    masters.board.phase = STOPPING
    masters.old.resign()
    assert masters.active() == "new"
    assert masters.settle() == (False, False)
    assert masters.active() == "new"


def test_a_new_one_that_ends_gives_it_back(masters: Masters):
    masters.boot()
    assert masters.settle() == (False, True)
    masters.new_board.phase = STOPPING
    masters.new.resign()
    assert masters.active() == "old"


def test_a_new_one_that_ends_does_not_give_it_to_one_that_has_been_told_to_end(masters: Masters):
    masters.boot()
    masters.settle()
    for board, succession in ((masters.board, masters.old), (masters.new_board, masters.new)):
        board.phase = STOPPING
        succession.resign()
        assert masters.settle() == (False, False)
        assert masters.active() == "new"


def test_whoever_is_left_is_active_and_clears_the_other_half(masters: Masters):
    masters.boot()
    masters.settle()
    masters.old.forget_other()  # the new one was killed
    assert masters.old.settle(0.0, False, False, SLOTS)
    assert masters.active() == "old"
    assert masters.old.other.phase == STOPPED
    assert not any(masters.old.other.owners())


def test_whoever_is_left_and_was_told_to_end_is_not_announced(masters: Masters):
    masters.boot()
    masters.settle()
    masters.board.phase = STOPPING
    masters.old.forget_other()
    assert not masters.old.settle(0.0, False, False, SLOTS)
    assert masters.active() == "old"


def test_a_new_one_that_never_shows_up():
    masters = Masters()
    masters.execute(now=100.0)
    assert masters.old.other.phase == STARTING
    masters.old.settle(100.0 + SHOW_UP, True, False, SLOTS)
    assert masters.old.other.goes_on
    masters.old.settle(100.1 + SHOW_UP, True, False, SLOTS)
    assert not masters.old.other.goes_on


def test_a_new_one_that_has_shown_up_may_boot_for_as_long_as_it_takes(masters: Masters):
    masters.settle(now=10 * SHOW_UP)
    assert masters.old.other.phase == RUNNING
