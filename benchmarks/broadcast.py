"""Broadcasts between workers: ClusterManager compared with python-socketio's RedisManager and a Redis of its own.

Both servers run side by side, with four workers each. Round by round, the first one first or last in turn, each is
loaded twice: by one message every few milliseconds, for latencies, and by as many as every worker can hear, for
messages/s. One worker publishes, all four hear, itself included. A message's latency is that of the last one to hear
it, from before emit() until it is handed to the clients, of which there are none. Ratios are those of two runs of one
round.

Redis is reached by a Unix socket and keeps nothing on disk. Exits with 1 if messages
were lost, or if a bar is not met on this machine in at least `ENOUGH` rounds.

    python benchmarks/broadcast.py [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from compare import machine, number_in, output_of
from contender import HERE, cpu_seconds
from heard import Heard
from report import Spread
from support.harness import STICKY, Server, wait_for

WORKERS = 4
#: In a steady run.
MESSAGES = 2000
#: Bytes of a message, number of messages, and seconds between two of them.
STEADY = {"size": 1000, "count": MESSAGES, "pause": 0.004}
#: Bytes of a message, and seconds.
FLOOD = {"size": 200, "seconds": 2}
#: Rounds whose median says something.
ENOUGH = 5
#: To find out whether everyone listens.
KNOCK = {"size": 200, "count": 10, "pause": 0.001}
#: Seconds for what is on its way.
PATIENCE = 10.0
OURS, THEIRS = NAMES = ("ClusterManager", "RedisManager")


@dataclass(frozen=True)
class Bar:
    """What ClusterManager has promised of a figure: a limit, and to be better than RedisManager."""

    limit: float
    #: Whether more is better.
    more: bool = False

    def is_met(self, own: float, ratio: float) -> bool:
        return (own >= self.limit and ratio > 1) if self.more else (own <= self.limit and ratio < 1)

    def __str__(self) -> str:
        return f"{'≥' if self.more else '≤'} {self.limit:,}, ratio {'>' if self.more else '<'} 1"


#: Titles, digits, and bars.
FIGURES: dict[str, tuple[str, int, Bar | None]] = {
    "p50": ("p50 latency, ms", 2, None),
    "p99": ("p99 latency, ms", 2, Bar(1)),
    "rate": ("messages/s", 0, Bar(20_000, more=True)),
    "cpu": ("CPU seconds per 10 000 messages, at that rate", 2, None),
    "cpu_steady": ("CPU seconds per 10 000 messages, one by one", 2, None),
}


class Contender:
    """A server whose workers have all booted, and maybe the Redis between them."""

    def __init__(self, server: Server, redis: Sequence[int], folder: Path) -> None:
        self._server = server
        self._redis = redis
        wait_for(lambda: len(list(folder.iterdir())) == WORKERS, f"{WORKERS} workers")
        self._heard = [Heard(path) for path in folder.iterdir()]
        wait_for(lambda: not self._run(KNOCK, patience=0.5)["lost"], "all workers to listen")

    def _run(self, task: Mapping[str, float], patience: float = PATIENCE) -> dict[str, Any]:
        for heard in self._heard:
            heard.clear()
        cpu, spare = self._cpu(), idle_seconds()
        start = time.monotonic()
        run = json.loads(self._server.get(f"/?{urlencode(task)}").body)
        published = run["published"]
        with contextlib.suppress(AssertionError):
            wait_for(lambda: min(heard.next for heard in self._heard) == published, "all to hear", patience)
        cpu, spare = self._cpu() - cpu, idle_seconds() - spare
        return {
            "cpu": cpu * 10_000 / published,
            "rate": published / (max(heard.last for heard in self._heard) - run["start"]) * 1e9,
            "lost": sum(published - heard.next + heard.astray for heard in self._heard),
            "others": max(0.0, 1 - (spare + cpu) / (time.monotonic() - start) / (os.cpu_count() or 1)),
        }

    def _cpu(self) -> float:
        return cpu_seconds([*self._server.session(), *self._redis])

    def measure(self) -> dict[str, float]:
        steady = self._run(STEADY)
        latencies = [max(all_of) for all_of in zip(*(h.latencies(MESSAGES) for h in self._heard), strict=True)]
        percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
        flood = self._run(FLOOD)
        return {
            "p50": percentiles[49] / 1e6,
            "p99": percentiles[98] / 1e6,
            "rate": flood["rate"],
            "cpu": flood["cpu"],
            "cpu_steady": steady["cpu"],
            "lost": steady["lost"] + flood["lost"],
            "others": steady["others"],
        }


def idle_seconds() -> float:
    """Return the seconds for which processors had nothing to do."""
    _cpu, _user, _nice, _system, idle, waiting, *_ = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a Redis, and yield its address and pid."""
    path = folder / "redis"
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(path.exists, "Redis")
        yield f"unix://{path}", process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def contender(name: str, folder: Path) -> Iterator[Contender]:
    records = folder / name
    records.mkdir()
    env = {"PYTHONPATH": str(HERE), "BROADCAST_FOLDER": str(records)}
    with contextlib.ExitStack() as stack:
        others = []
        if name == THEIRS:
            env["BROADCAST_REDIS"], pid = stack.enter_context(redis(folder))
            others.append(pid)
        command = [sys.executable, "-m", "gunicorn"]
        server = Server(*STICKY, "-w", str(WORKERS), "broadcast_app:app", command=command, env=env)
        yield Contender(stack.enter_context(server), others, records)


