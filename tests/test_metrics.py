"""The table of metrics: a line of it is a number in shared memory, and is shown wherever metrics are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import parser
from support.harness import TESTS

from gunicorn_sticky.shared.board import SEATS, Board
from gunicorn_sticky.shared.metrics import (
    Counter,
    DispatcherRow,
    Field,
    Gauge,
    MasterRow,
    Metrics,
    Row,
    SlotRow,
    WorkerRow,
    counter,
    gauge,
    identity,
)
from gunicorn_sticky.status.page import PAGE
from gunicorn_sticky.status.prometheus import StatusCollector
from gunicorn_sticky.status.snapshot import Server
from gunicorn_sticky.status.statsd import metrics as to_statsd

pytestmark = pytest.mark.features

DOCS = TESTS.parent / "docs"
#: Where the page has them.
ROOMS = {"slot": "slots", "worker": "workers", "dispatcher": "dispatcher"}
#: Of whom each metric is, and in which row it stands.
ALL = [
    *(("slot", field, SlotRow) for field in SlotRow.metrics()),
    *(("worker" if field.kind is Gauge else "slot", field, WorkerRow) for field in WorkerRow.metrics()),
    *(("dispatcher", field, DispatcherRow) for field in DispatcherRow.metrics()),
]


class Rig:
    """A server of this process only, with one slot, which says another number for each metric."""

    def __init__(self) -> None:
        self.metrics, board = Metrics(), Board()
        board.slots = board.count = 1
        board.take(0, 1, 1)
        board.activate(0, 0)
        rows: list[Row] = [self.metrics.slot(0), self.metrics.worker(0), self.metrics.dispatcher(0)]
        #: By row, field and what the numbers of a family differ in.
        self.expected: dict[tuple[type[Row], str, Any], int] = {}
        for row in rows:
            for field in row.metrics():
                found = getattr(row, field.name)
                for value, number in (found if field.values else {None: found}).items():
                    number.value = len(self.expected) + 2
                    number.show()
                    self.expected[type(row), field.name, value] = number.value
        self.metrics.worker(0).pid.set(os.getpid())
        self.metrics.dispatcher(0).pid.set(os.getpid())
        self.metrics.master().dispatchers.set(1)
        self.server = Server(self.metrics, board)
        self.status = self.server.status()


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


def numbers(field: Field) -> Iterator[tuple[Any, str]]:
    """Yield what the numbers of a field differ in, or None if it is one, and the end of their name."""
    if not field.values:
        yield None, ""
    for value in field.values:
        yield value, f".{value}"


def rows_of(page: str, begin: str) -> list[str]:
    return [line for line in (DOCS / page).read_text().splitlines() if line.startswith(f"| `{begin}")]


@pytest.mark.parametrize(("of", "field", "row"), ALL, ids=lambda value: getattr(value, "name", ""))
def test_a_metric_is_shown_everywhere(rig: Rig, of: str, field: Field, row: type[Row]):
    place: Any = {
        "slot": rig.status["slots"][0],
        "worker": rig.status["slots"][0]["workers"][0],
        "dispatcher": rig.status["dispatcher"],
    }[of]
    statsd = {metric.name: metric for metric in to_statsd(rig.status)}
    family = "gunicorn_sticky_" + of + "_" + field.prometheus
    _, text = StatusCollector(rig.server).encoded("")
    samples = {
        tuple(set(sample.labels.items()) - {("slot", "0"), ("seat", "0")}): sample.value
        for found in parser.text_string_to_metric_families(text.decode())
        for sample in found.samples
        if sample.name == family + "_total" * (field.kind is Counter)
    }
    (described,) = re.findall(r'<script id="fields" type="application/json">(.*)</script>', PAGE.decode())
    (on_the_page,) = (found for found in json.loads(described)[ROOMS[of]] if found["name"] == field.name)
    assert on_the_page["help"] == field.help
    assert {found["value"]: found["help"] for found in on_the_page["values"]} == field.values
    for value, end in numbers(field):
        expected = rig.expected[row, field.name, value]
        assert (place[field.name][value] if field.values else place[field.name]) == expected
        assert statsd[f"{'dispatcher' if of == 'dispatcher' else 'slot.0'}.{field.name}{end}"].value == expected
        assert samples[((field.by, str(value)),) if field.values else ()] == expected


def test_the_documentation_lists_them(rig: Rig):
    """All that statsd and Prometheus are told, with the words of the table."""
    listed = {
        f"| `gunicorn.sticky.{metric.name.replace('slot.0', 'slot.N')}` | {metric.type} | {metric.help} |"
        for metric in to_statsd(rig.status)
    }
    assert set(rows_of("monitoring.md", "gunicorn.sticky.")) == listed
    _, text = StatusCollector(rig.server).encoded("")
    assert rows_of("prometheus.md", "gunicorn_sticky_") == [
        f"| `{family.samples[0].name}` | {family.type} | "
        f"{', '.join(f'`{name}`' for name in sorted(family.samples[0].labels))} | {family.documentation} |"
        for family in parser.text_string_to_metric_families(text.decode())
    ]


def test_a_field_needs_a_help():
    with pytest.raises(ValueError, match="help"):
        Field(Counter, "")
    with pytest.raises(ValueError, match="help"):
        Field(Counter, "Cookies.", by="kind", values={"plain": "Without nuts.", "other": ""})


def test_a_line_is_a_metric():
    class JarRow(Row):
        pid = identity("The process.")
        cookies = gauge("Cookies in the jar.")
        eaten = counter("Cookies that have been eaten.", prometheus="eaten_cookies")

    assert [(field.name, field.prometheus, field.label) for field in JarRow.metrics()] == [
        ("cookies", "cookies", "cookies"),
        ("eaten", "eaten_cookies", "eaten"),
    ]
    cells = memoryview(bytearray(8 * JarRow.CELLS)).cast("Q")
    row = JarRow(cells)
    row.pid.set(5)
    row.cookies.inc()
    row.eaten.inc()
    row.eaten.inc()
    assert cells.tolist() == [5, 1, 2]
    assert [number.value for number in JarRow(cells)] == [5, 1, 2]


def test_a_row_has_no_fields_of_another_kind():
    table = Metrics()
    for row, foreign in ((table.dispatcher(0), "requests"), (table.worker(0), "accepted"), (table.slot(0), "pid")):
        with pytest.raises(AttributeError):
            getattr(row, foreign)
    assert not hasattr(table.worker(0).requests, "dec")
    assert not hasattr(table.worker(0).requests, "set")


def test_rows_do_not_overlap():
    table = Metrics()
    rows: list[Row] = [
        table.master(),
        *(table.slot(slot) for slot in range(2)),
        *(table.worker(seat) for seat in range(2 * SEATS)),
        *(table.dispatcher(number) for number in range(2)),
    ]
    everything = [number for row in rows for number in row]
    for value, number in enumerate(everything, 1):
        number.cell[0] = value
    assert [number.cell[0] for number in everything] == list(range(1, len(everything) + 1))
    assert type(rows[0]) is MasterRow
