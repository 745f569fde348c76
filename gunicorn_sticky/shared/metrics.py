"""What is counted, in shared memory: whoever looks at it needs nobody's help, also when others stand still.

This is the one table of it. A class is a row in the memory, and a line of the class is a metric. What follows from it:
its place in the memory; what JSON, statsd and Prometheus say; what the page and the terminal show. The documentation
lists it with the same words, see tests/test_metrics.py.

Each row has one writer, which keeps its numbers to itself and copies them there: another process, gone wrong, may write
anything there. Counters go on when their writer is replaced. All else says what is true now, and begins anew.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as parameter
from typing import Any, ClassVar, TypeVar, cast

from .._version import __version__
from ..routing.key import COOKIE, HEADER, IP, PROXY, SESSION
from . import memory
from .board import MAX_SLOTS, SEATS

#: What /proc shows of the memory, for whoever looks for it.
NAME = f"gunicorn-sticky-metrics-{__version__}"
#: Rows for dispatchers, which use them in turn.
DISPATCHERS = 4

#: What is more has been overwritten, and is not believed.
_MOST = 1 << 62


# --- numbers ---


class Number:
    """A number, as its writer has it, with a copy in shared memory.

    Args:
        cell: where the copy is
    """

    __slots__ = ("cell", "value")

    def __init__(self, cell: memoryview) -> None:
        self.cell = cell
        value = cell[0]
        self.value: int = value if value < _MOST else 0

    def show(self) -> None:
        """Copy it again, in case somebody else has written there."""
        self.cell[0] = self.value

    def detach(self) -> None:
        """Keep it to this process: nobody else sees what is written from now on."""
        self.cell = memoryview(bytearray(8)).cast("Q")


class Counter(Number):
    """How often something has happened."""

    __slots__ = ()

    def inc(self) -> None:
        """Count one more."""
        self.value = self.cell[0] = self.value + 1


class Gauge(Number):
    """How many there are now."""

    __slots__ = ()

    def inc(self) -> None:
        """Say that there is one more."""
        self.value = self.cell[0] = self.value + 1

    def dec(self) -> None:
        """Say that there is one less."""
        self.value = self.cell[0] = self.value - 1

    def set(self, value: int) -> None:
        """Say how many there are."""
        self.value = self.cell[0] = value


class Identity(Gauge):
    """Whose row it is. This is no metric."""

    __slots__ = ()


# --- the fields of a row ---


@dataclass
class Field:
    """What a class says of one of its numbers, or of a family of them.

    Raises:
        ValueError: there is no help
    """

    #: Counter, Gauge or Identity.
    kind: type[Number]
    #: A sentence, for whoever sees the number.
    help: str
    #: What Prometheus calls it; else its name.
    prometheus: str = ""
    #: What people read in its place; else its name.
    label: str = ""
    #: Of a family: what its numbers differ in, as a label of Prometheus's, and each value of that, with its help.
    by: str = ""
    values: Mapping[Any, str] = parameter(default_factory=dict)
    #: That in the class, and in JSON and statsd.
    name: str = ""

    def __post_init__(self) -> None:
        if not all((self.help, *self.values.values())):
            raise ValueError("a field needs a help")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.prometheus = self.prometheus or name
        self.label = self.label or name.replace("_", " ")


# What a row has in the place of these are numbers, as `dataclasses.field` stands for a value.


def counter(help_: str, **more: Any) -> Counter:
    """Declare a counter; for the parameters see `Field`."""
    return cast("Counter", Field(Counter, help_, **more))


def gauge(help_: str, **more: Any) -> Gauge:
    """Declare a gauge."""
    return cast("Gauge", Field(Gauge, help_, **more))


def identity(help_: str, **more: Any) -> Identity:
    """Declare a number that is no metric."""
    return cast("Identity", Field(Identity, help_, **more))


def counters(help_: str, by: str, values: Mapping[Any, str], **more: Any) -> Mapping[Any, Counter]:
    """Declare a family of counters."""
    return cast("Mapping[Any, Counter]", Field(Counter, help_, by=by, values=values, **more))


class Row:
    """A row, as its writer sees it, or as it was when somebody looked.

    Args:
        cells: those of the table
    """

    #: In the order of the memory.
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    #: How many cells they take there.
    CELLS: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        own = [field for field in vars(cls).values() if isinstance(field, Field)]
        for field in own:
            delattr(cls, field.name)
        cls.FIELDS = (*cls.FIELDS, *own)
        cls.CELLS = sum(len(field.values) or 1 for field in cls.FIELDS)

    def __init__(self, cells: memoryview) -> None:
        free = (cells[place : place + 1] for place in range(self.CELLS))
        for field in self.FIELDS:
            kind = field.kind
            found = {value: kind(next(free)) for value in field.values} if field.values else kind(next(free))
            setattr(self, field.name, found)

    @classmethod
    def metrics(cls, *kinds: type[Number]) -> list[Field]:
        """Return the fields that are shown, or those of some kinds."""
        return [field for field in cls.FIELDS if field.kind in (kinds or (Gauge, Counter))]

    def __iter__(self) -> Iterator[Number]:
        for field in self.FIELDS:
            found = getattr(self, field.name)
            yield from found.values() if field.values else [found]

    def show(self) -> None:
        """Write all of it again, in case somebody else has written there."""
        for number in self:
            number.show()

    def detach(self) -> None:
        """Go on with numbers that are this process's own: nobody else sees what is counted here."""
        for number in self:
            number.detach()


