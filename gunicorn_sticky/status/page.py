"""The status page: page.html, which is told what metrics there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shared.metrics import Counter, DispatcherRow, Field, Gauge, SlotRow, WorkerRow


def _described(fields: Sequence[Field]) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "label": field.label,
            "help": field.help,
            "kind": "counter" if field.kind is Counter else "gauge",
            "values": [{"value": value, "help": help_} for value, help_ in field.values.items()],
        }
        for field in fields
    ]


def _page() -> bytes:
    fields = {
        "slots": _described([*SlotRow.metrics(), *WorkerRow.metrics(Counter)]),
        "workers": _described(WorkerRow.metrics(Gauge)),
        "dispatcher": _described(DispatcherRow.metrics()),
    }
    page = (Path(__file__).parent / "page.html").read_text()
    return page.replace("@FIELDS@", json.dumps(fields)).encode()


PAGE = _page()
