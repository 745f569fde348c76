"""What the fault harness does around a fault: starts the server and its load, and looks at what became of both.

`STICKY_FAULTS` says how often faults are injected: 1, the default, for a short form, and 50 for the full one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from support.harness import TESTS, Server, addresses, request, wait_for
from support.kinds import KINDS, Kind, one_each

FAULTS = int(os.environ.get("STICKY_FAULTS", "1"))
#: Requests a second that a promise is made for, and those that are sent.
PROMISED_RATE, RATE = 200, 260
CLIENTS = 240
#: Seconds that any request may take longer than what it asks for.
ENDS_WITHIN = 5.0
#: By how many bytes arbiter and dispatcher may have grown.
GROWTH = 4 << 20

BY = {
    "ip": (),
    "header": ("--sticky-proxy",),
    "session": ("--sticky-by", "session", "--sticky-session-keys", "query:session"),
}


class MachineTooBusy(Exception):
    """Nothing can be said of the server: the load itself could not run as it should."""


def kinds(turn: int) -> Sequence[Kind]:
    """Return the kinds that a fault is tested with: the first and another one, or in the full form all.

    Args:
        turn: which other kind: another number for each test
    """
    return KINDS if FAULTS > 1 else (KINDS[0], KINDS[1 + turn % (len(KINDS) - 1)])


def each_fault(turn: int, *cases: str) -> pytest.MarkDecorator:
    """Run a test of a fault, which gets `kind` and `by`, for each case with the first kind, and for one with others.

    In the full form, it runs for each case with each kind.

    Args:
        turn: see `kinds`; it also says which case
        cases: the values of `by`
    """
    every = [(case,) for case in cases]
    few = every if FAULTS > 1 else [every[turn // 3 % len(every)]]
    return pytest.mark.parametrize(("kind", "by"), one_each(every, few, kinds(turn)))


def times(short: int, full: int) -> int:
    """Return how often to inject a fault."""
    return min(full, short * FAULTS)


@dataclass(frozen=True)
class Record:
    """How one request went, see load.py; a WebSocket's are its messages."""

    client: str
    #: "request", "poll" or "socket".
    kind: str
    #: Whether the connection has been used before.
    kept: bool
    #: Whether the head came in two halves.
    split: bool
    start: float
    end: float
    #: How long it was to take.
    seconds: float
    #: The answer's status, or how it ended without: "refused", "reset", "closed", "cut", "timeout".
    outcome: str
    slot: int | None
    pid: int | None
    #: When the application began with it.
    began: float | None
    #: Who has answered on this connection before.
    last_slot: int | None
    last_pid: int | None
    #: The pid of the worker that minted the session.
    owner: int | None
    retry_after: float
    #: When its connection was made.
    opened: float

    @property
    def failed(self) -> bool:
        return self.outcome != "200"

    @property
    def delay(self) -> float:
        """The seconds that it took longer than asked for."""
        return self.end - self.start - self.seconds


class Load:
    """A running load.py.

    Args:
        server: whom it asks
        by: the key
        command: another program that prints records
    """

    def __init__(self, server: Server, by: str, command: Sequence[str] = ()) -> None:
        self.by = by
        self._path = server.folder / f"load-{time.monotonic_ns()}"
        self._seen: list[Record] = []
        #: When, and for how many seconds, the load could not run.
        self.late: list[tuple[float, float]] = []
        #: Requests that were due while all clients waited for answers.
        self.unsent = 0
        self._read = 0
        command = command or [
            str(TESTS / "clients" / "load.py"),
            str(server.port),
            by,
            f"--rate={RATE}",
            f"--clients={CLIENTS}",
        ]
        with self._path.open("wb") as output:
            self._process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=output)

    @property
    def records(self) -> list[Record]:
        """What has ended so far, in that order."""
        names = [field.name for field in fields(Record)]
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                values = json.loads(line)
                if values["kind"] == "late":
                    self.late.append((values["start"], values["end"] - values["start"]))
                elif values["kind"] == "unsent":
                    self.unsent += 1
                else:
                    self._seen.append(Record(**{name: values[name] for name in names}))
        return self._seen

    def wait_for_answers(self, since: float, count: int, which: Callable[[Record], Any] = lambda _: True) -> None:
        """Wait until `count` such requests that began after `since` have been answered."""
        wait_for(
            lambda: sum(r.start >= since and not r.failed and bool(which(r)) for r in self.records) >= count,
            f"{count} answers",
        )

    def wait_for_everybody(self) -> None:
        """Wait until each client has had an answer."""
        wait_for(
            lambda: len({r.client for r in self.records if r.kind == "request" and not r.failed}) == CLIENTS,
            "an answer to each client",
        )

    def worker(self, slot: int) -> int:
        """Return the pid of the worker that answered last in a slot."""
        return next(
            r.pid for r in reversed(self.records) if r.slot == slot and r.pid is not None and r.kind != "socket"
        )

    def homes(self) -> dict[str, int]:
        """Return the slot of each client, by its first answer."""
        found: dict[str, int] = {}
        for record in self.records:
            if record.slot is not None:
                found.setdefault(record.client, record.slot)
        return found

    def stop(self) -> list[Record]:
        """Let the last requests end, and return all records."""
        if self._process.poll() is None:
            assert self._process.stdin
            self._process.stdin.close()
        assert self._process.wait(60) == 0
        return self.records

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()


