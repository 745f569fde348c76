"""From a key to the channel of the worker that is to serve it: by hash, or by session.

Every slot has a channel, which whoever works there takes connections from. By session, each seat (see board.py) has one
of its own as well, for the requests of the sessions that its worker has minted.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..routing.affinity import Affinity
from ..routing.hashing import Slots
from ..routing.key import Key
from ..shared.board import LOOK, REQUEST, Board
from ..shared.channel import Channel


@dataclass(frozen=True)
class Channels:
    """All that leads to workers."""

    #: One a slot.
    slots: Sequence[Channel]
    #: By session, one a seat, `board.SEATS` to a slot, also of slots that are no more.
    seats: Sequence[Channel]
    #: The same of the other master, as far as they are known.
    others: Sequence[Channel]
    #: Leads to the dispatcher of the active master.
    returns: Channel


@dataclass(frozen=True)
class Half:
    """The seats of one of two masters, and what leads there."""

    board: Board
    channels: Sequence[Channel]

    def channel(self, owner: int) -> Channel | None:
        """Return what leads to a worker, or None if the worker is gone, or what leads to it is not known here."""
        seat = self.board.seat_of(owner)
        if seat is None or seat >= len(self.channels) or not self.board.is_current:
            return None
        return self.channels[seat]

    def deserted(self) -> Iterator[Channel]:
        """Yield what leads to nobody: the channels of seats that no worker has, or whose worker has no sessions yet."""
        owners = self.board.owners() if self.board.is_current else []
        for seat, channel in enumerate(self.channels):
            if seat >= len(owners) or not owners[seat] or self.board.is_booting(seat):
                yield channel


class HashRoute:
    """The same key, the same slot."""

    def __init__(self, channels: Channels, secret: bytes) -> None:
        self._channels = channels.slots
        self._slots = Slots(secret, len(channels.slots))
        #: Returns where a connection with a key goes.
        self.channel = functools.lru_cache(maxsize=4096)(self._channel)

    def _channel(self, key: Key) -> Channel:
        return self._channels[self._slots.slot_of(str(key))]


class SessionRoute:
    """The owner of the session, or for a new one the slot that the balance chooses.

    Args:
        board: the own half
        other: that of the other master
    """

    def __init__(self, channels: Channels, secret: bytes, affinity: Affinity, board: Board, other: Board) -> None:
        self._channels = channels
        self._slots = Slots(secret, len(channels.slots))
        self._board = board
        self.halves = Half(board, channels.seats), Half(other, channels.others)
        self._choose = {
            "least-connections": self._least,
            "round-robin": self._next,
            "hash": self._hash,
        }[affinity.balance]
        self._last = -1
        #: Heap of the slots that take new sessions, each with its load and its turn.
        self._loads: list[tuple[int, int, int]] = []
        #: When to look at the loads again.
        self._look_at = 0.0

    def channel(self, key: Key) -> Channel:
        """Return where a connection with this key goes: the owner's number, or a new client's address."""
        if isinstance(key, int):
            for half in self.halves:
                channel = half.channel(key)
                if channel is not None:
                    return channel
        if not self._board.is_active_master and self.halves[1].board.goes_on:
            return self._channels.returns  # new sessions are the other master's, and it may know the way to others
        return self._channels.slots[self._choose(key)]

    def _turn(self) -> Iterator[int]:
        """Return all slots, beginning after the one chosen last."""
        count = len(self._channels.slots)
        return (slot % count for slot in range(self._last + 1, self._last + 1 + count))

    def _next(self, key: Key) -> int:
        self._last = next(filter(self._board.is_open, self._turn()), next(self._turn()))
        return self._last

    def _least(self, key: Key) -> int:
        now = time.monotonic()
        if now >= self._look_at or not self._board.is_open(self._loads[0][2]):
            self._look_at = now + LOOK * len(self._channels.slots)
            self._look()
        load, turn, self._last = self._loads[0]
        heapq.heapreplace(self._loads, (load + REQUEST, turn + len(self._loads), self._last))
        return self._last

    def _look(self) -> None:
        """Balance by what the workers say now; until the next look, by that and what has been sent to them."""
        slots = list(filter(self._board.is_open, self._turn())) or self._turn()
        # In order of loads, and of turns; a list that is sorted is a heap.
        self._loads = sorted((self._load(slot), turn, slot) for turn, slot in enumerate(slots))

    def _load(self, slot: int) -> int:
        """Return how busy a slot's worker is, or will be when it has taken what waits for it."""
        return self._board.load(slot, self._channels.slots[slot].queued())

    def _hash(self, key: Key) -> int:
        return self._slots.slot_of(str(key))
