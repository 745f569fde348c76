"""How much of what we add grows with a machine's workers and open WebSockets: dispatcher, master, and status.

Sessions begin at a rate, and a tenth of their requests make the connection change hands (see scaling_client.py), while
no WebSocket is open, and then more and more of them, spread over all workers and silent: what they do themselves is
measured by socketio_clients.py. All this also with fewer workers, without WebSockets. With threads there is a tenth of
the WebSockets, as each of them has threads of its own.

    python benchmarks/scaling.py [--quick] [--kind KINDS] [--workers NUMBERS] [--sockets NUMBERS] [--rate N]

Of each step is told what was reached, and what it took; µs, ms and MB are those of CPU time and memory (PSS):

- session: the workers' µs for its two requests and its connection
- dispatcher: its µs for a connection; a tenth of all requests bring it one back, and that counts in these µs
- master: its ms in each second
- reading: the ms to read metrics and board; with /metrics and `gunicorn-sticky status`, those of all that it takes
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import machine, versions
from contender import HERE, NICE, cpu_seconds, kib_in, memory
from kind import KINDS, Kind, some
from support.harness import BIN, Server, descriptors, request, wait_for

from gunicorn_sticky.status import snapshot
from gunicorn_sticky.status.snapshot import READY

#: A process opens no more WebSockets than these, so that the limit of open files is not theirs.
HERD = 5000
#: Readings of the status that each figure is the median of.
READINGS = 9
#: Seconds that workers may take to boot, or WebSockets to open.
PATIENCE = 200.0
#: Of the machine's memory, what has to be available.
SPARE = 0.4
#: By how many times fewer WebSockets there are with threads.
FEWER = 10
#: By kind, options of its own, and what is served if that is not ASGI.
OPTIONS = {"threads": ("--threads", "60"), "uvicorn": ("-k", "scaling_worker.QuietUvicornWorker")}
APPS = {"gevent": "wsgi('gevent')", "threads": "wsgi('threading')"}


@dataclass
class Figures:
    """What is told of a step."""

    workers: int
    sockets: int
    sessions_per_s: float
    #: Milliseconds.
    p50: float
    p99: float
    #: Percent of requests.
    handed_over: float
    session: float
    dispatcher: float
    dispatcher_mb: float
    dispatcher_files: int
    master: float
    reading: float
    metrics: float
    command: float
    #: What all workers take before sessions come, in MB.
    workers_mb: float
    #: What the kernel takes for each open WebSocket, of both its ends, in kB.
    slab_mb: float


def options(kind: Kind, workers: int) -> list[str]:
    """Return the command line."""
    given = [*kind.args(sticky=True), *OPTIONS.get(kind.name, ()), "-w", str(workers), "--sticky-by", "session"]
    given += "--sticky-status", "127.0.0.1:0", "--worker-connections", "10000", "--keep-alive", "75", "--timeout", "120"
    return [*given, f"scaling_app:{APPS.get(kind.name, 'asgi()')}"]


class Rig:
    """A server, and the WebSockets that are open there."""

    def __init__(self, server: Server, workers: int) -> None:
        self.server, self.workers = server, workers
        self.sockets = 0
        self._herds: list[subprocess.Popen[str]] = []
        (self.status,) = wait_for(lambda: list(snapshot.find(server.pid)), "the master")
        wait_for(self._is_ready, "all workers", PATIENCE)
        self._page = int(server.wait_for_log(r"Status at: http://.*:(\d+)$")[1])
        self.worker_pids = server.alive("worker")
        self.dispatcher, self.status_server = (server.alive(kind)[-1] for kind in ("dispatcher", "status server"))

    def _is_ready(self) -> bool:
        slots = self.status.status()["slots"]
        return len(slots) == self.workers and all(slot["state"] == READY for slot in slots)

    def fill(self, sockets: int) -> None:
        """Open WebSockets until there are so many."""
        while self.sockets < sockets:
            count = min(HERD, sockets - self.sockets)
            given = json.dumps({"port": self.server.port, "count": count, "offset": self.sockets})
            herd = subprocess.Popen(
                [*NICE, sys.executable, str(HERE / "scaling_client.py"), "stay", given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._herds.append(herd)
            assert herd.stdout
            assert herd.stdout.readline() == "open\n", "WebSockets could not be opened"
            self.sockets += count

    def disperse(self) -> None:
        """End the clients of the WebSockets, which all have to be open still."""
        still_open = [int(herd.communicate()[0]) for herd in self._herds]
        self._herds.clear()
        assert sum(still_open) == self.sockets, f"{sum(still_open)} of {self.sockets} WebSockets are open"

    def kill(self) -> None:
        for herd in self._herds:
            herd.kill()
            herd.wait()

    def measure(self, rate: float, seconds: float) -> Figures:
        """Let sessions come and go."""
        total = kib_in(Path("/proc/meminfo"), "MemTotal")
        assert kib_in(Path("/proc/meminfo"), "MemAvailable") > SPARE * total, "memory is short"
        self.visit(rate, 1.0)  # so that all has been loaded
        workers_mb, slab = memory(self.worker_pids) / 1e6, kib_in(Path("/proc/meminfo"), "Slab") / 1e3
        before, clocks, start = self._counted(), self._clocks(), time.monotonic()
        seen = self.visit(rate, seconds)
        elapsed = time.monotonic() - start
        counted = [b - a for a, b in zip(before, self._counted(), strict=True)]
        accepted, requests, handed = counted
        workers, dispatcher, master = (b - a for a, b in zip(clocks, self._clocks(), strict=True))
        return Figures(
            workers=self.workers,
            sockets=self.sockets,
            sessions_per_s=seen["sessions"] / seen["seconds"],
            p50=seen["p50"] * 1e3,
            p99=seen["p99"] * 1e3,
            handed_over=100 * handed / requests,
            session=workers / seen["sessions"] * 1e6,
            dispatcher=dispatcher / accepted * 1e6,
            dispatcher_mb=memory([self.dispatcher]) / 1e6,
            dispatcher_files=len(descriptors(self.dispatcher)),
            master=master / elapsed * 1e3,
            reading=taken(self.status.status, time.process_time),
            metrics=taken(self._get_metrics, lambda: cpu_seconds([self.status_server])),
            command=taken(self._command, children_seconds, 3),
            workers_mb=workers_mb,
            slab_mb=slab,
        )

    def visit(self, rate: float, seconds: float) -> dict[str, Any]:
        given = json.dumps({"ports": [self.server.port], "rate": rate, "seconds": seconds})
        output = subprocess.check_output([sys.executable, str(HERE / "scaling_client.py"), "visit", given])
        seen: dict[str, Any] = json.loads(output)
        assert not seen["errors"], seen["errors"]
        return seen

    def _counted(self) -> tuple[int, int, int]:
        """Return how many connections the dispatcher has accepted, of requests, and of handovers."""
        status = self.status.status()
        requests, handed = (sum(slot[name] for slot in status["slots"]) for name in ("requests", "handed_over"))
        return status["dispatcher"]["accepted"], requests, handed

    def _clocks(self) -> list[float]:
        return [cpu_seconds(pids) for pids in (self.worker_pids, [self.dispatcher], [self.server.pid])]

    def _get_metrics(self) -> None:
        assert request(self._page, path="/metrics").status == 200

    def _command(self) -> None:
        command = [sys.executable, "-m", "gunicorn_sticky", "status", "--json"]
        # The exit code is that of other servers, too.
        shown = subprocess.run(command, check=False, stdout=subprocess.PIPE, env=os.environ | environment()).stdout
        assert self.server.pid in {server["pid"] for server in json.loads(shown)}


def taken(read: Callable[[], object], clock: Callable[[], float], times: int = READINGS) -> float:
    """Return the median of what a reading takes, in ms."""
    found = []
    for _ in range(times):
        before = clock()
        read()
        found.append((clock() - before) * 1e3)
    return statistics.median(found)


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def environment() -> dict[str, str]:
    """Return what lets a process find this directory, and the package beside it."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}


