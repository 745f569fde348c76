"""For the gunicorn.conf.py of a server with one worker: counts what is written to the rows of its figures.

Who writes has a wrapper around its row, and a cell in the file that COUNTING names. Slower than the server as it is.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

from gunicorn_sticky.shared.metrics import Figures

WRITERS = ("worker", "dispatcher")


def cells(path: str) -> memoryview:
    """Return the numbers of writes, in the order of `WRITERS`."""
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * len(WRITERS))).cast("Q")


class Row:
    def __init__(self, row: memoryview, counts: memoryview, writer: int) -> None:
        self._row, self._counts, self._writer = row, counts, writer

    def __getitem__(self, cell: int) -> int:
        return self._row[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self._counts[self._writer] += 1
        self._row[cell] = value


def install() -> None:
    counts = cells(os.environ["COUNTING"])

    def counted(method: Callable[[Any, int], memoryview], writer: int) -> Any:
        return lambda self, number: Row(method(self, number), counts, writer)

    for writer, name in enumerate(WRITERS):
        setattr(Figures, name, counted(getattr(Figures, name), writer))
