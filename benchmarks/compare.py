"""Sticky sessions compared: with stock Gunicorn, with proxies before single-worker Gunicorns, with Node's packages.

One kind of worker after the other; all servers of a kind run side by side. Round by round, and in an order that is new
each time, each is loaded twice: at a rate that is the same for all of them, for latencies and CPU seconds, and by as
much as it takes, for requests/s and CPU seconds. Ratios are those of two runs of one round.

    python compare.py [--quick] [--rounds N] [--seed N] [--output FOLDER]
    python compare.py [--only gevent,uvicorn] [--workloads "new connections"] [--contenders "sticky by ip"] ...

The second form measures some of it, with two workers, and only prints that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dispatcher
import footprint
import handover
import plots
import report
import wrk
from client import ADDRESSES, WARM_UP
from contender import CHOSEN, HERE, NODE, Contender, Contenders, cpu_seconds
from kind import KINDS, Kind, some
from workload import WORKLOADS, Workload, cannot

ROOT = HERE.parent
#: What the rate is of the baseline's most. Requests that come one by one cost twice the CPU, others cost more than the
#: baseline, and the client needs some too: all that has to be less than there is.
SHARE = 0.2
#: Seconds of a run with as many requests as possible. Many short runs tell more than a few long ones.
SECONDS = 1.0
#: Clients at once, of those that are not wrk's.
CLIENTS = 64
#: Seconds that a contender may take to boot.
PATIENCE = 20.0


class Bench:
    def __init__(self, folder: Path, workloads: Sequence[Workload], options: argparse.Namespace) -> None:
        self.folder = folder
        self.workloads = workloads
        self.contenders: list[str] | None = options.contenders
        self.quick: bool = options.quick
        self.rounds: int = options.rounds
        self.random = random.Random(options.seed)
        self.seconds = SECONDS / 2 if self.quick else SECONDS
        # All of them begin a session, which they end.
        self.clients = CLIENTS // 2 if self.quick else CLIENTS
        self.rate_seconds = WARM_UP + (0.3 if self.quick else 0.8)
        self.library = wrk.build(folder)
        self.runs: list[dict[str, Any]] = []
        self.cannot: list[dict[str, Any]] = []
        self.broken: list[dict[str, Any]] = []

    def run(self, kind: Kind, workers: int) -> None:
        take_part = {
            workload: names
            for workload in self.workloads
            if workers == 2 or workload.scales
            if (names := workload.names(kind, self.quick or workers != 2, self.contenders))
        }
        wanted = dict.fromkeys(name for names in take_part.values() for name in names)
        with Contenders(self.folder, kind, workers, list(wanted)) as running:
            self.compare(kind, workers, running, take_part)

    def compare(
        self, kind: Kind, workers: int, running: dict[str, Contender], take_part: dict[Workload, list[str]]
    ) -> None:
        about = {"kind": kind.name, "workers": workers}
        able = {
            workload: [name for name in names if self.is_able(workload, running[name], about)]
            for workload, names in take_part.items()
        }
        rates = {}
        for workload in take_part:
            if workload.baseline in able[workload]:
                saturated = self.saturate(workload, running[workload.baseline], 0)
                rates[workload] = saturated["requests"] / saturated["seconds"] * SHARE
        for number in range(self.rounds):
            print(f"{kind.name}, {plural(workers, 'worker')}, round {number + 1} of {self.rounds}", flush=True)
            for workload in self.random.sample(list(rates), len(rates)):
                turns = [name for name in able[workload] if self.takes_turn(name, number)]
                for name in self.random.sample(turns, len(turns)):
                    self.measure(workload, running[name], about | {"round": number}, rates[workload])

    def takes_turn(self, contender: str, number: int) -> bool:
        """What is close together needs more rounds than what is not."""
        return number % 2 == 0 or contender == CHOSEN or "stock" in contender or "sticky by" in contender

    def is_able(self, workload: Workload, contender: Contender, about: dict[str, Any]) -> bool:
        """Try some sessions until all succeed: the contender may still be booting."""
        expected = not cannot(workload, contender.name, about["workers"])
        deadline = time.monotonic() + (PATIENCE if expected else 0)
        while True:
            seen = self.client(workload, contender, 5, clients=16, sessions=1)
            if not seen["errors"]:
                return True
            if time.monotonic() > deadline:
                break
        which = about | {"workload": workload.name, "contender": contender.name}
        (self.broken if expected else self.cannot).append({**which, "errors": seen["errors"]})
        return False

    def client(self, workload: Workload, contender: Contender, seconds: float, **task: Any) -> dict[str, Any]:
        task |= {"ports": contender.ports, "workload": workload.does, "seconds": seconds}
        command = [sys.executable, str(HERE / "client.py"), json.dumps(task)]
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout))

    def saturate(self, workload: Workload, contender: Contender, offset: int) -> dict[str, Any]:
        if workload.does in ("new", "keep-alive"):
            return wrk.load(self.library, contender.ports, self.seconds, workload.does == "keep-alive", offset)
        return self.client(workload, contender, self.seconds, clients=self.clients, offset=offset)

    def measure(self, workload: Workload, contender: Contender, about: dict[str, Any], rate: float) -> None:
        run = about | {"workload": workload.name, "contender": contender.name}
        try:
            run |= self.figures(workload, contender, rate)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            run["errors"] = {str(error): 1}
        self.runs.append(run)
        if run["errors"]:
            self.broken.append(run)

    def figures(self, workload: Workload, contender: Contender, rate: float) -> dict[str, Any]:
        # Hashes share out some addresses evenly, and others less so.
        offset = self.random.randrange(ADDRESSES)
        processes = contender.processes()
        start = cpu_seconds(processes)
        # First, for whoever has been idle to wake up.
        steady = self.client(workload, contender, self.rate_seconds, rate=rate / workload.requests, offset=offset)
        middle = cpu_seconds(processes)
        most = self.saturate(workload, contender, offset)
        end = cpu_seconds(processes)
        errors = most["errors"] | steady["errors"]
        if contender.processes() != processes:
            errors["processes have come or gone"] = 1
        if not most["requests"] or steady["p99"] is None:
            return {"errors": errors | {"no answers": 1}}
        return {
            "errors": errors,
            "requests_per_second": most["requests"] / most["seconds"],
            "cpu": (end - middle) * 10_000 / most["requests"],
            "rate": rate,
            "p50": steady["p50"] * 1e3,
            "p99": steady["p99"] * 1e3,
            "cpu_at_rate": (middle - start) * 10_000 / steady["requests"],
            "clients": steady["clients"],
            "servers": steady["servers"],
            "moved": steady["moved"],
        }


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"


def output_of(*command: str) -> str:
    """Return the first line that a program prints about itself, wherever it does."""
    env = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    return done.stdout.splitlines()[0] if done.stdout else ""


def number_in(text: str) -> str:
    match = re.search(r"\d+(\.\d+)+", text)
    return match[0] if match else text


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    packages = (
        "gunicorn-sticky",
        "gunicorn",
        "gunicorn_h1c",
        "gevent",
        "uvicorn",
        "uvicorn-worker",
        "httptools",
        "uvloop",
        "python-engineio",
        "simple-websocket",
    )
    found = {"Python": platform.python_version()} | {name: version(name) for name in packages}
    found["commit"] = output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    found |= {name: number_in(output_of(name, "-v")) for name in ("nginx", "haproxy", "wrk", "node")}
    lock = json.loads((HERE / "node" / "package-lock.json").read_text())["packages"]
    return found | {
        name: lock[f"node_modules/{name}"]["version"] for name in (*{n.split()[0]: 0 for n in NODE}, "engine.io")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer contenders, shorter runs, two workers")
    parser.add_argument("--rounds", type=int, help="by default 12, or 3 if quick")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the order of the runs")
    parser.add_argument("--output", type=Path, help="where benchmarks.md goes: by default docs, or build if quick")
    parser.add_argument("--only", metavar="KINDS", help="kinds of workers, with commas between them")
    parser.add_argument("--workloads", help="workloads, with commas between them")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="who is compared with the baseline")
    options = parser.parse_args(arguments)
    rounds = options.rounds = options.rounds or (3 if options.quick else 12)
    kinds, workloads = some(options.only, KINDS), some(options.workloads, WORKLOADS)
    is_part = bool(options.only or options.workloads or options.contenders)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "quick": options.quick,
        "rounds": rounds,
        "seed": options.seed,
    }
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="gunicorn-sticky-") as folder:
        os.chmod(folder, 0o755)  # nginx's workers are somebody else's
        bench = Bench(Path(folder), workloads, options)
        for kind in kinds:
            for workers in (2,) if options.quick or is_part else (1, 2, 4):
                bench.run(kind, workers)
    results |= {"runs": bench.runs, "cannot": bench.cannot, "broken": bench.broken}
    if is_part:
        report.show(results)
    else:
        results["footprint"] = footprint.main(["--rounds", "1" if options.quick else "5"])
        results["handover"] = handover.main(["--rounds", str(rounds), *["--quick"] * options.quick])
        results["dispatcher"] = dispatcher.main(["--quick"] * options.quick)
        output = options.output or ROOT / ("build" if options.quick else "docs")
        report.write(results, plots.draw(results, output / "benchmarks"), output)
    return 1 if bench.broken else 0


if __name__ == "__main__":
    sys.exit(main())
