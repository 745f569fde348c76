"""The queue of the signals that a master has received.

`queue.SimpleQueue.get`, with which Gunicorn waits, may wait for ever up to Python 3.12: if its time is over when it
looks at the clock, what is left is below 0, and the lock below takes that for no limit at all. A master that is stopped
in that moment for as long, as on an overloaded or paused machine, would do nothing any more until the next signal.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from queue import Empty

from ..shared.unpatched import allocate_lock


class SignalQueue:
    """What `gunicorn.arbiter.Arbiter` uses of `queue.SimpleQueue`.

    Handlers of signals put in, also while another one or the main loop is in the middle of a method; so do other
    threads. Only the main loop gets.
    """

    def __init__(self) -> None:
        self._signals: deque[int] = deque()
        #: Held while there is nothing to get, or until somebody looks.
        self._lock = allocate_lock()
        self._lock.acquire()

    def put_nowait(self, number: int) -> None:
        """Put a signal in, and wake whoever waits."""
        self._signals.append(number)
        with contextlib.suppress(RuntimeError):  # nobody holds it: there is something already
            self._lock.release()

    def get(self, block: bool = True, timeout: float | None = None) -> int:
        """Return the first signal.

        Args:
            block: whether to wait for one
            timeout: for how many seconds at most; None is no limit

        Raises:
            queue.Empty: there is none
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._signals:
            left = -1 if deadline is None else max(deadline - time.monotonic(), 0)
            if not (block and self._lock.acquire(timeout=left)):
                raise Empty
        return self._signals.popleft()

    def get_nowait(self) -> int:
        """Return the first signal, if there is one.

        Raises:
            queue.Empty: there is none
        """
        return self.get(block=False)