@contextlib.contextmanager
def rig(kind: Kind, workers: int) -> Iterator[Rig]:
    command = [*NICE, str(BIN / "gunicorn")]
    with Server(*options(kind, workers), command=command, env=environment()) as server:
        found = Rig(server, workers)
        try:
            yield found
        finally:
            found.kill()


def show(values: Sequence[object]) -> None:
    """Print a line of a table."""
    print(
        "|", " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values), "|", flush=True
    )


def show_sockets(empty: Figures, full: Figures) -> None:
    """Print what an open WebSocket takes."""
    own, kernel = full.workers_mb - empty.workers_mb, full.slab_mb - empty.slab_mb
    each = 1e3 / full.sockets
    print(f"\nAn open WebSocket: {own * each:.1f} kB of a worker, {kernel * each:.1f} kB of the kernel's for both ends")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few workers and WebSockets, short runs")
    parser.add_argument("--kind", metavar="KINDS", help="with commas between them")
    parser.add_argument("--workers", type=numbers, help="with commas between them; WebSockets are opened with the last")
    parser.add_argument("--sockets", type=numbers, help="with commas between them")
    parser.add_argument("--rate", type=float, help="sessions a second")
    parser.add_argument("--seconds", type=float, help="of each step")
    given = parser.parse_args()
    short, long = ([1, 2], [0, 500], 200.0, 2.0), ([2, 16, 64], [0, 5000, 10000, 20000], 1000.0, 8.0)
    workers, sockets, rate, seconds = short if given.quick else long
    workers, sockets = given.workers or workers, given.sockets or sockets
    print(machine(), versions(), "rate:", given.rate or rate, flush=True)
    for kind in some(given.kind, KINDS):
        print(f"\n{kind.name}\n")
        names = [field.name for field in dataclasses.fields(Figures)]
        show(names)
        show(["---"] * len(names))
        for count in workers:
            steps: list[Figures] = []
            with rig(kind, count) as running:
                for wanted in sockets if count == workers[-1] else [0]:
                    running.fill(wanted // FEWER if kind.name == "threads" else wanted)
                    steps.append(running.measure(given.rate or rate, given.seconds or seconds))
                    show(dataclasses.astuple(steps[-1]))
                running.disperse()
        if steps[-1].sockets > steps[0].sockets == 0:
            show_sockets(steps[0], steps[-1])


if __name__ == "__main__":
    main()