def busy_server(by: str, workers: int, *options: str, kind: Kind = KINDS[0], **kwargs: Any) -> Server:
    """Start tests/apps/busy.py."""
    args = (*kind.args, *BY[by], "-w", str(workers), "--keep-alive", "5", *options)
    return Server(*args, kind.app("busy"), **kwargs)


def ask(server: Server, client: str, path: str = "/", **kwargs: Any) -> dict[str, Any]:
    """Send a request as one of the clients of the load would, by IP or by header."""
    response = request(server.port, path, source=client, headers={"X-Forwarded-For": client}, **kwargs)
    assert response.status == 200, response
    return dict(json.loads(response.body))


def wait_until_ready(server: Server, workers: int) -> None:
    """Wait until all workers answer."""
    seen: set[int] = set()
    clients = iter(addresses(10000))

    def everybody() -> bool:
        seen.add(ask(server, next(clients))["pid"])
        return len(seen) == workers

    wait_for(everybody, f"{workers} workers")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> int:
    """Return the bytes that a process has for itself."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def under_load(server: Server, by: str = "ip", workers: int = 4, waits: float = 0.0) -> Iterator[Load]:
    """Run the load; afterwards every process has to be there and as it was before, and no request may have hung.

    Args:
        server: from `busy_server`
        by: the key
        workers: how many there are, before and after
        waits: how many seconds some requests may have to wait in addition
    """
    wait_until_ready(server, workers)
    [dispatcher] = server.alive("dispatcher")
    before = [(descriptors(pid), memory(pid)) for pid in (server.pid, dispatcher)]
    load = Load(server, by)
    try:
        load.wait_for_everybody()
        yield load
        last = time.monotonic()
        load.wait_for_answers(last, 50)
        records = load.stop()
    finally:
        load.kill()
    check_ends(records, waits)
    check_rate(load)
    wait_for(lambda: len(server.alive("worker")) == workers, f"{workers} workers and no more")
    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
    for pid, (most, size) in zip((server.pid, *server.alive("dispatcher")), before, strict=True):
        wait_for(lambda: descriptors(pid) <= most, f"{pid} to close what it had opened")  # noqa: B023
        assert memory(pid) - size < GROWTH, f"{pid} has grown from {size >> 10} to {memory(pid) >> 10} KiB"


def check_ends(records: list[Record], waits: float = 0.0) -> None:
    """No request may hang, however it ends."""
    hung = [r for r in records if r.delay > ENDS_WITHIN + waits or r.outcome == "timeout"]
    assert not hung, summary(hung)


def check_rate(load: Load) -> None:
    """Say so if this machine could not keep up the load."""
    starts = [r.start for r in load.records if r.kind == "request"]
    rate = (len(starts) + load.unsent) / (max(starts) - min(starts))
    if rate < PROMISED_RATE:
        worst = max((seconds for _, seconds in load.late), default=0.0)
        raise MachineTooBusy(
            f"{rate:.0f} requests a second instead of {PROMISED_RATE}, the load came up to {worst:.2f} s too late"
        )


def is_too_late(load: Load, start: float, end: float) -> bool:
    """Tell whether the machine was too busy for times between two points to say something of the server."""
    return any(seconds > 0.1 for at, seconds in load.late if at < end and at + seconds > start)


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[int(len(values) * percent / 100)] if values else 0.0


def summary(records: list[Record], since: float = 0.0) -> str:
    """Return the first of them, for an assertion's message."""
    lines = [
        f"{r.start - since:9.3f} +{r.end - r.start:6.3f} {r.outcome:8} {r.client} {r.kind} kept={r.kept} "
        f"split={r.split} seconds={r.seconds} slot={r.slot} pid={r.pid} last={r.last_slot}/{r.last_pid} owner={r.owner}"
        for r in records[:20]
    ]
    return f"{len(records)} of them\n" + "\n".join(lines)


def assert_nothing(records: list[Record], what: str, since: float = 0.0) -> None:
    assert not records, f"{what}: {summary(records, since)}"


def assert_nobody_moved(load: Load) -> None:
    """By IP and by header: every answer came from the client's own slot; by session: from the session's worker."""
    if load.by == "session":
        moved = [r for r in load.records if r.outcome == "200" and r.owner is not None and r.pid != r.owner]
    else:
        homes = load.homes()
        moved = [r for r in load.records if r.slot is not None and r.slot != homes[r.client]]
    assert_nothing(moved, "answered by another worker than it should")
