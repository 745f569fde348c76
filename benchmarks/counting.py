"""What counting (gunicorn_sticky/shared/metrics.py) costs: its share of a request's CPU time.

That is too little to be seen by comparing a server that counts with one that does not: two of the same differ by more.
So the share is a product. Each part of it is measured here, in the same run:

- additions: how many numbers a request changes, in the worker and in the dispatcher. They are counted, by
  a server that counts them.
- time of one: what the worker's four take, done between two requests' heads that Gunicorn's parser parses, and compared
  with the same without them. On their own, in a loop, they would be faster than they are among other work.
- CPU of a request: of all processes of a server as it is, while it answers as much as it can. That is when a request
  costs least, and the share is highest.

Round by round, the last two are measured right after each other. Exits with 1 if a share is over the limit.

    python benchmarks/counting.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import wrk
from compare import machine
from contender import HERE, cpu_seconds
from counting_rows import WRITERS, cells
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from report import Spread
from support.harness import STICKY, Server, wait_for

from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.workers.config import CachedConfig

#: The share of a request's CPU time that counting may take.
LIMIT = 0.01
WORKERS = 2
KEYS = {"ip": (), "header": ("--sticky-proxy",)}
WORKLOADS = ("new", "keep-alive")
#: Clients, and requests of each, whose additions are counted.
CLIENTS, REQUESTS_EACH = 16, 200
#: Seconds of a run with as many requests as possible.
SECONDS = 1
#: Comparisons for the time of an addition, and heads parsed for each side of one.
PAIRS, HEADS = 200, 50
#: The worker's additions for a request on a new connection.
ADDITIONS = 4

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 127.100.100.100\r\nConnection: close\r\n\r\n"


@dataclass
class Case:
    by: str
    workload: str
    server: Server
    #: Additions of a request, by `WRITERS`.
    additions: list[float]
    cpu: list[float] = field(default_factory=list)
    addition: list[float] = field(default_factory=list)

    def shares(self) -> Spread:
        pairs = zip(self.addition, self.cpu, strict=True)
        return Spread.of([sum(self.additions) * one / cpu for one, cpu in pairs])


class Addition:
    """Measures the time of one addition."""

    def __init__(self) -> None:
        self._metrics = Metrics().worker(0)
        self._cfg = CachedConfig(Config())

    def _parse(self) -> None:
        next(RequestParser(self._cfg, iter([HEAD]), ("127.0.0.1", 1)))

    def _without(self) -> None:
        for _ in range(HEADS):
            self._parse()

    def _with(self) -> None:
        for _ in range(HEADS):
            self._parse()
            self._metrics.connections.inc()
            self._metrics.dispatched.inc()
            self._metrics.requests.inc()
            self._metrics.connections.dec()

    def seconds(self) -> float:
        """Return the median of all comparisons."""
        differences = []
        for number in range(PAIRS):
            sides: list[Callable[[], None]] = [self._without, self._with]
            taken = {}
            for side in sides if number % 2 else reversed(sides):
                start = time.perf_counter()
                side()
                taken[side] = time.perf_counter() - start
            differences.append((taken[self._with] - taken[self._without]) / HEADS / ADDITIONS)
        return statistics.median(differences)


def count(by: str, workload: str, folder: Path) -> list[float]:
    """Return how many additions a request causes, by `WRITERS`."""
    path = folder / f"{by} {workload}"
    path.write_bytes(bytes(8 * len(WRITERS)))
    counts = cells(str(path))
    env = {"PYTHONPATH": str(HERE), "COUNTING": str(path)}
    with Server(
        *STICKY, "-w", "1", *KEYS[by], "empty:wsgi", env=env, config="import counting_rows\ncounting_rows.install()\n"
    ) as server:
        wait_for(lambda: server.get(headers={"X-Forwarded-For": "127.0.0.1"}).status == 200, "the worker")
        before = counts.tolist()
        task = {"workload": workload, "seconds": 30, "clients": CLIENTS, "sessions": REQUESTS_EACH}
        command = [sys.executable, str(HERE / "client.py"), json.dumps(task | {"ports": [server.port]})]
        seen = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
        assert not seen["errors"], seen["errors"]
        server.stop()  # so that it has counted the ends of all connections
        return [(after - earlier) / seen["requests"] for earlier, after in zip(before, counts.tolist(), strict=True)]


def load(case: Case, library: Path, offset: int) -> float:
    """Return the seconds of CPU that a request takes."""
    processes = case.server.session()
    before = cpu_seconds(processes)
    seen = wrk.load(library, [case.server.port], SECONDS, case.workload == "keep-alive", offset)
    assert not seen["errors"], seen["errors"]
    return (cpu_seconds(processes) - before) / float(seen["requests"])


def table(cases: Sequence[Case]) -> None:
    print(
        "| by | request | additions of the worker | of the dispatcher | one takes, µs | CPU of a request, µs | share |"
    )
    print("|---" * 7 + "|")
    for case in cases:
        additions = " | ".join(f"{number:.2f}" for number in case.additions)
        one, cpu = (Spread.of([1e6 * value for value in values]) for values in (case.addition, case.cpu))
        share = Spread(*(100 * value for value in case.shares())).text()
        kind = "on a new connection" if case.workload == "new" else "on one that stays open"
        print(f"| {case.by} | {kind} | {additions} | {one.text(3)} | {cpu.text(0)} | {share} % |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gunicorn-sticky-") as name, ExitStack() as stack:
        folder = Path(name)
        library = wrk.build(folder)
        cases = []
        for by, settings in KEYS.items():
            command = (*STICKY, "-w", str(WORKERS), "--keep-alive", "75", *settings, "empty:wsgi")
            server = stack.enter_context(Server(*command, env={"PYTHONPATH": str(HERE)}))
            cases += [Case(by, workload, server, count(by, workload, folder)) for workload in WORKLOADS]
        addition = Addition()
        for number in range(options.rounds):
            for case in cases:
                case.cpu.append(load(case, library, number * wrk.CONNECTIONS))
                case.addition.append(addition.seconds())
    computer = machine()
    print(f"{options.rounds} rounds on {computer['cpu']}, {computer['cores']} cores, Linux {computer['kernel']}\n")
    table(cases)
    worst = max(case.shares().median for case in cases)
    print(f"\nCounting takes at most {worst:.2%} of a request's CPU time (limit {LIMIT:.0%}).")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