@dataclass(frozen=True)
class Row:
    """A figure of all rounds, and whether its bar is met."""

    title: str
    digits: int
    bar: Bar | None
    own: Spread
    other: Spread
    ratio: Spread

    @property
    def is_missed(self) -> bool:
        return self.bar is not None and not self.bar.is_met(self.own.median, self.ratio.median)

    def __str__(self) -> str:
        verdict = "**not met**" if self.is_missed else "met" if self.bar else ""
        figures = (self.own.text(self.digits), self.other.text(self.digits), self.ratio.text())
        return f"| {self.title} | {' | '.join(figures)} | {self.bar or ''} | {verdict} |"


def rows(rounds: Sequence[dict[str, dict[str, float]]]) -> Iterator[Row]:
    for name, (title, digits, bar) in FIGURES.items():
        own, other = ([pair[manager][name] for pair in rounds] for manager in NAMES)
        ratios = [ours / theirs for ours, theirs in zip(own, other, strict=True)]
        yield Row(title, digits, bar, Spread.of(own), Spread.of(other), Spread.of(ratios))


def versions() -> dict[str, str]:
    packages = ("gunicorn", "gevent", "python-socketio", "redis")
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
        "Redis": number_in(output_of("redis-server", "--version")),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    rounds = []
    lost = 0.0
    with tempfile.TemporaryDirectory(prefix="gunicorn-sticky-") as folder, contextlib.ExitStack() as stack:
        contenders = {name: stack.enter_context(contender(name, Path(folder))) for name in NAMES}
        for number in range(options.rounds):
            order = NAMES if number % 2 == 0 else NAMES[::-1]
            pair = {name: contenders[name].measure() for name in order}
            for name, figures in pair.items():
                print(f"round {number + 1}, {name}:", ", ".join(f"{n} {value:.4g}" for n, value in figures.items()))
            rounds.append(pair)
            lost += sum(figures["lost"] for figures in pair.values())
    computer = machine()
    loss = f"**The figures do not count: {lost:.0f} messages lost, doubled or out of order.**" if lost else "No loss."
    others = Spread.of([figures["others"] for pair in rounds for figures in pair.values()])
    print(
        f"\n{options.rounds} rounds on {computer['cpu']}, {computer['cores']} cores, Linux {computer['kernel']}; "
        f"{', '.join(f'{name} {number}' for name, number in versions().items())}. {loss} "
        f"Share of the processors that others took while latencies were measured: {others.text()}.\n"
    )
    judged = list(rows(rounds))
    print(f"| | {OURS} | {THEIRS} | ratio | bar | |", "|---" * 6 + "|", *judged, sep="\n")
    return int(lost > 0 or (options.rounds >= ENOUGH and any(row.is_missed for row in judged)))


if __name__ == "__main__":
    sys.exit(main())
