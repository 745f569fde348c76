"""What arbiter, dispatcher and workers tell each other at any time: a table in shared memory.

Each cell is written in one piece. There are two halves, for the two masters that there are during an upgrade (SIGUSR2).
A half has a row for each *seat*: a slot has a few of them, because a worker that drains keeps its sessions while its
successor is there already.
"""

from __future__ import annotations

import mmap
import os

from . import __version__

#: What /proc shows of the memory, for whoever looks for it.
NAME = f"gunicorn-sticky-board-{__version__}"
#: Seats of a slot.
SEATS = 3
MAX_SLOTS = 1024

#: What a half is at: `phase`. STOPPED is also that of a half without a master.
STOPPED, STARTING, RUNNING, STOPPING = range(4)
#: What a worker is at, in its seat.
_BOOTING, _READY, _LEFT = range(3)

#: What adds to a worker's load: a request that is under way, or one without a session that it has been given; and a new
#: session. The requests are what is to be spread, so sessions only turn the scale: if each came after a request that
#: begins none, such as for a page, one worker of two would get all pages, and the other one all sessions.
REQUEST, SESSION = 4, 1
#: By how much a worker may be behind with what it has been given; beyond, it has nothing to catch up on.
LAG = 4 * REQUEST
#: More than anybody will have been given, and than which no garbage counts for more.
_ENOUGH = 1 << 62

# The first cell of all says which half is in charge. A half has a few cells of its own, a cell for each slot, with the
# seat, plus one, of the worker that takes its connections, and a row for each seat.
_SLOTS, _COUNT, _PHASE, _MOST, _CHANGES, _GENERATION, _TAKERS = range(7)
_ROWS = _TAKERS + MAX_SLOTS
_OWNER, _AGE, _STATE, _ACTIVE, _GIVEN, _ROW = range(6)
_HALF = _ROWS + MAX_SLOTS * SEATS * _ROW


