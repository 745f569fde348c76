"""What the dispatcher alone costs: µs of CPU per connection, and how that grows with slots and with silent connections.

Real dispatchers on real listeners and channels run side by side, and are loaded in turn, round by round, so that each
figure has partners from the same seconds. This process is both the clients and the workers; its CPU does not count.

- saturated: the dispatcher stands still until as many connections wait, with their heads, as a channel holds, and then
  dispatches them in one go, while nothing else runs. Without the first ones, which find it asleep and its caches cold.
- ceiling: connections a second, for as long as thousands of them wait, while they are taken from the channels.
- idle: one connection at a time, a pause after each; this includes to wake up, and to wake the worker.
- silent: open connections that never finish their heads, while others are dispatched.

    python benchmarks/dispatcher.py [--quick] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import resource
import select
import signal
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from gunicorn_sticky.dispatcher.balancing import Channels
from gunicorn_sticky.dispatcher.loop import Plan
from gunicorn_sticky.dispatcher.process import run
from gunicorn_sticky.routing.affinity import Affinity
from gunicorn_sticky.routing.session_ids import Ids
from gunicorn_sticky.shared.board import SEATS, Board
from gunicorn_sticky.shared.channel import Channel
from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.workers.parser import refuser

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.harness import addresses, wait_for

AFFINITIES = {
    "ip": Affinity(),
    "header": Affinity(by="header", header="x-forwarded-for"),
    "session": Affinity(by="session", session_keys=("query:sid",)),
}
#: Of the master that has minted the sessions' ids.
SECRET = bytes(16)
#: The number of slots where that is not what is measured.
SLOTS = 4
#: Connections that wait for a saturated dispatcher: fewer than a channel holds, ...
BURST = 250
FIRST = 50
#: ... and as many as a backlog takes by Linux's defaults.
RUSH = min(4000, int(Path("/proc/sys/net/core/somaxconn").read_text()))
#: Connections to an idle one, in a row.
TRICKLE = 100
#: Seconds between two connections to an idle dispatcher.
PAUSE = 0.001
#: Seconds that anything may take.
PATIENCE = 30.0
FOREVER = 3600.0

#: As a reverse proxy passes a browser's request on.
HEAD = (
    "GET /socket.io/?EIO=4&transport=polling{} HTTP/1.1\r\nHost: www.example.com\r\nX-Forwarded-For: {}\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\n"
    "Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: https://www.example.com/\r\n\r\n"
)
HALF = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n"
CLIENTS = 2000


def clients(by: str, slots: int) -> Iterator[tuple[str, bytes]]:
    """Return each client's address and head; by session, of sessions that the slots' workers own in turn."""
    ids = Ids(SECRET)
    for n, address in enumerate(addresses(CLIENTS)):
        sid = f"&sid={ids.tag(f'{n:020}', n % slots + 1)}" if by == "session" else ""
        yield address, HEAD.format(sid, address).encode()


@dataclass
class Figure:
    """Some measurements of one thing."""

    values: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return what a report needs."""
        low, median, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