# --- the rows ---


class MasterRow(Row):
    """What the master writes about itself."""

    pid = identity("Its process.")
    half = identity("Which half of the board is its own.")
    dispatchers = identity("How many dispatchers it has had.")


class SlotRow(Row):
    """What the master writes about a slot."""

    workers = identity("How many workers it has had.")
    waiting = gauge(
        "Connections that were sent to the slot and not yet taken: its worker boots, stands still, or is full.",
        prometheus="waiting_connections",
    )
    restarts = counter("Workers that the slot has had before: after crashes, reloads, and by max_requests.")

    def starts(self) -> None:
        """Count a worker that is about to start."""
        if self.workers.value:
            self.restarts.inc()
        self.workers.inc()


class ProcessRow(Row):
    """What a process writes that may be replaced."""

    pid = identity("Its process.")
    started = identity("When that started, in nanoseconds since the epoch.")

    def starts(self) -> None:
        """Begin the row of a process that is about to start."""
        self.started.set(time.time_ns())
        for number in self:
            if isinstance(number, Gauge) and number is not self.started:
                number.set(0)


class WorkerRow(ProcessRow):
    """What a worker writes, by its seat. Counters are shown by slot, as the sum of its seats."""

    connections = gauge("Open connections.")
    requests = counter("Requests that workers have served.")
    dispatched = counter("Connections that the dispatcher has sent to the slot.", prometheus="dispatched_connections")
    handed_over = counter(
        "Connections that workers have given away, as the next request on them was another worker's.",
        prometheus="handed_over_connections",
    )
    taken_over = counter(
        "Connections that other workers have given away, and this slot's have got.",
        prometheus="taken_over_connections",
    )
    minted = counter("Session ids that workers have made.", prometheus="minted_sessions")
    refused = counter(
        "Connections that workers have refused: a later request did not show its key, the hook sticky_connection "
        "failed, or nobody released the connection (sticky_sync).",
        prometheus="refusals",
    )


class DispatcherRow(ProcessRow):
    """What a dispatcher writes, each of those that still drain as well."""

    accepted = counter(
        "Connections that the dispatcher has taken from the listeners.", prometheus="accepted_connections"
    )
    peeking = gauge("Connections that have not shown their key yet.", prometheus="peeking_connections")
    full = gauge(
        "Slots that can be sent no more, because the worker stands still or is full.",
        prometheus="full_channels",
        label="full channels",
    )
    held = gauge(
        "Connections that wait in the dispatcher until the channel of their slot has room again.",
        prometheus="held_connections",
    )
    handed_back = counter(
        "Connections that workers gave back to the dispatcher, as the next request on them was another worker's.",
        prometheus="handed_back_connections",
    )
    moved = counter(
        "Connections that were sent elsewhere, because their worker was gone; its sessions are lost.",
        prometheus="moved_connections",
    )
    refused = counters(
        "Connections that the dispatcher has refused.",
        by="status",
        values={
            400: "Connections whose request lacked the header with the client's address, or had a malformed head.",
            408: "Connections that did not show header, session id or cookie in time.",
            431: "Connections that did not show header, session id or cookie in the first 64 KiB of the head.",
            503: "Connections for which there was no worker in time, or no room: too many wait, or are open.",
        },
        prometheus="refusals",
    )
    keys = counters(
        "Connections, by what gave their key.",
        by="source",
        values={
            IP: "Connections whose key was the address of the peer.",
            PROXY: "Connections whose key was the address in a PROXY header.",
            HEADER: "Connections whose key was in a request header, such as X-Forwarded-For.",
            SESSION: "Connections whose key was a session id: it leads to the worker that has made it.",
            COOKIE: "Connections whose key was the cookie that a worker has set.",
        },
        label="by",
    )


# --- the table ---

R = TypeVar("R", bound=Row)

_SLOTS = MasterRow.CELLS
_SEATS = _SLOTS + MAX_SLOTS * SlotRow.CELLS
_DISPATCHERS = _SEATS + MAX_SLOTS * SEATS * WorkerRow.CELLS
#: Bytes of the memory.
SIZE = (_DISPATCHERS + DISPATCHERS * DispatcherRow.CELLS) * 8


class Metrics:
    """The table of all rows.

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

    def master(self) -> MasterRow:
        """Return the master's row."""
        return self._row(MasterRow, 0, 0)

    def slot(self, slot: int) -> SlotRow:
        """Return a slot's row."""
        return self._row(SlotRow, _SLOTS, slot)

    def worker(self, seat: int) -> WorkerRow:
        """Return the row of whoever works in a seat."""
        return self._row(WorkerRow, _SEATS, seat)

    def dispatcher(self, number: int) -> DispatcherRow:
        """Return the row of a dispatcher; they are numbered by the arbiter."""
        return self._row(DispatcherRow, _DISPATCHERS, number % DISPATCHERS)

    def _row(self, kind: type[R], start: int, number: int) -> R:
        start += number * kind.CELLS
        return kind(self._cells[start : start + kind.CELLS])