class Board:
    """One half of the table, for one master and its children. Create it before forking.

    A half is used again by another master when its own has ended. `is_current` tells an object that was made before.

    Args:
        fd: the memory of a table that is there already; else a new one is made
        half: 0 or 1
    """

    def __init__(self, fd: int | None = None, half: int = 0) -> None:
        size, is_new = (1 + 2 * _HALF) * 8, fd is None
        if fd is None:
            fd = os.memfd_create(NAME)
            os.ftruncate(fd, size)
        #: The descriptor of the memory.
        self.fd = fd
        self.half = half
        self._all = memoryview(mmap.mmap(fd, size)).cast("Q")
        self._cells = self._half(half)
        self._generation = self._cells[_GENERATION]
        if is_new:
            self.phase = RUNNING
        #: By worker, where it was when last looked for.
        self._last_seats: dict[int, int] = {}

    def _half(self, half: int) -> memoryview:
        return self._all[1 + half * _HALF : 1 + (half + 1) * _HALF]

    def other(self) -> Board:
        """Return the other half."""
        return Board(self.fd, 1 - self.half)

    def detach(self) -> None:
        """Go on with a copy that is this process's own: nobody else sees what is written here."""
        self._all = memoryview(bytearray(self._all)).cast("Q")
        self._cells = self._half(self.half)

    def clear(self) -> None:
        """Forget all that is on this half: its master has ended."""
        changes = self.changes
        self._cells[_GENERATION] += 1  # first, so that what is left of that master writes no more
        for cells in (self._cells[:_CHANGES], self._cells[_TAKERS : _ROWS + self.slots * SEATS * _ROW]):
            cells[:] = memoryview(bytes(cells.nbytes)).cast("Q")
        self._cells[_CHANGES] = changes + 1

    @property
    def is_current(self) -> bool:
        """Whether the half still belongs to the master that it belonged to when this object was made."""
        return self._cells[_GENERATION] == self._generation

    # --- the masters (written by both) ---

    @property
    def in_charge(self) -> bool:
        """Whether it is this master that accepts connections."""
        return self._all[0] == self.half

    def take_charge(self) -> None:
        """Let this master accept, and the other one not."""
        self._all[0] = self.half

    # --- the master (written by the arbiter) ---

    @property
    def slots(self) -> int:
        """How many slots there have been at most."""
        return self._cells[_SLOTS]

    @slots.setter
    def slots(self, count: int) -> None:
        self._cells[_SLOTS] = count

    @property
    def count(self) -> int:
        """How many slots there are."""
        return self._cells[_COUNT]

    @count.setter
    def count(self, count: int) -> None:
        self._cells[_COUNT] = count

    @property
    def phase(self) -> int:
        """How far the master is.

        STARTING, while it has been executed by the other one and has not shown up yet; RUNNING; STOPPING, while
        connections may still be on their way to workers; or STOPPED, when none is.
        """
        return self._cells[_PHASE]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._cells[_PHASE] = phase

    @property
    def goes_on(self) -> bool:
        """Whether the master is there, or about to be, and has not been told to end."""
        return self.phase in (STARTING, RUNNING)

    # --- seats (taken and left by the arbiter) ---

    def take(self, seat: int, owner: int, age: int) -> None:
        """Give a seat to a worker; the later one is made, the higher is its age, as Gunicorn has it."""
        row = _ROWS + seat * _ROW
        self._cells[row + _AGE] = age
        self._cells[row + _STATE] = _BOOTING
        self._cells[row + _ACTIVE] = 0
        self._cells[row + _OWNER] = owner
        self._cells[_CHANGES] += 1

    def leave(self, seat: int) -> None:
        """Take a seat from a worker that is gone."""
        row = _ROWS + seat * _ROW
        self._cells[row + _OWNER] = 0
        self._cells[row + _STATE] = _LEFT
        self._cells[_CHANGES] += 1

    @property
    def changes(self) -> int:
        """How often a seat has been taken or left."""
        return self._cells[_CHANGES]

    def owners(self) -> list[int]:
        """Return the numbers of the workers, by seat, with 0 for nobody."""
        return self._cells[_ROWS + _OWNER : _ROWS + self.slots * SEATS * _ROW : _ROW].tolist()

    def seat_of(self, owner: int) -> int | None:
        """Return the seat of a worker, or None if it is gone."""
        seat = self._last_seats.get(owner)
        if seat is None or self._cells[_ROWS + seat * _ROW + _OWNER] != owner:
            owners = self.owners()
            if owner not in owners:
                return None
            seat = self._last_seats[owner] = owners.index(owner)
        return seat

    # --- what workers say ---

    def claim(self, slot: int, seat: int) -> None:
        """Take the connections of a slot from now on, and let its other workers take no more, unless one is newer."""
        if not self.is_current:
            return  # the master has died
        row, taker = _ROWS + seat * _ROW, self._cells[_TAKERS + slot]
        rival = _ROWS + (taker - 1) * _ROW
        if taker and self._cells[rival + _OWNER] and self._cells[rival + _AGE] > self._cells[row + _AGE]:
            self._cells[row + _STATE] = _LEFT
            return
        self._cells[row + _STATE] = _READY
        self._cells[_TAKERS + slot] = seat + 1

    def close(self, seat: int) -> None:
        """Say that new sessions are not welcome any more."""
        if self.is_current:
            self._cells[_ROWS + seat * _ROW + _STATE] = _LEFT

    def is_booting(self, seat: int) -> bool:
        """Tell whether a worker has not claimed its slot yet."""
        return self._cells[_ROWS + seat * _ROW + _STATE] == _BOOTING

    def newcomer(self, slot: int) -> int:
        """Return the number of a worker of a slot that is booting, or 0 if there is none."""
        for seat in range(slot * SEATS, (slot + 1) * SEATS):
            owner = self._cells[_ROWS + seat * _ROW + _OWNER]
            if owner and self.is_booting(seat):
                return owner
        return 0

    def taker(self, slot: int) -> int:
        """Return the seat of the worker that takes a slot's connections, or -1 if there has been none."""
        return self._cells[_TAKERS + slot] - 1

    def dismiss(self, slot: int) -> None:
        """Let nobody take a slot's connections (the arbiter does)."""
        self._cells[_TAKERS + slot] = 0

    def is_open(self, slot: int) -> bool:
        """Tell whether a slot has a worker that takes new sessions."""
        taker = self._cells[_TAKERS + slot]
        return taker != 0 and self._cells[_ROWS + (taker - 1) * _ROW + _STATE] == _READY

    def set_active(self, seat: int, count: int) -> None:
        """Say how many connections have a request under way."""
        self._cells[_ROWS + seat * _ROW + _ACTIVE] = count

    def give(self, seat: int, weight: int) -> None:
        """Count what a worker has been given, for `load`."""
        given = self._given(seat) + weight
        self._cells[_ROWS + seat * _ROW + _GIVEN] = given
        if given > self._cells[_MOST]:
            self._cells[_MOST] = given

    def _given(self, seat: int) -> int:
        # As in fair queueing, where a flow that has been idle starts at the current virtual time (Goyal, Vin and Cheng,
        # Start-time Fair Queueing, 1996): else a new worker, or one that was busy for long, would get all that comes.
        return min(max(self._cells[_ROWS + seat * _ROW + _GIVEN], self._cells[_MOST] - LAG), _ENOUGH)

    def load(self, slot: int) -> int:
        """Return how busy the worker that takes a slot's connections is, to compare it with others.

        That is what it is busy with, and what it has been given so far: between the first requests of a session nobody
        is busy.
        """
        taker = self._cells[_TAKERS + slot]
        if not taker:
            return 0
        seat = taker - 1
        return self._cells[_ROWS + seat * _ROW + _ACTIVE] * REQUEST + self._given(seat)
