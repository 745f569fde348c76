"""One timer for all connections that wait for their next request.

A server sets a timer at the end of each response, and cancels it when the next request comes. All last equally long,
and nearly none is ever due. A timer of the loop's costs as much as a few of our own steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class IdleTimer:
    """What `asyncio.loop.call_later` returns, as far as servers use it."""

    __slots__ = ("_waiting", "call")

    def __init__(self, waiting: dict[IdleTimer, float], call: Callable[[], object]) -> None:
        self._waiting = waiting
        self.call = call

    def cancel(self) -> None:
        """Call nothing (`asyncio.Handle.cancel`)."""
        self._waiting.pop(self, None)


class LoopWithIdleTimers:
    """A loop as protocols see it.

    Args:
        loop: the true one
        seconds: how long a connection may wait for its next request
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        #: By timer, when it is due, in that order.
        self._waiting: dict[IdleTimer, float] = {}
        self._is_set = False
        # For each request.
        self.create_future, self.create_task, self.time = loop.create_future, loop.create_task, loop.time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, callback: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something after some seconds (`asyncio.loop.call_later`)."""
        if delay != self._seconds or args or kwargs:
            return self._loop.call_later(delay, callback, *args, **kwargs)
        timer = IdleTimer(self._waiting, callback)
        self._waiting[timer] = due = self.time() + delay
        if not self._is_set:
            self._is_set = True
            self._loop.call_at(due, self._expire)
        return timer

    def _expire(self) -> None:
        now = self.time()
        while self._waiting:
            timer, due = next(iter(self._waiting.items()))
            if due > now:
                self._loop.call_at(due, self._expire)
                return
            timer.cancel()
            self._loop.call_soon(timer.call)
        self._is_set = False
