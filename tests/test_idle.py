"""The timer of connections that wait for their next request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from gunicorn_sticky.workers.asyncio_idle import LoopWithIdleTimers


class Loop:
    """A loop whose time is made up."""

    def __init__(self) -> None:
        self.now = 0.0
        #: When something is to be called, and what.
        self.calls: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> None:
        raise NotImplementedError

    def create_task(self) -> None:
        raise NotImplementedError

    def call_at(self, when: float, callback: Any) -> None:
        self.calls.append((when, callback))

    def call_soon(self, callback: Any) -> None:
        self.call_at(self.now, callback)

    def call_later(self, delay: float, callback: Any, *args: Any) -> str:
        self.call_at(self.now + delay, lambda: callback(*args))
        return "a handle of the loop's own"

    def go_to(self, now: float) -> None:
        """Call what is due until then."""
        while due := sorted((call for call in self.calls if call[0] <= now), key=lambda call: call[0]):
            self.calls.remove(due[0])
            self.now, callback = due[0]
            callback()
        self.now = now


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def sticky(loop: Loop) -> Any:
    return LoopWithIdleTimers(loop, 5.0)  # type: ignore[arg-type]


def test_they_are_due_in_their_order_by_one_timer_of_the_loop(loop: Loop, sticky: Any):
    called: list[tuple[str, float]] = []
    for number, name in enumerate("abcd"):
        loop.go_to(number)
        sticky.call_later(5.0, lambda name=name: called.append((name, loop.now)))
    assert len(loop.calls) == 1
    loop.go_to(100)
    assert called == [("a", 5), ("b", 6), ("c", 7), ("d", 8)]
    assert loop.calls == []


def test_what_is_cancelled_is_not_called(loop: Loop, sticky: Any):
    called: list[str] = []
    timers = [sticky.call_later(5.0, lambda name=name: called.append(name)) for name in "abc"]
    for timer in (timers[0], timers[2], timers[2]):
        timer.cancel()
    loop.go_to(100)
    timers[1].cancel()
    assert called == ["b"]
    sticky.call_later(5.0, lambda: called.append("later"))
    loop.go_to(200)
    assert called == ["b", "later"]


def test_a_timer_that_is_renewed_again_and_again_is_never_due(loop: Loop, sticky: Any):
    called: list[str] = []
    for now in range(100):
        loop.go_to(now)
        timer = sticky.call_later(5.0, lambda: called.append("a"))
        assert len(loop.calls) == 1
        loop.go_to(now + 0.5)
        timer.cancel()
    loop.go_to(200)
    assert (called, loop.calls) == ([], [])


def test_one_that_fails_holds_up_no_other(loop: Loop, sticky: Any):
    called: list[str] = []
    sticky.call_later(5.0, lambda: 1 / 0)
    sticky.call_later(5.0, lambda: called.append("b"))
    for _ in range(4):
        try:
            loop.go_to(100)
        except ZeroDivisionError:  # a loop tells its exception handler
            continue
    assert called == ["b"]


def test_others_are_the_loops(loop: Loop, sticky: Any):
    called: list[Any] = []
    assert sticky.call_later(1.0, called.append, 1) == sticky.call_later(5.0, called.append, 2)
    loop.go_to(100)
    assert called == [1, 2]
    assert sticky.now == 100  # whatever else a loop has


def test_what_is_cancelled_is_not_kept():
    class Connection:
        def close(self) -> None:
            raise NotImplementedError

    async def main() -> None:
        sticky = LoopWithIdleTimers(asyncio.get_running_loop(), 60.0)
        connection = Connection()
        kept = weakref.ref(connection)
        sticky.call_later(60.0, connection.close).cancel()
        del connection
        gc.collect()
        assert kept() is None

    asyncio.run(main())
