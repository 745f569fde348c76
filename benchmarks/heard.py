"""What a worker of broadcast_app.py has heard in a run, in a file that others can map as well."""

from __future__ import annotations

import mmap
from pathlib import Path

#: Room for the latencies of as many messages of a run.
ROOM = 4096
#: Before them: the number of the next message; how many were lost, doubled or out of order; when the last one came.
NEXT, ASTRAY, LAST, LATENCIES = range(4)


class Heard:
    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * (LATENCIES + ROOM))
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    def clear(self) -> None:
        """Expect number 0. Nothing may be on its way."""
        self._cells[NEXT] = self._cells[ASTRAY] = 0

    def note(self, number: int, sent: int, now: int) -> None:
        cells = self._cells
        if number != cells[NEXT]:
            cells[ASTRAY] += abs(number - cells[NEXT])
        cells[NEXT] = number + 1
        cells[LAST] = now
        if number < ROOM:
            cells[LATENCIES + number] = now - sent

    @property
    def next(self) -> int:
        return self._cells[NEXT]

    @property
    def astray(self) -> int:
        return self._cells[ASTRAY]

    @property
    def last(self) -> int:
        return self._cells[LAST]

    def latencies(self, count: int) -> list[int]:
        return self._cells[LATENCIES : LATENCIES + count].tolist()
