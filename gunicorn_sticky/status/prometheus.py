"""The status (snapshot.py) as metrics for Prometheus, in the formats that its client library knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..shared.metrics import Counter, DispatcherRow, Field, Gauge, SlotRow, WorkerRow
from .snapshot import DEGRADED, DOWN, DRAINING, OK, READY, STARTING, Seen, Server

#: Values, each by a tuple of its labels' values.
_Samples = Mapping[Any, float]


def _gauge(name: str, documentation: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"gunicorn_sticky_{name}", documentation, labels=labels), samples)


def _counter(name: str, documentation: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"gunicorn_sticky_{name}", documentation, labels=labels), samples)


def _filled(family: Any, samples: _Samples) -> Metric:
    for values, value in samples.items():
        family.add_metric([str(label) for label in values], value)
    metric: Metric = family
    return metric


def _metric(of: str, field: Field, seen: Mapping[Any, dict[str, Any]], *labels: str) -> Metric:
    """Return a field of the table as a metric.

    Args:
        of: what its name begins with
        seen: what the status says of those that have it, by the values of their labels
    """
    samples = {place: each[field.name] for place, each in seen.items()}
    if field.values:
        samples = {(*place, value): count for place, counts in samples.items() for value, count in counts.items()}
        labels = *labels, field.by
    make = _counter if field.kind is Counter else _gauge
    return make(of + field.prometheus, field.help, samples, *labels)


class StatusCollector(Collector):
    """Collects the metrics.

    Args:
        server: whose metrics they are
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def encoded(self, accept: str) -> tuple[str, bytes]:
        """Return media type and text of them in a format that a client accepts, by its header Accept."""
        try:
            encode, kind = choose_encoder(accept)
        except (TypeError, ValueError):  # the library does not expect a version that is no number
            encode, kind = choose_encoder("")
        return kind, encode(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now (`Collector`)."""
        status = self._server.status()
        states = {(state,): state == status["state"] for state in (OK, DEGRADED, DOWN)}
        yield _gauge("state", "1 for the state that the server is in.", states, "state")
        yield _gauge("in_charge", "Whether this master, not another one, gets new clients.", {(): status["in_charge"]})
        yield _metric("", Seen.imbalance, {(): status})
        yield from self._of_slots(status["slots"])
        yield from self._of_workers(status["slots"], status["time"])
        yield from self._of_dispatcher(status["dispatcher"], status["time"])

    @staticmethod
    def _of_slots(slots: list[dict[str, Any]]) -> Iterator[Metric]:
        states = (READY, STARTING, DRAINING, DOWN)
        enum = {(slot["slot"], state): state == slot["state"] for slot in slots for state in states}
        yield _gauge("slot_state", "1 for the state that the slot is in.", enum, "slot", "state")
        seen = {(slot["slot"],): slot for slot in slots}
        for field in (*SlotRow.metrics(), *WorkerRow.metrics(Counter)):
            yield _metric("slot_", field, seen, "slot")

    @staticmethod
    def _of_workers(slots: list[dict[str, Any]], now: float) -> Iterator[Metric]:
        # By seat, and not summed by slot: what is left of a sum when one of two workers ends would look like what a
        # counter has counted since a reset.
        labels = "slot", "seat"
        workers = {(slot["slot"], worker["seat"]): worker for slot in slots for worker in slot["workers"]}
        states = (READY, STARTING, DRAINING)
        enum = {(*place, state): state == worker["state"] for place, worker in workers.items() for state in states}
        yield _gauge("worker_state", "1 for the state that the worker is in.", enum, *labels, "state")
        for field in WorkerRow.metrics(Gauge):
            yield _metric("worker_", field, workers, *labels)
        # One that has just been forked has no process id yet.
        running = {place: worker for place, worker in workers.items() if worker["pid"]}
        yield from _of_processes("worker", running, now, *labels)

    @staticmethod
    def _of_dispatcher(dispatcher: dict[str, Any], now: float) -> Iterator[Metric]:
        running = {(): dispatcher} if dispatcher["pid"] else {}
        yield _gauge("dispatcher_up", "Whether there is a dispatcher.", {(): bool(running)})
        yield from _of_processes("dispatcher", running, now)
        for field in DispatcherRow.metrics():
            yield _metric("dispatcher_", field, {(): dispatcher})


def _of_processes(kind: str, processes: Mapping[Any, dict[str, Any]], now: float, *labels: str) -> Iterator[Metric]:
    for field in (Seen.cpu_seconds, Seen.memory_bytes):
        yield _metric(f"{kind}_", field, processes, *labels)
    # Rounded, so that it is the same each time.
    started = {place: round(now - process["age"], 3) for place, process in processes.items()}
    yield _gauge(f"{kind}_start_time_seconds", "When the process started, since the epoch.", started, *labels)
