"""What a handover costs by itself: µs of CPU of a request whose predecessor on the connection was another worker's.

Connections stay open, and are as busy as they can be. Their requests carry keys in X-Forwarded-For: of each connection
the same one, or two in turn that belong to different workers, so that each request is handed over. Stock Gunicorn, for
which keys are nothing, says what requests cost anyway. The application does nothing.

    python benchmarks/handover.py [--quick] [--rounds N] [--only KINDS]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import wrk
from client import ADDRESSES, address
from contender import HERE, cpu_seconds
from footprint import WORKERS, wait_for_workers
from kind import KINDS, Kind, some
from support.harness import Server

#: Seconds of a run, and of a quick one.
SECONDS, QUICK = 1.0, 0.5


def serve(kind: Kind, *options: str, sticky: bool) -> Server:
    args = (*kind.args(sticky=sticky), *options, "-w", str(WORKERS), "--keep-alive", "75")
    return Server(*args, kind.empty, env={"PYTHONPATH": str(HERE)})


def owned(server: Server) -> list[list[str]]:
    """Return keys of each worker, of all as many."""
    keys: defaultdict[bytes, list[str]] = defaultdict(list)
    for n in range(ADDRESSES // 2):
        keys[server.get(headers={"X-Forwarded-For": address(n)}).body].append(address(n))
    assert len(keys) == WORKERS, keys
    fewest = min(map(len, keys.values()))
    return [own[:fewest] for own in keys.values()]


def cpu_us(server: Server, library: Path, seconds: float, keys: Sequence[str]) -> float:
    """Return what a request takes of the processors."""
    processes = server.session()
    before = cpu_seconds(processes)
    seen = wrk.load(library, [server.port], seconds, keep_alive=True, offset=0, keys=keys)
    assert not seen["errors"], seen["errors"]
    return (cpu_seconds(processes) - before) / float(seen["requests"]) * 1e6


def measure(kind: Kind, library: Path, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return µs of CPU of a request, by round."""
    with serve(kind, sticky=False) as stock, serve(kind, "--sticky-by", "header", sticky=True) as sticky:
        for server in (stock, sticky):
            wait_for_workers(server)
        first, second = owned(sticky)
        one = [key for own in (first, second) for key in own for _ in range(2)]
        two = [key for pair in zip(first, second, strict=True) for key in (*pair, *reversed(pair))]
        runs = {"stock": (stock, one), "one key": (sticky, one), "two keys": (sticky, two)}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, (server, keys) in runs.items():
                found[name].append(cpu_us(server, library, seconds, keys))
    return found


def main(arguments: Sequence[str] = ()) -> dict[str, dict[str, list[float]]]:
    """Measure, print each round, and return the figures by kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", metavar="KINDS", help="kinds of workers, with commas between them")
    options = parser.parse_args(arguments)
    found = {}
    with tempfile.TemporaryDirectory(prefix="gunicorn-sticky-") as folder:
        library = wrk.build(Path(folder))
        for kind in some(options.only, KINDS):
            found[kind.name] = measure(kind, library, QUICK if options.quick else SECONDS, options.rounds)
            print(f"handover, {kind.name}, µs of CPU per request:", found[kind.name], flush=True)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
