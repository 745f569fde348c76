"""For how long a slot has no worker, as the dispatcher counts it: decisions alone, without a server."""

from __future__ import annotations

import pytest

from gunicorn_sticky.dispatcher.vacancies import Vacancies
from gunicorn_sticky.shared.board import SEATS, Board

SLOT = 1
SEAT = SLOT * SEATS


@pytest.fixture
def board() -> Board:
    board = Board()
    board.slots = 2
    return board


def test_the_clock_runs_while_nobody_is_there(board: Board):
    vacancies = Vacancies(board)
    assert [vacancies.look(SLOT, 1.0) for _ in range(4)] == [(n, False) for n in range(4)]


def test_the_clock_stands_still_while_a_worker_boots(board: Board):
    vacancies = Vacancies(board)
    vacancies.look(SLOT, 1.0)
    vacancies.look(SLOT, 1.0)
    board.take(SEAT, 5, 1)
    assert vacancies.look(SLOT, 1.0) == (2.0, False)
    assert [vacancies.look(SLOT, 1.0) for _ in range(100)] == [(2.0, True)] * 100
    board.leave(SEAT)
    assert vacancies.look(SLOT, 1.0) == (3.0, False)


def test_the_clock_begins_anew_when_a_worker_is_ready(board: Board):
    vacancies = Vacancies(board)
    for _ in range(5):
        vacancies.look(SLOT, 1.0)
    board.take(SEAT, 5, 1)
    board.activate(SLOT, SEAT)
    assert vacancies.look(SLOT, 1.0) == (0.0, False)
    board.leave(SEAT)
    assert vacancies.look(SLOT, 1.0) == (0.0, False)


def test_workers_that_die_while_they_boot_do_not_stop_the_clock(board: Board):
    vacancies = Vacancies(board)
    for number in range(1, 11):
        board.take(SEAT + number % SEATS, number, number)
        waited, boots = vacancies.look(SLOT, 1.0)
        board.leave(SEAT + number % SEATS)
        assert not boots
    assert waited == 9.0


def test_a_worker_that_boots_elsewhere_counts_for_nothing(board: Board):
    vacancies = Vacancies(board)
    board.take(0, 5, 1)
    board.take(SEAT, 6, 2)
    board.activate(SLOT, SEAT)
    board.close(SEAT)  # it drains
    assert [vacancies.look(SLOT, 1.0) for _ in range(3)] == [(0.0, False), (1.0, False), (2.0, False)]
