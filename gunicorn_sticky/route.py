"""From a key to the channel of the worker that is to serve it: by hash, or by session.

Every slot has a channel, which whoever works there takes connections from. By session, each seat (see board.py) has one
of its own as well, for the requests of the sessions that its worker has minted.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from .affinity import Affinity
from .board import REQUEST, Board
from .channel import Channel
from .slots import Slots


@dataclass(frozen=True)
class Channels:
    """All that leads to workers."""

    #: One a slot.
    slots: Sequence[Channel]
    #: By session, one a seat, `board.SEATS` to a slot, also of slots that are no more.
    seats: Sequence[Channel]
    #: The seats of the other master, as far as they are known.
    others: Sequence[Channel]
    #: Leads to the dispatcher in charge.
    returns: Channel


class HashRoute:
    """The same key, the same slot."""

    def __init__(self, channels: Channels, secret: bytes) -> None:
        self._channels = channels.slots
        self._slots = Slots(secret, len(channels.slots))
        #: Returns where a connection with a key goes.
        self.channel = functools.lru_cache(maxsize=4096)(self._channel)

    def _channel(self, key: str) -> Channel:
        return self._channels[self._slots.slot_of(key)]


class SessionRoute:
    """The owner of the session, or for a new one the slot that the balance chooses."""

    def __init__(self, channels: Channels, secret: bytes, affinity: Affinity, board: Board) -> None:
        self._channels = channels
        self._slots = Slots(secret, len(channels.slots))
        self._board = board
        self._other = board.other()
        self._choose = {
            "least-connections": self._least,
            "round-robin": self._next,
            "hash": self._hash,
        }[affinity.balance]
        self._last = -1
        #: Heap of the slots that take new sessions, each with its load and its turn.
        self._loads: list[tuple[int, int, int]] | None = None

    def channel(self, key: str) -> Channel:
        """Return where a connection with this key goes: the owner's number, or a new client's address."""
        if key.isdecimal():
            owner, channels = int(key), self._channels
            for board, seats in ((self._board, channels.seats), (self._other, channels.others)):
                seat = board.seat_of(owner)
                if seat is None:
                    continue
                if seat < len(seats):
                    return seats[seat]
                if not self._board.in_charge:
                    return channels.returns  # only the other master knows the way
        return self._channels.slots[self._choose(key)]

    def look_again(self) -> None:
        """Balance by what the workers say now; until then, by that and what has been sent to them."""
        self._loads = None

    def _in_turn(self) -> list[int]:
        """Return the slots that take new sessions, beginning after the one chosen last."""
        count = len(self._channels.slots)
        turn = [(self._last + 1 + n) % count for n in range(count)]
        return [slot for slot in turn if self._board.is_open(slot)] or turn

    def _next(self, key: str) -> int:
        self._last = self._in_turn()[0]
        return self._last

    def _least(self, key: str) -> int:
        if self._loads is None:
            # In order of loads, and of turns; a list that is sorted is a heap.
            self._loads = sorted((self._load(slot), turn, slot) for turn, slot in enumerate(self._in_turn()))
        load, turn, self._last = self._loads[0]
        heapq.heapreplace(self._loads, (load + REQUEST, turn + len(self._loads), self._last))
        return self._last

    def _load(self, slot: int) -> int:
        """Return how busy a slot's worker is, or will be when it has taken what waits for it."""
        return self._board.load(slot) + self._channels.slots[slot].queued() * REQUEST

    def _hash(self, key: str) -> int:
        return self._slots.slot_of(key)
