"""Threads that serve requests, and do not keep their process from ending.

Python waits at its end for the threads of `concurrent.futures.ThreadPoolExecutor`, and so for a request that takes
longer than `graceful_timeout`, or that a quick stop is not to wait for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any


class DaemonPool(Executor):
    """What `ThreadPoolExecutor` is, with daemon threads.

    Args:
        count: how many there are at most
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = 0
        #: An item for each thread that has nothing to do.
        self._idle: deque[None] = deque()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a thread do something, as soon as there is one (`concurrent.futures.Executor.submit`).

        Only one thread may call this.
        """
        future: Future[Any] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.start(task)
        return future

    def start(self, task: Callable[[], None]) -> None:
        """Let a thread do something that raises nothing, as soon as there is one; nobody hears of its end.

        Only one thread may call this.
        """
        self._tasks.put(task)
        if self._idle:
            self._idle.pop()
        elif self._started < self._count:
            self._started += 1
            threading.Thread(target=self._work, daemon=True, name=f"request-{self._started}").start()

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                self._idle.append(None)
                task = self._tasks.get()
            if task is None:
                break
            task()
            del task  # and what it refers to, while there is nothing to do

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end when they have done what they were given; this does not wait for them."""
        for _ in range(self._started):
            self._tasks.put(None)
