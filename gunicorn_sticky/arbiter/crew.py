"""The workers of all slots: who is started, who gets which seat, and who has to go.

Decisions only: here is no process, no signal and no clock. The rules:

 1. Each slot has a worker that takes its connections, or one that will when it has booted.
 2. A worker that waits for a successor (max_requests), or has an older configuration, goes on until there is one.
 3. Once a slot has a newer worker that takes its connections, the older ones are dismissed: they drain.
 4. A worker that dies while it boots is replaced after `RESPAWN` seconds, any other at once.
 5. A slot has `SEATS` seats. If nobody leaves one in time, the worker that serves least is killed for its seat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ..shared.board import SEATS, MasterBoard

#: A worker that has reached max_requests waits for a successor while there are so many, or processes would pile up.
WORKERS_PER_SLOT = 2
#: Seconds between the starts of two workers of a slot, if the first one has died while it booted.
RESPAWN = 1.0


class Worker(Protocol):
    """What counts of a worker. The later it was made, the higher is its age, as Gunicorn has it."""

    slot: int
    seat: int
    age: int
    pid: int
    alive: bool

    @property
    def leaving(self) -> bool: ...


class Place(NamedTuple):
    """A seat, and who has to be killed for it."""

    seat: int
    victim: Worker | None


class Crew:
    """The workers of all slots.

    Args:
        board: the master's half of the board
        workers: returns all workers that there are
    """

    def __init__(self, board: MasterBoard, workers: Callable[[], Iterable[Worker]]) -> None:
        self._board = board
        self._workers = workers
        #: By slot, when its next worker may start, if the last one has died while it booted.
        self._not_before: dict[int, float] = {}
        #: The age of the youngest worker that has an older configuration.
        self._outdated = 0

    def of(self, slot: int) -> list[Worker]:
        """Return the workers of a slot, the newest last."""
        return sorted((worker for worker in self._workers() if worker.slot == slot), key=lambda worker: worker.age)

    def neediest(self, count: int) -> int:
        """Return which of `count` slots needs a worker most: one without a worker, or with the oldest."""

        def age(slot: int) -> int:
            return max((worker.age for worker in self.of(slot) if worker.alive), default=0)

        return min(range(count), key=age)

    def needs_worker(self, slot: int, now: float) -> bool:
        """Tell whether a slot needs another worker, and may have it now."""
        if now < self._not_before.get(slot, now):
            return False
        workers = self.of(slot)
        wanted = [worker for worker in workers if worker.alive and self.is_wanted(worker)]
        if not wanted:
            return True
        # They take connections until a successor does, so that can wait for those that drain.
        return all(self._is_leaving(worker) for worker in wanted) and len(workers) < WORKERS_PER_SLOT

    def outdate(self, age: int) -> None:
        """Note that there is another configuration, which workers up to this age do not have."""
        self._outdated = age

    def _is_leaving(self, worker: Worker) -> bool:
        return worker.leaving or worker.age <= self._outdated

    def is_wanted(self, worker: Worker) -> bool:
        """Tell whether a worker takes its slot's connections, or boots and is the newest there."""
        if self._board.is_booting(worker.seat):
            return worker is self.of(worker.slot)[-1]
        return self._board.active_seat(worker.slot) == worker.seat

    def superfluous(self, count: int) -> list[Worker]:
        """Return whom to dismiss, where there are `count` slots: whose slot has another worker, or is no more."""
        found = []
        for worker in list(self._workers()):
            if not worker.alive:
                continue
            if worker.slot >= count:
                self._board.deactivate(worker.slot)
            elif self.is_wanted(worker):
                continue
            found.append(worker)
        return found

    def place(self, slot: int) -> Place:
        """Return a seat of a slot for another worker."""
        self.vacate()
        owners = self._board.owners()
        for seat in range(slot * SEATS, (slot + 1) * SEATS):
            if not owners[seat]:
                return Place(seat, None)
        active = self._board.active_seat(slot)
        # Prefer a worker that boots: it serves nobody yet, and the slot's clients are at the one that takes them.
        victim = min(self.of(slot), key=lambda w: (w.seat == active, not self._board.is_booting(w.seat), w.age))
        return Place(victim.seat, victim)

    def vacate(self) -> None:
        """Take the seats from workers that are gone."""
        taken = {worker.seat for worker in self._workers()}
        for seat, owner in enumerate(self._board.owners()):
            if owner and seat not in taken:
                self._board.leave(seat)

    def starts(self, slot: int, now: float) -> None:
        """Note that a worker starts."""
        self._not_before[slot] = now + RESPAWN

    def ended(self, worker: Worker) -> None:
        """Note that a worker has ended, before its seat is taken from it."""
        if not (worker.alive and self._board.is_booting(worker.seat)):
            self._not_before.pop(worker.slot, None)
