"""What is counted: a table in shared memory. Whoever looks at it needs nobody's help, also when others stand still.

Each row has one writer, which keeps what it counts to itself and copies it there (`Row`): another process, gone wrong,
may write anything there. Counters go on when their writer is replaced; gauges, which say what is true now, begin anew.
"""

from __future__ import annotations

import mmap
import time
from array import array

from .._version import __version__
from ..routing.key import SOURCES
from . import memory
from .board import MAX_SLOTS, SEATS

#: What /proc shows of the memory, for whoever looks for it.
NAME = f"gunicorn-sticky-figures-{__version__}"
#: Answers in the place of a worker.
REFUSALS = (400, 408, 431, 503)

#: A row for the master: its process, which half of the board is its own, and how many dispatchers it has had.
MASTER = ("pid", "half", "dispatchers")
PID, HALF, DISPATCHERS_MADE = range(3)

#: A row for each slot, written by the master: how many workers it has had, and how many connections wait for one.
SLOT = ("workers", "waiting")
WORKERS, WAITING = range(2)

#: A row for each seat, written by its worker: its process, when that started (nanoseconds since the epoch), connections
#: it has now, and has been sent, requests, sessions it has minted, connections it has handed over to others and taken
#: over from them, and its refusals.
WORKER = ("pid", "started", "connections", "dispatched", "requests", "minted", "handed_over", "taken_over", "refused")
_, STARTED, CONNECTIONS, DISPATCHED, REQUESTS, MINTED, HANDED_OVER, TAKEN_OVER, REFUSED = range(9)

#: A row for a dispatcher and for each of those that still drain: its process, when that started, connections that have
#: not shown their key, slots whose channel is full, and connections that wait for these. And, counted: connections
#: that it has accepted, that workers have handed back, that were moved because their worker was gone; refusals, by
#: status; and connections, by what gave the key.
DISPATCHER = (
    *("pid", "started", "peeking", "full", "held", "accepted", "handed_back", "moved"),
    *(f"refused_{status}" for status in REFUSALS),
    *(f"by_{source}" for source in SOURCES),
)
_, _, PEEKING, FULL, HELD, ACCEPTED, HANDED_BACK, MOVED = range(8)
REFUSED_BY = {status: 8 + n for n, status in enumerate(REFUSALS)}
BY = 8 + len(REFUSALS)
#: Rows for dispatchers, which use them in turn.
DISPATCHERS = 4

_SLOTS = len(MASTER)
_SEATS = _SLOTS + MAX_SLOTS * len(SLOT)
_DISPATCHERS = _SEATS + MAX_SLOTS * SEATS * len(WORKER)
#: Bytes of the memory.
SIZE = (_DISPATCHERS + DISPATCHERS * len(DISPATCHER)) * 8


#: What a row that has been overwritten is not believed.
_MOST = 1 << 62


class Row:
    """A row, as its writer sees it.

    Args:
        cells: those of the table
    """

    __slots__ = ("_cells", "_values")

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._values = [value if value < _MOST else 0 for value in cells]

    def __getitem__(self, cell: int) -> int:
        return self._values[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self._values[cell] = self._cells[cell] = value

    def show(self) -> None:
        """Write all of it again, in case somebody else has written there."""
        self._cells[:] = array("Q", self._values)

    def detach(self) -> None:
        """Go on with a copy that is this process's own: nobody else sees what is counted here."""
        self._cells = memoryview(array("Q", self._values))


class Figures:
    """The table.

    Args:
        fd: the memory of one that is there already, to be looked at; else a new one is made
        name: that of the memory, as /proc shows it
    """

    def __init__(self, fd: int | None = None, name: str = NAME) -> None:
        access = mmap.ACCESS_READ
        if fd is None:
            fd = memory.create(name, SIZE)
            access = mmap.ACCESS_WRITE
        self._cells = memoryview(mmap.mmap(fd, SIZE, access=access)).cast("Q")

    def master(self) -> memoryview:
        """Return the master's row."""
        return self._cells[:_SLOTS]

    def slot(self, slot: int) -> memoryview:
        """Return a slot's row."""
        return self._row(_SLOTS, SLOT, slot)

    def worker(self, seat: int) -> memoryview:
        """Return the row of whoever works in a seat."""
        return self._row(_SEATS, WORKER, seat)

    def dispatcher(self, number: int) -> memoryview:
        """Return the row of a dispatcher; they are numbered by the arbiter."""
        return self._row(_DISPATCHERS, DISPATCHER, number % DISPATCHERS)

    def _row(self, start: int, names: tuple[str, ...], number: int) -> memoryview:
        start += number * len(names)
        return self._cells[start : start + len(names)]


def begin(cells: memoryview, gauges: int) -> Row:
    """Begin the row of a worker or dispatcher that is about to start.

    Args:
        gauges: how many cells after that of the start are gauges
    """
    row = Row(cells)
    row[STARTED] = time.time_ns()
    for cell in (PID, *range(STARTED + 1, STARTED + 1 + gauges)):
        row[cell] = 0
    return row
