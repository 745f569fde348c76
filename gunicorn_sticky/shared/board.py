"""What arbiter, dispatcher and workers tell each other at any time: a table in shared memory.

Each cell is written in one piece. There are two halves, for the two masters that there are during an upgrade (SIGUSR2).
A half has a row for each *seat*: a slot has a few of them, because a worker that drains keeps its sessions while its
successor is there already.

A process that has gone wrong may write anything anywhere. So whatever is read is checked here, and `MasterBoard` makes
good what it can.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from .._version import __version__
from . import memory

#: What /proc shows of the memory, for whoever looks for it.
NAME = f"gunicorn-sticky-board-{__version__}"
#: Seats of a slot.
SEATS = 3
MAX_SLOTS = 1024

#: What a half is at: `phase`. STOPPED is also that of a half without a master.
STOPPED, STARTING, RUNNING, STOPPING = range(4)
#: What a worker is at, in its seat: these, one after the other.
_BOOTING, _READY, _LEFT = range(3)

#: What adds to a worker's load: a request that is under way, or one without a session that it has been given; and a new
#: session. The requests are what is to be spread, so sessions only turn the scale: if each came after a request that
#: begins none, such as for a page, one worker of two would get all pages, and the other one all sessions.
REQUEST, SESSION = 4, 1
#: By how much a worker may be behind with what it has been given; beyond, it has nothing to catch up on. One for which
#: something waits has not been idle, but slow: it may be further behind, though not without end, as it may hang.
LAG, SLOW_LAG = 8 * REQUEST, 64 * REQUEST
#: Seconds between two looks at the loads of all slots, for each of them. So looking takes the same share of the time,
#: however many slots there are; and below 2 000 new sessions a second, a slot gets no more than one meanwhile.
LOOK = 0.0005
#: More than anybody will have been given.
_ENOUGH = 1 << 62

# The first cell of all says which half is the active master's. A half has a few cells of its own, a cell for each slot,
# with the seat, plus one, of its active worker: the one that takes its connections; and a row for each seat.
_SLOTS, _COUNT, _PHASE, _CHANGES, _GENERATION, _MOST, _ACTIVE_SEATS = range(7)
_ROWS = _ACTIVE_SEATS + MAX_SLOTS
_OWNER, _AGE, _STATE, _BUSY, _GIVEN, _SKIPPED, _ROW = range(7)
_HALF = _ROWS + MAX_SLOTS * SEATS * _ROW
#: Bytes of the memory.
SIZE = (1 + 2 * _HALF) * 8
#: The most that a cell may be.
_TOP = (1 << 64) - 1


class Board:
    """One half of the table, as all see it but the master that it belongs to.

    A half is used again by another master when its own has ended. `is_current` tells an object that was made before.

    Args:
        fd: the memory of a table that is there already; else a new one is made
        half: 0 or 1
        access: as `mmap.mmap` has it
        cells: the memory, if it is mapped already
    """

    def __init__(
        self,
        fd: int | None = None,
        half: int = 0,
        access: int = mmap.ACCESS_WRITE,
        cells: memoryview | None = None,
    ) -> None:
        #: The descriptor of the memory.
        self.fd = memory.create(NAME, SIZE) if fd is None else fd
        self.half = half
        self._use(cells or memoryview(mmap.mmap(self.fd, SIZE, access=access)).cast("Q"))
        self._generation = self._cells[_GENERATION]
        if fd is None:
            self.phase = RUNNING
        #: By worker, where it was when last looked for.
        self._last_seats: dict[int, int] = {}

    def other(self) -> Board:
        """Return the other half."""
        return Board(self.fd, 1 - self.half, cells=self._all)

    def detach(self) -> None:
        """Go on with a copy that is this process's own: nobody else sees what is written here."""
        self._use(memoryview(bytearray(self._all)).cast("Q"))

    def _use(self, cells: memoryview) -> None:
        self._all = cells
        self._cells = cells[1 + self.half * _HALF : 1 + (self.half + 1) * _HALF]
        #: Where that is read which the master alone writes.
        self._masters = self._cells

    def clear(self) -> None:
        """Forget all that is on this half: its master has ended."""
        changes, generation = self._cells[_CHANGES] + 1 & _TOP, self._cells[_GENERATION] + 1 & _TOP
        self._cells[_GENERATION] = generation  # first, so that what is left of that master writes no more
        empty = memoryview(bytearray(_HALF * 8)).cast("Q")
        empty[_CHANGES], empty[_GENERATION] = changes, generation
        self._cells[:] = empty

    @property
    def is_current(self) -> bool:
        """Whether the half still belongs to the master that it belonged to when this object was made."""
        return self._cells[_GENERATION] == self._generation

    # --- the masters (written by both) ---

    @property
    def is_active_master(self) -> bool:
        """Whether it is this master that accepts connections, and not the other one, whatever the cell contains."""
        return (self._all[0] > 0) == self.half

    def become_active_master(self) -> None:
        """Let this master accept, and the other one not."""
        self._all[0] = self.half

    # --- the master (written by the arbiter) ---

    @property
    def slots(self) -> int:
        """How many slots there have been at most."""
        return min(self._masters[_SLOTS], MAX_SLOTS)

    @slots.setter
    def slots(self, count: int) -> None:
        self._put(_SLOTS, count)

    @property
    def count(self) -> int:
        """How many slots there are."""
        return min(self._masters[_COUNT], MAX_SLOTS)

    @count.setter
    def count(self, count: int) -> None:
        self._put(_COUNT, count)

    @property
    def phase(self) -> int:
        """How far the master is.

        STARTING, while it has been executed by the other one and has not shown up yet; RUNNING; STOPPING, while
        connections may still be on their way to workers; or STOPPED, when none is.
        """
        return self._masters[_PHASE]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._put(_PHASE, phase)

    @property
    def goes_on(self) -> bool:
        """Whether the master is there, or about to be, and has not been told to end."""
        return self.phase in (STARTING, RUNNING)

    # --- seats (taken and left by the arbiter) ---

    def take(self, seat: int, owner: int, age: int) -> None:
        """Give a seat to a worker; the later one is made, the higher is its age, as Gunicorn has it."""
        row = _ROWS + seat * _ROW
        self._put(row + _AGE, age)
        self._put(row + _STATE, _BOOTING)
        self._put(row + _BUSY, 0)
        self._put(row + _OWNER, owner)
        self._put(_CHANGES, self.changes + 1 & _TOP)

    def leave(self, seat: int) -> None:
        """Take a seat from a worker that is gone."""
        row = _ROWS + seat * _ROW
        self._put(row + _OWNER, 0)
        self._put(row + _STATE, _LEFT)
        self._put(_CHANGES, self.changes + 1 & _TOP)

    @property
    def changes(self) -> int:
        """How often a seat has been taken or left."""
        return self._masters[_CHANGES]

    def owners(self) -> list[int]:
        """Return the numbers of the workers, by seat, with 0 for nobody."""
        return self._masters[_ROWS + _OWNER : _ROWS + self.slots * SEATS * _ROW : _ROW].tolist()

    def seat_of(self, owner: int) -> int | None:
        """Return the seat of a worker, or None if it is gone."""
        seat = self._last_seats.get(owner)
        if seat is None or self._masters[_ROWS + seat * _ROW + _OWNER] != owner:
            owners = self.owners()
            if owner not in owners:
                return None
            seat = self._last_seats[owner] = owners.index(owner)
        return seat

    def watch(self, slot: int, seat: int) -> Callable[[int], bool]:
        """Return what tells at once whether a worker takes its slot's connections, of so many slots, and its master
        accepts them.

        If the memory has been overwritten, it says no: then whoever asks has to look more closely.
        """
        cells, active, value, masters, half = self._cells, _ACTIVE_SEATS + slot, seat + 1, self._all, self.half
        return lambda count: cells[_COUNT] == count and cells[active] == value and masters[0] == half

    # --- what workers say ---

    def activate(self, slot: int, seat: int) -> None:
        """Take the connections of a slot from now on, and let its other workers take no more, unless one is newer."""
        if not self.is_current:
            return  # the master has died
        row, active = _ROWS + seat * _ROW, self.active_seat(slot)
        rival = _ROWS + active * _ROW
        if active >= 0 and self._cells[rival + _OWNER] and self._cells[rival + _AGE] > self._cells[row + _AGE]:
            self._cells[row + _STATE] = _LEFT
            return
        self._cells[row + _STATE] = _READY
        self._cells[_ACTIVE_SEATS + slot] = seat + 1

    def close(self, seat: int) -> None:
        """Say that new sessions are not welcome any more."""
        if self.is_current:
            self._cells[_ROWS + seat * _ROW + _STATE] = _LEFT

    def is_booting(self, seat: int) -> bool:
        """Tell whether a worker has not taken over its slot yet."""
        return self._state(seat) == _BOOTING

    def newcomer(self, slot: int) -> int:
        """Return the number of a worker of a slot that is booting, or 0 if there is none."""
        for seat in range(slot * SEATS, (slot + 1) * SEATS):
            owner = self._cells[_ROWS + seat * _ROW + _OWNER]
            if owner and self.is_booting(seat):
                return owner
        return 0

    def active_seat(self, slot: int) -> int:
        """Return the seat of the worker that takes a slot's connections, or -1 if there has been none."""
        seat = self._cells[_ACTIVE_SEATS + slot] - 1
        return seat if seat // SEATS == slot else -1

    def deactivate(self, slot: int) -> None:
        """Let nobody take a slot's connections (the arbiter does)."""
        self._put(_ACTIVE_SEATS + slot, 0)

    def is_open(self, slot: int) -> bool:
        """Tell whether a slot has a worker that takes new sessions."""
        active = self.active_seat(slot)
        return active >= 0 and self._state(active) == _READY

    def open_seats(self) -> list[int]:
        """Return the seats of the workers that take new sessions."""
        return [self.active_seat(slot) for slot in range(self.slots) if self.is_open(slot)]

    def _state(self, seat: int) -> int:
        return self._cells[_ROWS + seat * _ROW + _STATE]

    def busy(self, seat: int) -> memoryview:
        """Return the cell where a worker says how many connections have a request under way."""
        cell = _ROWS + seat * _ROW + _BUSY
        return self._cells[cell : cell + 1]

    def give(self, seat: int, weight: int) -> None:
        """Count what a worker has been given, for `load`."""
        cells, cell = self._cells, _ROWS + seat * _ROW + _GIVEN
        given, most = cells[cell], cells[_MOST]
        if not most - LAG <= given <= most <= _ENOUGH:
            start, skipped = self._given(seat), cell + _SKIPPED - _GIVEN
            cells[skipped] = cells[skipped] + start - given & _TOP  # nobody has given it that
            given = start
        cells[cell] = given = given + weight
        if given > most:
            cells[_MOST] = given

    def given(self, seat: int) -> int:
        """Return what a worker has been given in all, to compare it with what that will be later."""
        row = _ROWS + seat * _ROW
        return self._cells[row + _GIVEN] - self._cells[row + _SKIPPED] & _TOP

    def _given(self, seat: int, lag: int = LAG) -> int:
        # As in fair queueing, where a flow that has been idle starts at the current virtual time (Goyal, Vin and Cheng,
        # Start-time Fair Queueing, 1996): else a new worker, or one that was busy for long, would get all that comes.
        most = min(self._cells[_MOST], _ENOUGH)
        return min(max(self._cells[_ROWS + seat * _ROW + _GIVEN], most - lag), most)

    def load(self, slot: int, waiting: int = 0) -> int:
        """Return how busy the worker that takes a slot's connections is, to compare it with others.

        That is what it is busy with, and what it has been given so far: between the first requests of a session nobody
        is busy.

        Args:
            slot: the worker's
            waiting: how many requests without a session wait for it
        """
        active = self.active_seat(slot)
        if active < 0:
            return waiting * REQUEST
        given = self._given(active, SLOW_LAG if waiting else LAG)
        return (self._cells[_ROWS + active * _ROW + _BUSY] + waiting) * REQUEST + given

    def _put(self, cell: int, value: int) -> None:
        self._cells[cell] = value


