"""The status of servers as a table in the terminal, by Rich."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..shared.metrics import DispatcherRow
from .snapshot import DEGRADED, DOWN, DRAINING, OK, READY, STARTING, Server

#: Seconds between the two looks that rates are made from.
INTERVAL = 1.0
COLOURS = {OK: "green", READY: "green", STARTING: "yellow", DRAINING: "yellow", DEGRADED: "yellow", DOWN: "red"}


def show(servers: Sequence[Server], watch: bool) -> list[str]:
    """Show how servers are, once or until Ctrl-C, and return the states seen last."""
    console = Console()
    with contextlib.ExitStack() as stack:
        display = console.print
        if watch and console.is_terminal:
            live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
            display = functools.partial(live.update, refresh=True)
        after = [server.status() for server in servers]
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                before = after
                time.sleep(INTERVAL)
                after = [server.status() for server in servers]
                display(_page(before, after))
                if not watch:
                    break
    return [status["state"] for status in after]


def _page(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> Group:
    return Group(*(_server(*pair) for pair in zip(before, after, strict=True)))


def _server(before: dict[str, Any], after: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("slot", "", "pid", "age", "conn"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    table.add_column("", ratio=1)
    for name in ("req/s", "wait", "restarts", "cpu", "mem"):
        table.add_column(name, justify="right", no_wrap=True)
    most = max((worker["connections"] for slot in after["slots"] for worker in slot["workers"]), default=0)
    earlier = {slot["slot"]: slot for slot in before["slots"]}
    cpu = {worker["pid"]: worker["cpu_seconds"] for slot in before["slots"] for worker in slot["workers"]}
    for slot in after["slots"]:
        requests = slot["requests"] - earlier.get(slot["slot"], slot)["requests"]
        first = (f"{requests / INTERVAL:,.0f}", str(slot["waiting"]), str(slot["restarts"]))
        for worker in slot["workers"] or [None]:
            state = worker["state"] if worker else slot["state"]
            left = (str(slot["slot"]), Text(state, COLOURS[state]))
            if worker is None or worker["pid"] == 0:  # none, or being forked
                table.add_row(*left, "", "", "", "", *first)
                continue
            table.add_row(
                *left,
                str(worker["pid"]),
                _age(worker["age"]),
                str(worker["connections"]),
                Bar(max(most, 1), 0, worker["connections"], color=COLOURS[state]),
                *first,
                _percent(worker, cpu.get(worker["pid"])),
                _size(worker["memory_bytes"]),
            )
            first = ("", "", "")
    return Group(_title(after), table, _dispatcher(before["dispatcher"], after["dispatcher"]), Text())


def _title(status: dict[str, Any]) -> Text:
    state = status["state"]
    title = Text.assemble((f"Gunicorn {status['pid']}", "bold"), ": ", (state, COLOURS[state]))
    if not status["in_charge"]:
        title.append(", another master accepts connections")
    title.append(f", fullest slot {status['imbalance']:.2f} times the average")
    return title


def _dispatcher(before: dict[str, Any], after: dict[str, Any]) -> Text:
    if not after["pid"]:
        return Text("No dispatcher", COLOURS[DOWN])
    accepted = after["accepted"] - before["accepted"]
    text = Text(f"Dispatcher {after['pid']}, {_age(after['age'])}: {accepted / INTERVAL:,.0f} connections/s")
    if accepted and before["pid"] == after["pid"]:
        text.append(f", {(after['cpu_seconds'] - before['cpu_seconds']) / accepted * 1e6:,.0f} µs each")
    if after["full"]:
        text.append(f"; {after['held']} held back, channels of {after['full']} slots are full", COLOURS[DEGRADED])
    text.append("".join(f", {name} {count:,}" for name, count in _counts(after) if count))
    return text


def _counts(dispatcher: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield what else the dispatcher counts."""
    for field in DispatcherRow.metrics():
        if field.values:
            yield from ((f"{field.label} {value}", count) for value, count in dispatcher[field.name].items())
        elif field.name not in ("accepted", "full", "held"):
            yield field.label, dispatcher[field.name]


def _age(seconds: float) -> str:
    """Return an age in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _percent(worker: dict[str, Any], before: float | None) -> str:
    return "" if before is None else f"{(worker['cpu_seconds'] - before) / INTERVAL:.0%}"


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.0f}M"
