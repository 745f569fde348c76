"""The status (status.py) as metrics for Prometheus, in the formats that its client library knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .snapshot import DEGRADED, DOWN, DRAINING, OK, READY, STARTING, Server

#: Values, each by a tuple of its labels' values.
_Samples = Mapping[Any, float]

_SLOT_COUNTERS = {
    "requests": ("requests", "Requests that workers have served."),
    "dispatched": ("dispatched_connections", "Connections that the dispatcher has sent to the slot."),
    "minted": ("minted_sessions", "Session ids that workers have made."),
    "handed_over": ("handed_over_connections", "Connections whose next request was another slot's."),
    "taken_over": ("taken_over_connections", "Connections that other slots have handed over to this one."),
    "refused": ("refusals", "Requests that workers have refused."),
    "restarts": ("restarts", "Workers that the slot has had before."),
}
_DISPATCHER_COUNTERS = {
    "accepted": ("accepted_connections", "Connections that have been accepted."),
    "handed_back": ("handed_back_connections", "Connections handed back because the next request was another slot's."),
    "moved": ("moved_connections", "Connections moved to another slot because their worker was gone."),
}
_DISPATCHER_GAUGES = {
    "peeking": ("peeking_connections", "Connections that have not shown their key yet."),
    "held": ("held_connections", "Connections that wait because the channel of their slot is full."),
    "full": ("full_channels", "Slots whose channel is full."),
}


def _gauge(name: str, documentation: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"gunicorn_sticky_{name}", documentation, labels=labels), samples)


def _counter(name: str, documentation: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"gunicorn_sticky_{name}", documentation, labels=labels), samples)


def _filled(family: Any, samples: _Samples) -> Metric:
    for values, value in samples.items():
        family.add_metric([str(label) for label in values], value)
    metric: Metric = family
    return metric


class Metrics(Collector):
    """Collects them.

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
        help_ = "Connections of the fullest slot, over the average of all slots."
        yield _gauge("imbalance_ratio", help_, {(): status["imbalance"]})
        yield from self._of_slots(status["slots"])
        yield from self._of_workers(status["slots"], status["time"])
        yield from self._of_dispatcher(status["dispatcher"], status["time"])

    @staticmethod
    def _of_slots(slots: list[dict[str, Any]]) -> Iterator[Metric]:
        states = (READY, STARTING, DRAINING, DOWN)
        enum = {(slot["slot"], state): state == slot["state"] for slot in slots for state in states}
        yield _gauge("slot_state", "1 for the state that the slot is in.", enum, "slot", "state")
        waiting = {(slot["slot"],): slot["waiting"] for slot in slots}
        yield _gauge("slot_waiting_connections", "Connections that wait for the slot's worker.", waiting, "slot")
        for key, (name, help_) in _SLOT_COUNTERS.items():
            yield _counter(f"slot_{name}", help_, {(slot["slot"],): slot[key] for slot in slots}, "slot")

    @staticmethod
    def _of_workers(slots: list[dict[str, Any]], now: float) -> Iterator[Metric]:
        # By seat, and not summed by slot: what is left of a sum when one of two workers ends would look like what a
        # counter has counted since a reset.
        labels = "slot", "seat"
        workers = {(slot["slot"], worker["seat"]): worker for slot in slots for worker in slot["workers"]}
        states = (READY, STARTING, DRAINING)
        enum = {(*place, state): state == worker["state"] for place, worker in workers.items() for state in states}
        yield _gauge("worker_state", "1 for the state that the worker is in.", enum, *labels, "state")
        connections = {place: worker["connections"] for place, worker in workers.items()}
        yield _gauge("worker_connections", "Open connections.", connections, *labels)
        # One that has just been forked has no process id yet.
        running = {place: worker for place, worker in workers.items() if worker["pid"]}
        yield from _of_processes("worker", running, now, *labels)

    @staticmethod
    def _of_dispatcher(dispatcher: dict[str, Any], now: float) -> Iterator[Metric]:
        running = {(): dispatcher} if dispatcher["pid"] else {}
        yield _gauge("dispatcher_up", "Whether there is a dispatcher.", {(): bool(running)})
        yield from _of_processes("dispatcher", running, now)
        for key, (name, help_) in _DISPATCHER_GAUGES.items():
            yield _gauge(f"dispatcher_{name}", help_, {(): dispatcher[key]})
        for key, (name, help_) in _DISPATCHER_COUNTERS.items():
            yield _counter(f"dispatcher_{name}", help_, {(): dispatcher[key]})
        refused = {(status,): count for status, count in dispatcher["refused"].items()}
        yield _counter("dispatcher_refusals", "Connections that the dispatcher has refused.", refused, "status")
        keys = {(source,): count for source, count in dispatcher["keys"].items()}
        yield _counter("dispatcher_keys", "Connections, by what gave their key.", keys, "source")


def _of_processes(kind: str, processes: Mapping[Any, dict[str, Any]], now: float, *labels: str) -> Iterator[Metric]:
    cpu = {place: process["cpu_seconds"] for place, process in processes.items()}
    yield _counter(f"{kind}_cpu_seconds", "CPU time that the process has taken.", cpu, *labels)
    memory = {place: process["memory_bytes"] for place, process in processes.items()}
    yield _gauge(f"{kind}_resident_memory_bytes", "Resident memory of the process.", memory, *labels)
    # Rounded, so that it is the same each time.
    started = {place: round(now - process["age"], 3) for place, process in processes.items()}
    yield _gauge(f"{kind}_start_time_seconds", "When the process started, since the epoch.", started, *labels)
