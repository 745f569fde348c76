"""The inbox of a worker that runs an asyncio loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .drain import Intake

if TYPE_CHECKING:
    from ..shared.channel import Channel, ConnectionInfo

#: How many connections are taken before the rest of the loop has its turn.
BATCH = 8
#: Seconds until connections are taken again, if there were no descriptors left.
AGAIN = 1.0


class Inbox:
    """A channel that connections are taken from, in the loop that runs.

    Args:
        channel: where they come from
        intake: decides whether they are this worker's to take
        is_full: tells whether it serves as many as it may
        connect: serves one
    """

    def __init__(
        self,
        channel: Channel,
        intake: Intake,
        is_full: Callable[[], bool],
        connect: Callable[[int, ConnectionInfo], None],
    ) -> None:
        self._channel = channel
        self._intake = intake
        self._is_full = is_full
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._is_watched = False

    def start(self) -> None:
        """Take connections as they come, unless this is closed."""
        if not self._is_watched and not self._is_closed:
            self._is_watched = True
            self._loop.add_reader(self._channel.fileno(), self._take)

    def _stop(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._channel.fileno())

    def close(self) -> None:
        """Leave the rest in the channel."""
        self._stop()
        self._is_closed = True

    def drain(self) -> None:
        """Begin to drain."""
        self._intake.drain(time.monotonic())

    def goes_on(self) -> bool:
        """Look once more, and tell whether a worker that drains has to stay for this inbox."""
        if not self._intake.goes_on(time.monotonic()):
            return False
        if self._intake.is_last_call and self._take():
            self._intake.took_all()
        return True

    def _take(self) -> bool:
        """Take some, and return whether none is left."""
        for _ in range(BATCH):
            if not self._intake.may_take() or self._is_full():
                self._stop()
                return False
            try:
                received = self._channel.receive()
            except OSError:  # no descriptors left
                self._stop()
                self._loop.call_later(AGAIN, self.start)
                return False
            if received is None:
                return True
            self._connect(*received)
        return False
