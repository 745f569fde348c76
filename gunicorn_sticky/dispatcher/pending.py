"""Lanes: connections that wait, because the channel that leads to their worker is full."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..shared.channel import Channel, Parcel
from ..shared.limited_log import LimitedLog
from ..shared.unpatched import close


@dataclass
class _Waiting:
    fd: int
    parcel: Parcel
    deadline: float


class Lanes:
    """The way into the channels, with a lane in front of each one that is full.

    Args:
        size: how many connections a lane takes
        patience: seconds that a connection waits in it
        refuse: called with the descriptor and the parcel of one that finds no room, or has waited too long
    """

    def __init__(self, size: int, patience: float, refuse: Callable[[int, Parcel], None], log: LimitedLog) -> None:
        self._size = size
        self._patience = patience
        self._refuse = refuse
        self._log = log
        #: By channel, in order of arrival, and only channels that are full.
        self._lanes: dict[Channel, deque[_Waiting]] = {}

    def __len__(self) -> int:
        """Return how many channels are full."""
        return len(self._lanes)

    def held(self) -> int:
        """Return how many connections wait."""
        return sum(map(len, self._lanes.values()))

    def block(self, channels: Iterable[Channel]) -> bool:
        """Tell whether all these channels are full."""
        return bool(self._lanes) and all(channel in self._lanes for channel in channels)

    def pass_on(self, channel: Channel, fd: int, parcel: Parcel) -> None:
        """Send a connection and close it here, now or when there is room."""
        lane = self._lanes.get(channel)
        if lane is None and self._send(channel, fd, parcel):
            return
        waiting = _Waiting(fd, parcel, time.monotonic() + self._patience)
        if lane is None:
            self._lanes[channel] = deque([waiting])
        elif len(lane) < self._size:
            lane.append(waiting)
        else:
            self._refuse(fd, parcel)

    def advance(self, now: float) -> None:
        """Send what waits, and refuse who has waited too long."""
        for channel, lane in list(self._lanes.items()):
            while lane and self._send(channel, lane[0].fd, lane[0].parcel):
                lane.popleft()
            while lane and lane[0].deadline <= now:
                waiting = lane.popleft()
                self._refuse(waiting.fd, waiting.parcel)
            if not lane:
                del self._lanes[channel]

    def prolong(self, channel: Channel, seconds: float) -> None:
        """Let what waits for a channel wait longer."""
        for waiting in self._lanes.get(channel, ()):
            waiting.deadline += seconds

    def clear(self, channel: Channel) -> list[tuple[int, Parcel]]:
        """Take out, and return, what waits for a channel."""
        return [(waiting.fd, waiting.parcel) for waiting in self._lanes.pop(channel, ())]

    def _send(self, channel: Channel, fd: int, parcel: Parcel) -> bool:
        error = channel.send(fd, parcel)
        if error is None:
            close(fd)
            return True
        if error.errno != errno.EAGAIN:
            self._log.warn("ulimit -n", "Dispatcher cannot pass connections on: %s", error.strerror)
        return False
