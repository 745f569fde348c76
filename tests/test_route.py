"""Where a connection goes, of two masters, and what of it is routed again: decisions without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gunicorn_sticky.dispatcher.balancing import Channels, Half, SessionRoute
from gunicorn_sticky.dispatcher.tracing import destination
from gunicorn_sticky.routing.affinity import Affinity
from gunicorn_sticky.routing.key import Key, Owner
from gunicorn_sticky.shared.board import RUNNING, SEATS, STARTING, STOPPED, STOPPING, Board
from gunicorn_sticky.shared.channel import Channel

SLOTS = 2


class Rig:
    """The boards of two masters, and the old one's route. Worker n has the first seat of a slot."""

    def __init__(self) -> None:
        self.board = Board()
        self.other = self.board.other()
        self.other.phase = RUNNING
        for board, first in ((self.board, 1), (self.other, 11)):
            board.slots = board.count = SLOTS
            for slot in range(SLOTS):
                board.take(slot * SEATS, first + slot, 1 + slot)
                board.activate(slot, slot * SEATS)
        slots, seats, others = ([Channel() for _ in range(count)] for count in (SLOTS, SLOTS * SEATS, SEATS))
        self.channels = Channels(slots, seats, others, Channel())
        self.route = SessionRoute(self.channels, bytes(16), Affinity(by="session"), self.board, self.other)

    def close(self) -> None:
        for channel in (*self.channels.slots, *self.channels.seats, *self.channels.others, self.channels.returns):
            channel.close()

    def goes_to(self, key: Key) -> str:
        channel = self.route.channel(key)
        for name in ("slots", "seats", "others"):
            if channel in getattr(self.channels, name):
                return name
        assert channel is self.channels.returns
        return "returns"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.closing(Rig()) as one:
        yield one


@pytest.mark.parametrize(
    ("key", "in_charge", "otherwise"),
    [
        (Owner(1), "seats", "seats"),
        (Owner(11), "others", "others"),
        (Owner(12), "slots", "returns"),  # what leads there is not known
        (Owner(99), "slots", "returns"),
        ("127.0.0.1", "slots", "returns"),
        ("1", "slots", "returns"),  # text is no number of a worker
    ],
)
def test_sessions_of_both_masters(key: Key, in_charge: str, otherwise: str, rig: Rig):
    assert rig.goes_to(key) == in_charge
    rig.other.become_active_master()
    assert rig.goes_to(key) == otherwise
    rig.other.phase = STOPPING
    assert rig.goes_to(key) == in_charge  # nobody takes it back


@pytest.mark.parametrize(
    ("key", "is_active", "where"),
    [
        (Owner(2), True, "the session's worker in seat 3 (slot 1)"),
        (Owner(11), True, "the session's worker, which is another master's"),
        (Owner(99), True, "slot 0 (the session's worker is gone, least-connections)"),
        (Owner(99), False, "the other master, which accepts connections now"),
        ("127.0.0.1", True, "slot 0 (a new session, least-connections)"),
    ],
)
def test_the_log_says_where_and_why(key: Key, is_active: bool, where: str, rig: Rig):
    if not is_active:
        rig.other.become_active_master()
    assert destination(Affinity(by="session"), rig.channels, rig.route.channel(key), key) == where


def test_the_channels_of_a_master_lead_to_nobody_once_another_one_has_its_half(rig: Rig):
    rig.board.other().clear()
    assert rig.goes_to(Owner(11)) == "slots"
    assert list(rig.route.halves[1].deserted()) == rig.channels.others
    successor = rig.board.other()
    successor.slots = SLOTS
    successor.take(0, 11, 1)
    successor.activate(0, 0)
    assert rig.goes_to(Owner(11)) == "slots"
    assert list(rig.route.halves[1].deserted()) == rig.channels.others


def test_seats_of_nobody_and_of_workers_without_sessions(rig: Rig):
    half, seats = Half(rig.board, rig.channels.seats), rig.channels.seats
    assert list(half.deserted()) == [seats[n] for n in range(SLOTS * SEATS) if n % SEATS]
    rig.board.leave(0)
    assert seats[0] in half.deserted()
    rig.board.take(0, 3, 3)
    assert seats[0] in half.deserted()
    rig.board.activate(0, 0)
    assert seats[0] not in half.deserted()
    rig.board.close(0)
    assert seats[0] not in half.deserted()


def test_what_is_left_of_a_dead_master_does_not_write_on_the_next_ones_half(rig: Rig):
    left, changes = rig.other, rig.other.changes
    rig.board.other().clear()
    new = rig.board.other()
    assert (new.phase, new.slots, new.owners(), new.is_current, left.is_current) == (STOPPED, 0, [], True, False)
    assert new.changes > changes
    new.phase, new.slots = STARTING, SLOTS
    new.take(0, 21, 1)
    new.activate(0, 0)
    left.activate(0, 1)
    left.close(0)
    assert new.active_seat(0) == 0
    assert new.is_open(0)
    assert new.goes_on


def test_a_board_is_clear_for_the_other_master():
    board = Board()
    assert board.goes_on
    assert board.is_active_master
    assert not board.other().goes_on
