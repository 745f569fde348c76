"""Until when the loop of a worker with threads waits for connections that no thread has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Timetable:
    """All deadlines of a loop, of several kinds."""

    def __init__(self) -> None:
        self.kinds: list[Deadlines[Any]] = []
        #: When the next one may be due, by `time.monotonic`.
        self.next = math.inf

    def expire(self, now: float) -> None:
        """Do what is overdue."""
        if now < self.next:
            return
        for kind in self.kinds:
            kind.expire(now)
        self.next = min((kind.first() for kind in self.kinds), default=math.inf)


class Deadlines(Generic[T]):
    """Things to do if what they are about has not come within some seconds, the same for all.

    Args:
        timetable: whose kind this is
        seconds: how many
        overdue: does it
    """

    def __init__(self, timetable: Timetable, seconds: float, overdue: Callable[[T], None]) -> None:
        timetable.kinds.append(self)
        self._timetable = timetable
        self._seconds = seconds
        self._overdue = overdue
        #: In their order.
        self._times: dict[T, float] = {}

    def __contains__(self, thing: T) -> bool:
        return thing in self._times

    def __bool__(self) -> bool:
        return bool(self._times)

    def add(self, thing: T) -> None:
        """Begin to wait."""
        self._times[thing] = due = time.monotonic() + self._seconds
        self._timetable.next = min(self._timetable.next, due)

    def discard(self, thing: T) -> None:
        """Wait no longer, if that was waited for."""
        self._times.pop(thing, None)

    def first(self) -> float:
        """Return when the first is due, or infinity."""
        return next(iter(self._times.values()), math.inf)

    def expire(self, now: float) -> None:
        """Do what is overdue."""
        while self._times:
            thing, due = next(iter(self._times.items()))
            if due > now:
                break
            del self._times[thing]
            self._overdue(thing)
