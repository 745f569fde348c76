"""Pending connections: they wait, because the channel that leads to their worker is full."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..shared.channel import Channel, ConnectionInfo
from ..shared.limited_log import LimitedLog
from ..shared.unpatched import close


@dataclass
class _Waiting:
    fd: int
    info: ConnectionInfo
    deadline: float


class Pending:
    """The way into the channels, with a queue in front of each one that is full.

    Args:
        size: how many connections a queue takes
        patience: seconds that a connection waits in it
        refuse: called with the descriptor and the info of one that finds no room, or has waited too long
    """

    def __init__(
        self, size: int, patience: float, refuse: Callable[[int, ConnectionInfo], None], log: LimitedLog
    ) -> None:
        self._size = size
        self._patience = patience
        self._refuse = refuse
        self._log = log
        #: By channel, in order of arrival, and only channels that are full.
        self._pending: dict[Channel, deque[_Waiting]] = {}

    def __len__(self) -> int:
        """Return how many channels are full."""
        return len(self._pending)

    def held(self) -> int:
        """Return how many connections wait."""
        return sum(map(len, self._pending.values()))

    def block(self, channels: Iterable[Channel]) -> bool:
        """Tell whether all these channels are full."""
        return bool(self._pending) and all(channel in self._pending for channel in channels)

    def pass_on(self, channel: Channel, fd: int, info: ConnectionInfo) -> None:
        """Send a connection and close it here, now or when there is room."""
        queue = self._pending.get(channel)
        if queue is None and self._send(channel, fd, info):
            return
        waiting = _Waiting(fd, info, time.monotonic() + self._patience)
        if queue is None:
            self._pending[channel] = deque([waiting])
        elif len(queue) < self._size:
            queue.append(waiting)
        else:
            self._refuse(fd, info)

    def advance(self, now: float) -> None:
        """Send what waits, and refuse who has waited too long."""
        for channel, queue in list(self._pending.items()):
            while queue and self._send(channel, queue[0].fd, queue[0].info):
                queue.popleft()
            while queue and queue[0].deadline <= now:
                waiting = queue.popleft()
                self._refuse(waiting.fd, waiting.info)
            if not queue:
                del self._pending[channel]

    def prolong(self, channel: Channel, seconds: float) -> None:
        """Let what waits for a channel wait longer."""
        for waiting in self._pending.get(channel, ()):
            waiting.deadline += seconds

    def clear(self, channel: Channel) -> list[tuple[int, ConnectionInfo]]:
        """Take out, and return, what waits for a channel."""
        return [(waiting.fd, waiting.info) for waiting in self._pending.pop(channel, ())]

    def _send(self, channel: Channel, fd: int, info: ConnectionInfo) -> bool:
        error = channel.send(fd, info)
        if error is None:
            close(fd)
            return True
        if error.errno != errno.EAGAIN:
            self._log.warn("ulimit -n", "Dispatcher cannot pass connections on: %s", error.strerror)
        return False
