"""Answering in the place of a worker, and closing so that the answer arrives, see shared/refusals.py."""

from __future__ import annotations

import time
from socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR
from typing import Any

from ..shared.limited_log import LimitedLog
from ..shared.metrics import DispatcherRow
from ..shared.refusals import LINGER, Refusal, name
from ..shared.unpatched import BareSocket
from .poller import HANGUP, READABLE, Events


class Lingering:
    """Connections that have been answered and are not closed yet.

    Args:
        tls: whether clients speak TLS, so that nobody here could answer
        metrics: the dispatcher's row
    """

    def __init__(self, events: Events, log: LimitedLog, tls: bool, metrics: DispatcherRow) -> None:
        self._events = events
        self._log = log
        self._tls = tls
        self._metrics = metrics
        #: By descriptor, in order of their deadlines.
        self._connections: dict[int, tuple[BareSocket, float]] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def deadline(self) -> float | None:
        """Return when the first of them has to be closed."""
        for _, deadline in self._connections.values():
            return deadline
        return None

    def refuse(self, connection: BareSocket, address: Any, refusal: Refusal) -> None:
        """Answer a connection and close it, with one line in the log that names the setting to change."""
        status, message, setting = refusal
        self._log.warn(setting, "Refused a connection from %s: %d, %s", name(address), status, message)
        self._metrics.refused[status].inc()
        try:
            if self._tls:
                connection.close()
                return
            connection.send(refusal.response(), MSG_DONTWAIT | MSG_NOSIGNAL)
            connection.shutdown(SHUT_WR)
        except OSError:
            connection.close()
            return
        fd = connection.fileno()
        self._connections[fd] = connection, time.monotonic() + LINGER
        self._events.watch(fd, READABLE | HANGUP, lambda _events: self._discard(fd, connection))

    def expire(self, now: float) -> None:
        """Close those that are due."""
        while (deadline := self.deadline()) is not None and deadline <= now:
            self.drop()

    def drop(self) -> bool:
        """Close the first of them, and return whether there was one."""
        for fd in self._connections:
            self._close(fd)
            return True
        return False

    def _discard(self, fd: int, connection: BareSocket) -> None:
        try:
            if connection.recv(65536, MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(fd)

    def _close(self, fd: int) -> None:
        self._events.unwatch(fd)
        self._connections.pop(fd)[0].close()
