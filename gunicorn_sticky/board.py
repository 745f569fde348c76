"""What arbiter, dispatcher and workers tell each other at any time: a table in shared memory.

Each cell has one writer, and is written in one piece. A row is a *seat*: a slot has a few of them, because a worker
that drains keeps its sessions while its successor is there already.
"""

from __future__ import annotations

import mmap

#: Seats of a slot.
SEATS = 3
MAX_SLOTS = 1024

#: The cells of a row; the fourth is only used in the first row, for the number of slots.
_OWNER, _OPEN, _ACTIVE, _SLOTS = range(4)
_ROW = 4


class Board:
    """The table. Create it before forking."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, MAX_SLOTS * SEATS * _ROW * 8)).cast("Q")

    @property
    def slots(self) -> int:
        """How many slots there have been at most."""
        return self._cells[_SLOTS]

    @slots.setter
    def slots(self, count: int) -> None:
        self._cells[_SLOTS] = count

    def take(self, seat: int, owner: int) -> None:
        """Give a seat to a worker (the arbiter does)."""
        self._cells[seat * _ROW + _OPEN] = 0
        self._cells[seat * _ROW + _ACTIVE] = 0
        self._cells[seat * _ROW + _OWNER] = owner

    def leave(self, seat: int) -> None:
        """Take a seat from a worker that is gone (the arbiter does)."""
        self._cells[seat * _ROW + _OWNER] = 0
        self._cells[seat * _ROW + _OPEN] = 0

    def owners(self) -> list[int]:
        """Return the numbers of the workers, by seat, with 0 for nobody."""
        return self._cells[_OWNER : self.slots * SEATS * _ROW : _ROW].tolist()

    def seat_of(self, owner: int) -> int | None:
        """Return the seat of a worker, or None if it is gone."""
        try:
            return self.owners().index(owner)
        except ValueError:
            return None

    def set_open(self, seat: int, is_open: bool) -> None:
        """Say whether new sessions are welcome (the worker does)."""
        self._cells[seat * _ROW + _OPEN] = is_open

    def is_open(self, slot: int) -> bool:
        """Tell whether a slot has a worker that takes new sessions."""
        first = slot * SEATS * _ROW + _OPEN
        return any(self._cells[first : first + SEATS * _ROW : _ROW])

    def set_active(self, seat: int, count: int) -> None:
        """Say how many connections have a request under way (the worker does)."""
        self._cells[seat * _ROW + _ACTIVE] = count

    def active(self, slot: int) -> int:
        """Return how many requests are under way in the worker of a slot that takes new sessions."""
        first = slot * SEATS * _ROW
        for row in range(first, first + SEATS * _ROW, _ROW):
            if self._cells[row + _OPEN]:
                return self._cells[row + _ACTIVE]
        return 0
