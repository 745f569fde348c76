"""The inbox of a worker that runs an asyncio loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..shared.lookout import Lookout
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
        self._lookout = Lookout()
        self._is_closed = False
        self._is_watched = False

    def start(self) -> None:
        """Take connections as they come, unless this is closed."""
        if not self._is_watched and not self._is_closed:
            self._is_watched = True
            self._loop.add_reader(self._channel.fileno(), self._take_some)

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
        if self._intake.is_last_call and self._take_all():
            self._intake.took_all()
        return True

    def _take_some(self) -> None:
        """Take what has come, as far as it pays to look for more."""
        for number in range(BATCH):
            if number and not self._lookout.pays():
                return
            taken = self._take()
            if number and taken is not None:
                self._lookout.found(taken)
            if not taken:
                return

    def _take_all(self) -> bool:
        """Take a batch, and return whether none is left."""
        for _ in range(BATCH):
            taken = self._take()
            if not taken:
                return taken is False
        return False

    def _take(self) -> bool | None:
        """Take a connection, and return whether there was one, or None if none may be taken now."""
        if not self._intake.may_take() or self._is_full():
            self._stop()
            return None
        try:
            received = self._channel.receive()
        except OSError:  # no descriptors left
            self._stop()
            self._loop.call_later(AGAIN, self.start)
            return None
        if received is None:
            return False
        self._connect(*received)
        return True
