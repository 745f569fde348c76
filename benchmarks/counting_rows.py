"""For the gunicorn.conf.py of a server with one worker: counts what is written to its metrics.

Who writes has a wrapper around each cell of its row, and a cell in the file that COUNTING names. Slower than the server
as it is.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

from gunicorn_sticky.shared.metrics import Metrics

WRITERS = ("worker", "dispatcher")


def cells(path: str) -> memoryview:
    """Return the numbers of writes, in the order of `WRITERS`."""
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * len(WRITERS))).cast("Q")


class Cell:
    def __init__(self, cell: memoryview, counts: memoryview, writer: int) -> None:
        self._cell, self._counts, self._writer = cell, counts, writer

    def __setitem__(self, place: int, value: int) -> None:
        self._counts[self._writer] += 1
        self._cell[place] = value


def install() -> None:
    counts = cells(os.environ["COUNTING"])

    def counted(method: Callable[[Any, int], Any], writer: int) -> Any:
        def row(metrics: Metrics, number: int) -> Any:
            found = method(metrics, number)
            for each in found:
                each.cell = Cell(each.cell, counts, writer)
            return found

        return row

    for writer, name in enumerate(WRITERS):
        setattr(Metrics, name, counted(getattr(Metrics, name), writer))
