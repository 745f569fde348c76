"""The status (snapshot.py), by Gunicorn's statsd logger (`gunicorn.instrument.statsd`) or one that takes the same."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gunicorn.instrument.statsd import COUNTER_TYPE, GAUGE_TYPE

from ..shared.metrics import Counter, DispatcherRow, Field, Gauge, SlotRow, WorkerRow
from ..shared.unpatched import Socket, dup, poll
from .snapshot import DOWN, DRAINING, READY, STARTING, Seen, Server

#: What all names begin with, after the setting statsd_prefix.
PREFIX = "gunicorn.sticky"
#: Seconds between two reports.
INTERVAL = 1.0
#: Seconds of a report for which it waits for a slow reader: the arbiter has other things to do.
PATIENCE = 0.05
#: How a slot is, as a number: the higher the better.
STATES = (DOWN, DRAINING, STARTING, READY)
_STATE = "How its worker is: 3 ready, 2 starting, 1 draining, 0 down, if it has none."
#: poll(2); the name in `select` is gone if gevent has patched it.
_WRITABLE = 0x004


class Metric(NamedTuple):
    """What is true now (a gauge), or how often something has happened (a counter)."""

    name: str
    type: str
    value: float
    #: A sentence, for the documentation.
    help: str
    #: A counter that begins anew with a process: which one.
    pid: int = 0


class _Zero(int):
    """A 0 for Gunicorn's logger, which before 26.1 leaves out what is false."""

    def __bool__(self) -> bool:
        return True


def metrics(status: dict[str, Any]) -> Iterator[Metric]:
    """Yield what a server's status (`status.Server.status`) says. Of counters, that is the total."""
    slots, dispatcher = status["slots"], status["dispatcher"]
    ready = sum(slot["state"] == READY for slot in slots)
    yield Metric("slots", GAUGE_TYPE, len(slots), "Slots.")
    yield Metric("slots_ready", GAUGE_TYPE, ready, "Slots with a worker that takes new clients.")
    yield Metric("imbalance", GAUGE_TYPE, round(status["imbalance"], 3), Seen.imbalance.help)
    yield from _counted("dispatcher", DispatcherRow.metrics(), dispatcher)
    if dispatcher["pid"]:
        yield _cpu("dispatcher", dispatcher)
    of_workers = [*WorkerRow.metrics(Gauge), Seen.memory_bytes]
    for slot in slots:
        name, workers = f"slot.{slot['slot']}", slot["workers"]
        yield Metric(f"{name}.state", GAUGE_TYPE, STATES.index(slot["state"]), _STATE)
        sums = {field.name: sum(worker[field.name] for worker in workers) for field in of_workers}
        yield from _counted(name, [*of_workers, *SlotRow.metrics(), *WorkerRow.metrics(Counter)], slot | sums)
        for worker in workers:
            yield _cpu(name, worker)


def _counted(of: str, fields: Sequence[Field], values: dict[str, Any]) -> Iterator[Metric]:
    for field in fields:
        kind = COUNTER_TYPE if field.kind is Counter else GAUGE_TYPE
        if field.values:
            for value, help_ in field.values.items():
                yield Metric(f"{of}.{field.name}.{value}", kind, values[field.name][value], help_)
        else:
            yield Metric(f"{of}.{field.name}", kind, values[field.name], field.help)


def _cpu(name: str, process: dict[str, Any]) -> Metric:
    value, help_ = round(process["cpu_seconds"] * 1000), f"{Seen.cpu_seconds.help[:-1]}, in milliseconds."
    return Metric(f"{name}.cpu_ms", COUNTER_TYPE, value, help_, process["pid"])


class Connection:
    """The socket of Gunicorn's logger, by which the arbiter sends without waiting.

    Where a Unix socket's reader has no room, the arbiter's metrics are lost, also Gunicorn's own. All other processes
    wait for the reader, as in Gunicorn.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._arbiter = os.getpid()
        #: The same one, whether gevent has patched that or not.
        self.socket = Socket(fileno=dup(client.fileno()))
        #: Whether a metric has been lost.
        self.has_lost = False

    def send(self, data: bytes) -> None:
        """Send a metric (`gunicorn.instrument.statsd.Statsd`)."""
        if os.getpid() != self._arbiter:
            self._client.send(data)
            return
        try:
            self.socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.has_lost = True


class Reporter:
    """Sends a server's metrics.

    Args:
        log: Gunicorn's logger
        server: whose metrics they are
    """

    def __init__(self, log: Any, server: Server) -> None:
        self._log = log
        self._server = server
        self._due = 0.0
        #: Names of gauges that have been sent.
        self._gauges: set[str] = set()
        #: What has been sent of counters, by name and process.
        self._counted: dict[tuple[str, int], float] = {}
        self._connection: Connection | None = None
        if getattr(log, "sock", None):
            self._connection = log.sock = Connection(log.sock)
            self._poll = poll()
            self._poll.register(self._connection.socket, _WRITABLE)

    def report(self) -> None:
        """Send what there is, unless that was done less than a second ago."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + INTERVAL
        status = self._server.status()
        found = list(metrics(status))
        deadline = now + PATIENCE
        if status["in_charge"]:  # of two masters, one tells what is true now
            self._send_gauges([metric for metric in found if metric.type == GAUGE_TYPE], deadline)
        self._send_counters([metric for metric in found if metric.type == COUNTER_TYPE], deadline)

    def _send_gauges(self, gauges: list[Metric], deadline: float) -> None:
        gone = self._gauges - {gauge.name for gauge in gauges}  # with their slots; what was sent last would stay
        for gauge in [*gauges, *(Metric(name, GAUGE_TYPE, 0, "") for name in gone)]:
            if not self._send(gauge, gauge.value or _Zero(), deadline):
                return
        self._gauges = {gauge.name for gauge in gauges}

    def _send_counters(self, counters: list[Metric], deadline: float) -> None:
        """Send what has been added since the last time."""
        pids = {counter.pid for counter in counters}
        self._counted = {key: value for key, value in self._counted.items() if not key[1] or key[1] in pids}
        for counter in counters:
            key = counter.name, counter.pid
            added = counter.value - self._counted.get(key, 0)
            if added > 0 and not self._send(counter, added, deadline):
                return
            self._counted[key] = counter.value

    def _send(self, metric: Metric, value: float, deadline: float) -> bool:
        """Send a metric, unless nobody hears it until then: tell whether it has been sent."""
        connection = self._connection
        if connection:
            if not self._is_heard(connection.socket, deadline):
                return False
            connection.has_lost = False
        self._log.debug("", extra={"metric": f"{PREFIX}.{metric.name}", "value": value, "mtype": metric.type})
        return not (connection and connection.has_lost)  # a worker may have been faster

    def _is_heard(self, connection: Any, deadline: float) -> bool:
        """Tell whether a datagram can be sent: where nobody listens, the logger would log an error for each."""
        try:
            connection.getpeername()
        except OSError:
            return False  # the reader of a Unix socket has gone, and Gunicorn does not connect again
        events = self._poll.poll(max(deadline - time.monotonic(), 0) * 1000)
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # takes the refusal of an earlier one: udp(7)
        return [event for _fd, event in events] == [_WRITABLE]