class MasterBoard(Board):
    """A half of the table, as its master sees it, empty at first. Create it before forking.

    What the master writes it keeps, and never reads back. What workers write it believes if it can be true: they take
    over from older ones, and each goes from one state to the next. What cannot be is put right.
    """

    def __init__(self, fd: int | None = None, half: int = 0) -> None:
        super().__init__(fd, half)
        kept = memoryview(bytearray(_HALF * 8)).cast("Q")
        # Another master may have had this half.
        kept[_PHASE], kept[_CHANGES], kept[_GENERATION] = RUNNING, self._cells[_CHANGES] + 1 & _TOP, self._generation
        self._cells[:] = self._masters = kept
        self._active_half = min(self._all[0], 1)

    def shared(self) -> Board:
        """Return this half as others are to see it."""
        board = Board(self.fd, self.half)
        board._generation = self._generation
        return board

    @property
    def is_active_master(self) -> bool:
        """Whether it is this master that accepts connections, and not the other one."""
        half = self._all[0]
        if half <= 1:
            self._active_half = half
        else:
            self._all[0] = self._active_half
        return self._active_half == self.half

    def restore(self) -> None:
        """Put right what others have written here."""
        slots, end = self.slots, _ROWS + self.slots * SEATS * _ROW
        self._cells[:_MOST] = self._masters[:_MOST]
        if self._cells[_MOST] >= _ENOUGH:
            self._cells[_MOST] = 0
        for column in (_ROWS + _OWNER, _ROWS + _AGE):
            self._cells[column:end:_ROW] = self._masters[column:end:_ROW]
        for slot in range(slots):
            self.active_seat(slot)
            for seat in range(slot * SEATS, (slot + 1) * SEATS):
                self._state(seat)

    def active_seat(self, slot: int) -> int:
        """Return the seat of the worker that takes a slot's connections, or -1 if there has been none."""
        seat, known = super().active_seat(slot), self._masters[_ACTIVE_SEATS + slot] - 1
        if seat >= 0 and (known < 0 or self._is_newer(seat, known)):
            self._masters[_ACTIVE_SEATS + slot] = seat + 1
            return seat
        if seat != known:
            self._cells[_ACTIVE_SEATS + slot] = known + 1
        return known

    def _is_newer(self, seat: int, other: int) -> bool:
        """Tell whether the worker in a seat may take over from the one in the other, see `activate`."""
        row, rival = _ROWS + seat * _ROW, _ROWS + other * _ROW
        return not self._masters[rival + _OWNER] or self._masters[row + _AGE] > self._masters[rival + _AGE]

    def _state(self, seat: int) -> int:
        cell = _ROWS + seat * _ROW + _STATE
        state, known = self._cells[cell], self._masters[cell]
        if known < state <= _LEFT:
            self._masters[cell] = state
        elif state != known:
            self._cells[cell] = known
        return self._masters[cell]

    def _put(self, cell: int, value: int) -> None:
        self._masters[cell] = self._cells[cell] = value