class Rig:
    """A dispatcher in a process of its own, and what it stands between; it runs only while it is measured.

    Args:
        by: what the key is
        slots: how many channels there are
        silent: how many connections to hold open that do not finish their heads
    """

    def __init__(self, by: str, slots: int = SLOTS, silent: int = 0) -> None:
        self.by, self.slots, self.silent = by, slots, silent
        self.saturated, self.ceiling, self.idle = Figure(), Figure(), Figure()
        self._clients = itertools.cycle(clients(by, slots))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=RUSH)
        self._listener.setblocking(False)
        self._channels = [Channel() for _ in range(slots)]
        #: Of the workers that own the sessions, and others.
        self._seats = [Channel() for _ in range(slots * SEATS if by == "session" else 0)]
        self._returns = Channel()
        self._epoll = select.epoll()
        for channel in self._channels + self._seats:
            os.set_blocking(channel.fileno(), False)
            self._epoll.register(channel.fileno(), select.EPOLLIN)
        self._pid = os.fork()
        if not self._pid:
            self._dispatch()
        self._connect(1)
        self._drain(1)  # so it has begun
        accepted = self._open_files() + silent
        self._silent = [self._open(address, HALF) for address, _ in itertools.islice(self._clients, silent)]
        # The first one may not have been closed yet when it was counted.
        wait_for(lambda: self._open_files() >= accepted - 1, "silent connections to be accepted", PATIENCE)
        self._stop()

    def _dispatch(self) -> None:
        try:
            board = Board()
            board.slots = board.count = self.slots
            for slot in range(self.slots):
                board.take(slot * SEATS, slot + 1, slot + 1)
                board.activate(slot, slot * SEATS)
            plan = Plan(
                parent=os.getppid(),
                affinity=AFFINITIES[self.by],
                refuses=refuser(Config()),
                secret=SECRET,
                listeners=[self._listener.fileno()],
                tls=False,
                channels=Channels(self._channels, self._seats, [], self._returns),
                board=board,
                other=board.other(),
                removed=[],
                header_timeout=FOREVER,
                slot_timeout=FOREVER,
                backlog=RUSH,
                metrics=Metrics().dispatcher(0),
            )
            run(plan, logging.getLogger(), lambda: None)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _open(self, address: str, head: bytes) -> socket.socket:
        client = socket.create_connection(self._listener.getsockname(), PATIENCE, source_address=(address, 0))
        client.send(head)
        return client

    def _connect(self, count: int) -> list[socket.socket]:
        return [self._open(*client) for client in itertools.islice(self._clients, count)]

    def _drain(self, count: int, look: float = 0.0) -> None:
        """Take `count` connections from the channels, every `look` seconds, and close them."""
        while count:
            ready = self._epoll.poll(PATIENCE)
            assert ready, f"{count} connections have not been dispatched"
            time.sleep(look)
            for fd, _ in ready:
                with contextlib.suppress(BlockingIOError):
                    while os.read(fd, 1):  # with no room for a descriptor, the kernel closes it
                        count -= 1

    def _open_files(self) -> int:
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def _stop(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        _pid, status = os.waitpid(self._pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the dispatcher has died"

    def _go_on(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def _cpu(self) -> float:
        """Return the µs of CPU that the dispatcher has used; exact only while it does not run."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1e3

    def _burst(self, count: int) -> float:
        """Let connections wait, and return the µs of CPU that it takes to dispatch them."""
        clients = self._connect(count)
        before = self._cpu()
        self._go_on()
        self._drain(count, 0.005)  # when all are there
        self._stop()
        close(clients)
        return self._cpu() - before

    def saturate(self) -> None:
        """Measure what connections take beyond the first ones."""
        first = self._burst(FIRST)
        self.saturated.values.append((self._burst(BURST) - first) / (BURST - FIRST))

    def rush(self) -> None:
        """Let more connections wait than the channels have room for, and measure how fast they are dispatched."""
        clients = self._connect(RUSH)
        started = time.perf_counter()
        self._go_on()
        self._drain(RUSH)
        self.ceiling.values.append(RUSH / (time.perf_counter() - started))
        self._stop()
        close(clients)

    def trickle(self) -> None:
        """Measure connections that come one by one."""
        before = self._cpu()
        self._go_on()
        for _ in range(TRICKLE):
            clients = self._connect(1)
            self._drain(1)
            close(clients)
            time.sleep(PAUSE)
        self._stop()
        self.idle.values.append((self._cpu() - before) / TRICKLE)

    def forget(self) -> None:
        """Drop what has been measured, after a first round in which everything is still cold."""
        self.saturated, self.ceiling, self.idle = Figure(), Figure(), Figure()

    def report(self, base: Rig) -> dict[str, Any]:
        """Return what was measured, also as a multiple, round by round, of what `base` has taken."""
        pairs = zip(self.saturated.values, base.saturated.values, strict=True)
        figures = {
            "saturated_us": self.saturated,
            "ratio": Figure([own / other for own, other in pairs]),
            "ceiling_per_s": self.ceiling,
            "idle_us": self.idle,
        }
        case = {"by": self.by, "slots": self.slots, "silent": self.silent}
        return case | {name: figure.summary() for name, figure in figures.items() if figure.values}

    def close(self) -> None:
        """End the dispatcher."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        close([*self._silent, self._listener])


def close(connections: Iterable[socket.socket]) -> None:
    """Close all of them."""
    for connection in connections:
        connection.close()


def show(case: dict[str, Any]) -> None:
    """Print a line of the table."""
    label = f"by {case['by']}, {case['slots']} slots, {case['silent']} silent"
    texts = [f"  {label:34}"]
    for name, width in (("saturated_us", 6), ("ratio", 6), ("ceiling_per_s", 8), ("idle_us", 6)):
        if figure := case.get(name):
            digits = 0 if name == "ceiling_per_s" else 2
            low, median, high = (f"{figure[of]:{width}.{digits}f}" for of in ("low", "median", "high"))
            texts.append(f"{median} ({low} {high})")
    print(*texts)


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Measure, print a table, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    parser.add_argument("--rounds", type=int, default=40, help="at least 5")
    options = parser.parse_args(arguments)
    rounds = min(options.rounds, 6) if options.quick else options.rounds
    counts, silences = ((64,), (10_000,)) if options.quick else ((1, 2, 8, 16, 32, 64), (100, 1_000, 10_000))

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bases: dict[str, Rig] = {}
    rigs: list[Rig] = []
    try:
        for by in AFFINITIES:
            bases[by] = Rig(by)
            rigs.append(bases[by])
            rigs += [Rig(by, slots=count) for count in counts]
        rigs += [Rig("header", silent=count) for count in silences]
        for number in range(rounds + 1):
            for rig in rigs:
                rig.saturate()
                if not number:
                    rig.forget()
            for rig in bases.values() if number % 4 == 1 else ():
                rig.rush()
                rig.trickle()
        cases = [rig.report(bases[rig.by]) for rig in rigs]
        print(f"medians (and quartiles) of {rounds} rounds of {BURST} connections:")
        print(f"  {'':34} saturated, µs       x that of {SLOTS} slots   ceiling, 1/s                idle, µs")
        for case in cases:
            show(case)
        return {"rounds": rounds, "connections": BURST, "cases": cases}
    finally:
        for rig in rigs:
            rig.close()


if __name__ == "__main__":
    main(sys.argv[1:])
