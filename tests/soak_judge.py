"""What the soak counts as lost beyond promise (docs/architecture.md, "Why nothing is lost").

Pure: records of requests and a history of processes in, findings out. A request without an answer is excused only by
the process that it was in the hands of: a worker that was killed, or that has waited for as long as it may; a
dispatcher that was killed, which may have had one connection in its hands, and those that had not shown their head.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from support.under_load import Record

#: Seconds in which the kernel closes what a dead process had, before and after it says that this is dead.
CLOSING, CLOSES = 0.5, 0.6
#: Seconds until a dispatcher has noticed that its master is gone.
ORPHANED = 2.0


@dataclass
class Process:
    """A worker or a dispatcher."""

    pid: int
    #: "worker" or "dispatcher".
    kind: str
    born: float
    #: The master's pid.
    master: int = 0
    slot: int = -1
    #: When its master has seen that it serves.
    ready: float | None = None
    #: Whether it has been killed, or has crashed; otherwise it ends by itself.
    killed: bool = False
    #: Since when it stands still.
    stopped: float | None = None
    #: Since when there has been a reason to end.
    leaving: float | None = None
    #: When it could wait no longer for what it was busy with, and ended that.
    forced: float | None = None
    gone: float | None = None

    def is_gone(self, at: float) -> bool:
        """Tell whether it was gone."""
        return self.gone is not None and self.gone <= at

    def is_orphan(self, at: float) -> bool:
        """Tell whether its master had been killed: it goes in a moment, and nobody waits for it."""
        return self.killed and self.leaving is not None and self.leaving <= at


@dataclass(frozen=True)
class Window:
    """A time in which something is not as usual: "slots" change, a process has no "descriptors", "lanes" fill."""

    kind: str
    start: float
    end: float


@dataclass
class History:
    """What has happened to the server."""

    processes: dict[int, Process] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)

    def of(self, kind: str) -> Iterator[Process]:
        """Yield the processes of a kind, the oldest first."""
        return (process for process in list(self.processes.values()) if process.kind == kind)

    def within(self, kind: str, start: float, end: float) -> bool:
        """Tell whether there was such a window between two times."""
        return any(w.kind == kind and w.start <= end and start <= w.end for w in self.windows)


@dataclass(frozen=True)
class Finding:
    """A promise that was broken."""

    what: str
    record: Record | None = None


class Judge:
    """Compares what clients have seen with what happened to the server.

    Args:
        by: the key
        proxied: whether there is a proxy in front, so that nobody knows which connections of the server a request took
        history: what has happened to the server
        grace: its graceful_timeout
        bound: seconds that any request may take longer than what it asks for, beside the boot of a worker
    """

    def __init__(self, by: str, proxied: bool, history: History, grace: float, bound: float) -> None:
        self._by, self._proxied, self._history, self._grace = by, proxied, history, grace
        # One that boots may have to be replaced.
        boots = [worker.ready - worker.born for worker in history.of("worker") if worker.ready]
        self._bound = bound + 2 * max(boots, default=0.0)
        self._by_session = by in ("session", "cookie")
        self._ends = sorted((w for w in history.of("worker") if w.gone is not None), key=lambda w: w.gone or 0.0)
        self._gone = [w.gone or 0.0 for w in self._ends]

    def findings(self, records: Sequence[Record]) -> list[Finding]:
        """Return all that is beyond promise."""
        homes = self._homes(records)
        failed = [r for r in records if r.failed and not self._is_excused(r, homes)]
        found = [Finding("failed", r) for r in self._not_in_hand(failed)]
        found += [Finding("hung", r) for r in records if r.delay > self._bound and r.kind != "sio"]
        found += [Finding("answered by another worker", r) for r in self._moved(records, homes)]
        found += [Finding("went back to an older worker", r) for r in self._back(records)]
        found += [
            Finding(f"worker {w.pid} of slot {w.slot} has ended without a reason")
            for w in self._ends
            if not w.killed and (w.leaving is None or w.leaving > (w.gone or 0.0))
        ]
        return found

    # --- requests that have failed ---

    def _is_excused(self, r: Record, homes: dict[str, int]) -> bool:
        owner = self._history.processes.get(r.owner or 0)
        if r.outcome == "404":
            return owner is not None and (owner.is_orphan(r.end) or owner.is_gone(r.end + 0.05))
        if r.split and self._held_by_a_dispatcher(r):
            return True
        if r.kind == "sio":
            return self._is_lost_session(r)
        if self._history.within("lanes", r.start, r.end) and any(self._dispatchers_killed(r.start, r.end + 0.1)):
            return True
        for worker in self._ends[bisect.bisect_left(self._gone, r.end - CLOSES) :]:
            if worker.killed and (worker.gone or 0.0) - CLOSING <= r.end and self._was_inside(r, worker, homes):
                return True
            if self._was_forced(worker, r.end) and self._was_waited_for(r, worker, homes):
                return True
        return False

    def _was_inside(self, r: Record, worker: Process, homes: dict[str, int]) -> bool:
        """Tell whether a request was in the hands of a worker that was killed."""
        gone = worker.gone or 0.0
        if self._proxied or r.last_pid == worker.pid or r.owner == worker.pid:
            return r.start <= gone + 0.2
        if r.start > (worker.stopped or gone) + 0.05:
            return False
        if not self._by_session:
            # The slots may have been other ones then.
            return homes.get(r.client, worker.slot) == worker.slot or self._history.within("slots", r.start, r.end)
        # What its owner had not taken when it ended was routed anew.
        owner = self._history.processes.get(r.owner or 0)
        return owner is None or owner.is_gone(gone)

    def _was_forced(self, worker: Process, at: float) -> bool:
        """Tell whether a worker could wait no longer, after it had waited for as long as it may."""
        # A master that ends kills without a word.
        forced = worker.forced or (worker.gone and worker.gone - CLOSES)
        if forced is None or worker.leaving is None or forced > at + 0.1:
            return False
        return (worker.forced or worker.gone or 0.0) >= worker.leaving + self._grace - 0.1

    def _was_waited_for(self, r: Record, worker: Process, homes: dict[str, int]) -> bool:
        """Tell whether a request was what a worker could wait for no longer."""
        if self._proxied or worker.pid in (r.last_pid, r.owner):
            return True
        is_old = r.start <= (worker.forced or worker.gone or 0.0) - self._grace + 0.2
        return is_old and (self._by_session or homes.get(r.client, worker.slot) == worker.slot)

    def _is_lost_session(self, r: Record) -> bool:
        """Tell whether a Socket.IO session went with its worker, or by IP or header with its slot's."""
        mine = self._history.processes.get(r.pid or 0)
        if not self._by_session and mine is not None and mine.leaving is not None and mine.leaving <= r.end:
            return True  # its client's next request goes to a successor, or to an older master's worker
        for worker in self._history.of("worker"):
            killed = worker.killed and worker.is_gone(r.end + 0.05)
            # What a proxy sends on a connection that another worker has is in that one's hands until it hands it over.
            if self._proxied and killed and not worker.is_gone(r.start - CLOSES):
                return True
            if mine is not None and worker.slot != mine.slot:
                continue
            if mine in (None, worker) and (killed or self._was_forced(worker, r.end)):
                if not worker.is_gone(r.opened - 0.2):
                    return True
            elif not self._by_session and (mine.born if mine else r.opened - 1) < worker.born <= r.end:
                return True
        return not self._by_session and self._history.within("slots", r.opened, r.end)

    def _dispatchers_killed(self, start: float, end: float) -> Iterator[Process]:
        for dispatcher in self._history.of("dispatcher"):
            if dispatcher.killed and dispatcher.gone is not None and dispatcher.born <= end:
                began = dispatcher.stopped or dispatcher.gone
                if began - ORPHANED <= end and start <= dispatcher.gone + 0.1:
                    yield dispatcher

    def _held_by_a_dispatcher(self, r: Record) -> bool:
        """Tell whether half a head may have been in a dispatcher that was killed, or had to make room."""
        return any(self._dispatchers_killed(r.start, r.start + r.seconds + 0.2)) or self._history.within(
            "descriptors", r.start, r.end
        )

    def _not_in_hand(self, failed: Iterable[Record]) -> list[Record]:
        """Return what failed without the one that each killed dispatcher may have had in its hands."""
        left = sorted(failed, key=lambda r: r.end)
        for dispatcher in self._history.of("dispatcher"):
            if dispatcher.killed and dispatcher.gone is not None:
                gone = dispatcher.gone
                held = next((r for r in left if r.start <= gone <= r.end + 0.1 and r.end <= gone + CLOSES), None)
                if held is not None and (held.kind == "sio" or not (held.kept and self._by == "ip")):
                    left.remove(held)
        return left

    # --- requests that were answered ---

    def _homes(self, records: Iterable[Record]) -> dict[str, int]:
        """Return the slot of each client, as long as slots do not change."""
        found: dict[str, int] = {}
        for r in records:
            if r.slot is not None and not self._history.within("slots", r.opened, r.end):
                found.setdefault(r.client, r.slot)
        return found

    def _moved(self, records: Iterable[Record], homes: dict[str, int]) -> Iterator[Record]:
        processes = self._history.processes
        for r in records:
            if r.outcome != "200":
                if r.outcome == "wrong":
                    yield r
            elif self._by_session:
                owner = processes.get(r.owner or 0)
                if owner is not None and r.pid != owner.pid and not (owner.is_gone(r.end) or owner.is_orphan(r.end)):
                    yield r
            # By IP, connections that are open stay where they are when slots come and go.
            elif r.slot not in (None, homes.get(r.client, r.slot)) and not self._history.within(
                "slots", r.opened if self._by == "ip" else r.start, r.end
            ):
                yield r

    def _back(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield requests that went to a worker whose successor had already answered the client, and still could."""
        if self._by_session:
            return
        processes, newest = self._history.processes, dict[str, tuple[float, Process]]()
        masters: dict[int, float] = {}
        for process in self._history.of("worker"):
            masters[process.master] = min(process.born, masters.get(process.master, process.born))

        def rank(worker: Process) -> tuple[float, float]:
            """Workers of a newer master are newer, also if an older one has replaced one meanwhile."""
            return masters[worker.master], worker.born

        for r in sorted((r for r in records if r.kind == "request" and not r.failed), key=lambda r: r.end):
            worker = processes.get(r.pid or 0)
            if worker is None:
                continue
            since, known = newest.get(r.client, (0.0, worker))
            if rank(worker) >= rank(known) or worker.slot != known.slot:
                newest[r.client] = (r.end, worker) if worker is not known else (since or r.end, worker)
            elif (
                r.start > since
                and not known.is_gone(r.end)
                and not known.stopped
                and (known.leaving is None or known.leaving > r.end)
                and not self._history.within("slots", r.start, r.end)
            ):
                yield r
