"""How a server is at this moment: what its metrics (shared/metrics.py), its board (shared/board.py) and /proc say."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..shared import board as boards
from ..shared import metrics as tables
from ..shared.board import SEATS, Board
from ..shared.memory import is_sealed
from ..shared.metrics import (
    DISPATCHERS,
    Counter,
    DispatcherRow,
    Field,
    Gauge,
    Metrics,
    ProcessRow,
    Row,
    SlotRow,
    WorkerRow,
)

#: How a slot and its workers are; beside "down", for a slot that has none.
STARTING, READY, DRAINING, DOWN = "starting", "ready", "draining", "down"
#: How a server is: all slots have a worker that takes new clients; some have not, or connections have to wait; or
#: "down", if none has.
OK, DEGRADED = "ok", "degraded"

_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")
#: What makes a process's number the number of its clock, see linux/posix-timers.h.
_CPUCLOCK_SCHED = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Seen:
    """Metrics that nobody counts, because they are seen from outside."""

    imbalance = Field(
        Gauge, "Connections of the fullest slot, over the average of all slots.", prometheus="imbalance_ratio"
    )
    cpu_seconds = Field(Counter, "CPU time that the process has taken.")
    memory_bytes = Field(Gauge, "Resident memory of the process.", prometheus="resident_memory_bytes")


def _process(pid: int) -> dict[str, Any] | None:
    """Return CPU time and memory (resident set) of a process, or None if it is gone.

    The time is the scheduler's, in nanoseconds, by the clock of clock_getcpuclockid(3); that in proc_pid_stat(5), for
    where there is none, comes in ticks of 10 ms.
    """
    try:
        state, *numbers = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if state == "Z":
        return None
    try:
        cpu = time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        cpu = (int(numbers[10]) + int(numbers[11])) / _TICK
    return {"cpu_seconds": cpu, "memory_bytes": int(numbers[20]) * _PAGE}


def _age(row: ProcessRow, now: float) -> float:
    return max(now - row.started.value / 1e9, 0.0)  # the clock may have been set back


def _values(fields: Sequence[Field], rows: Sequence[Row]) -> dict[str, Any]:
    """Return what rows of one kind say, together, by name; a family as values by what they differ in."""
    return {field.name: _sum(field, [getattr(row, field.name) for row in rows]) for field in fields}


def _sum(field: Field, found: Sequence[Any]) -> Any:
    if field.values:
        return {value: sum(family[value].value for family in found) for value in field.values}
    return sum(number.value for number in found)


def worker_state(board: Board, slot: int, seat: int) -> str:
    """Return how the worker in a seat is."""
    if board.is_booting(seat):
        return STARTING
    if board.active_seat(slot) == seat and board.is_open(slot):
        return READY
    return DRAINING


def slot_state(states: Container[str]) -> str:
    """Return how a slot is whose workers are in these states."""
    return next((state for state in (READY, STARTING, DRAINING) if state in states), DOWN)


class Server:
    """What is known of a running server.

    Args:
        metrics: what its processes count
        board: its half of the board
    """

    def __init__(self, metrics: Metrics, board: Board) -> None:
        self._metrics = metrics
        self._board = board

    def status(self) -> dict[str, Any]:
        """Return all of it, as can be written as JSON. Times are in seconds, sizes in bytes."""
        now = time.time()
        slots = [self._slot(slot, now) for slot in range(self._board.count)]
        dispatcher = self._dispatcher(now)
        connections = [sum(worker["connections"] for worker in slot["workers"]) for slot in slots]
        average = sum(connections) / len(slots) if slots else 0
        return {
            "pid": self._metrics.master().pid.value,
            "time": now,
            "state": self._state(slots, dispatcher),
            "in_charge": self._board.is_active_master,
            "imbalance": max(connections) / average if average else 1.0,
            "slots": slots,
            "dispatcher": dispatcher,
        }

    def _state(self, slots: list[dict[str, Any]], dispatcher: dict[str, Any]) -> str:
        ready = [slot["state"] == READY for slot in slots]
        if not any(ready):
            return DOWN
        return OK if all(ready) and dispatcher["pid"] and not dispatcher["full"] else DEGRADED

    def _slot(self, slot: int, now: float) -> dict[str, Any]:
        owners = self._board.owners()
        seats = range(slot * SEATS, (slot + 1) * SEATS)
        rows = {seat: self._metrics.worker(seat) for seat in seats}
        workers = [self._worker(slot, seat, rows[seat], now) for seat in seats if seat < len(owners) and owners[seat]]
        found = [worker for worker in workers if worker]
        states = {worker["state"] for worker in found}
        return {
            "slot": slot,
            "state": slot_state(states),
            "workers": sorted(found, key=lambda worker: worker["age"]),
            **_values(SlotRow.metrics(), [self._metrics.slot(slot)]),
            **_values(WorkerRow.metrics(Counter), [*rows.values()]),
        }

    def _worker(self, slot: int, seat: int, row: WorkerRow, now: float) -> dict[str, Any] | None:
        pid, seen = row.pid.value, _process(row.pid.value)
        if pid and seen is None:
            return None  # killed a moment ago
        return {
            "pid": pid,
            "seat": seat % SEATS,
            "state": worker_state(self._board, slot, seat),
            "age": _age(row, now),
            **_values(WorkerRow.metrics(Gauge), [row]),
            **(seen or {"cpu_seconds": 0.0, "memory_bytes": 0}),
        }

    def _dispatcher(self, now: float) -> dict[str, Any]:
        """Return how the dispatcher is, with what it and its predecessors have counted."""
        rows = [self._metrics.dispatcher(number) for number in range(DISPATCHERS)]
        newest = rows[(self._metrics.master().dispatchers.value - 1) % DISPATCHERS]
        seen = _process(newest.pid.value)
        return {
            "pid": newest.pid.value if seen else None,
            "age": _age(newest, now) if seen else None,
            "cpu_seconds": None,
            "memory_bytes": None,
            **(seen or {}),
            **_values(DispatcherRow.metrics(Gauge), [newest] if seen else []),
            **_values(DispatcherRow.metrics(Counter), rows),
        }


def find(master: int | None = None, user: int | None = None) -> Iterator[Server]:
    """Return the servers of a user, or that of one master.

    Their memory is found where /proc shows what it is called, so that nobody has to answer.

    Args:
        master: its process
        user: the number of the user that masters run as; else all users count
    """
    for folder in [_PROC / str(master)] if master else sorted(_PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            owner = _owner(folder)
            memory = _memory(folder) if user in (None, owner) else {}
        except OSError:
            continue  # gone, or another user's
        try:
            with _opened(memory[tables.NAME], owner, tables.SIZE) as shared:
                metrics = Metrics(shared)
            row = metrics.master()
            half = row.half.value
            if row.pid.value == int(folder.name) and half in (0, 1):
                with _opened(memory[boards.NAME], owner, boards.SIZE) as shared:
                    yield Server(metrics, Board(shared, half, mmap.ACCESS_READ))
        except (OSError, KeyError):
            continue  # gone, or none of ours


def _memory(folder: Path) -> dict[str, Path]:
    """Return the descriptors, in /proc, of what has our memory's names.

    Descriptors come in order, and the memory is older than any connection: a worker's need not be looked at.
    """
    found: dict[str, Path] = {}
    with os.scandir(folder / "fd") as links:
        for link in links:
            with contextlib.suppress(OSError):  # closed since
                name = os.readlink(link.path).removeprefix("/memfd:").removesuffix(" (deleted)")
                if name in (tables.NAME, boards.NAME):
                    found.setdefault(name, Path(link.path))
            if len(found) == 2:
                break
    return found


def _owner(folder: Path) -> int:
    """Return the effective user of a process, see proc_pid_status(5); its folder in /proc may be root's."""
    (users,) = (line for line in (folder / "status").read_text().splitlines() if line.startswith("Uid:"))
    return int(users.split()[2])


@contextlib.contextmanager
def _opened(link: Path, owner: int, size: int) -> Iterator[int]:
    """Open what has our memory's name, unless it is something else, or another user's: any process may call it so.

    Raises:
        OSError: it is
    """
    with contextlib.ExitStack() as stack:
        # Without opening it yet: that might wait for ever (a FIFO), or do something (a device).
        place = os.open(link, os.O_PATH)
        stack.callback(os.close, place)
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
            raise PermissionError(f"{link} is not what it is called")
        shared = os.open(f"/proc/self/fd/{place}", os.O_RDONLY)
        stack.callback(os.close, shared)
        if not is_sealed(shared, size):
            raise PermissionError(f"{link} is not what it is called")
        yield shared
