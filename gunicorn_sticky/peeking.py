"""Connections whose first bytes have not shown the key yet.

They are peeked at, never read: the worker reads them as if it had accepted the connection itself. A head may arrive in
pieces, so a connection is kept, until a deadline, and looked at whenever something has happened to it.
"""

from __future__ import annotations

import time
from _socket import MSG_DONTWAIT, MSG_PEEK, socket  # not gevent's, see dispatcher.py
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from .affinity import Missing, Reader
from .channel import Parcel
from .events import EDGE, GONE, HANGUP, READABLE, Events
from .figures import BY
from .head import MAX_HEAD, Incomplete
from .lingering import Lingering
from .proxy import Malformed
from .refusal import Notices, name

#: Each look at a head reads all of it. Once looks have read this many bytes of it, it is only looked at every `SLOW`
#: seconds, for at most `MOMENT` seconds, and all such heads together get `SLOW_SHARE` of our time.
LOOKS = MAX_HEAD
SLOW = 0.1
MOMENT = 0.005
SLOW_SHARE = 0.1


@dataclass
class _Head:
    connection: socket
    listener: Any
    address: Any
    deadline: float = 0.0
    seen: int = 0
    #: Bytes that all looks at it have read.
    looked: int = 0


class Peeking:
    """The connections that are looked at.

    Args:
        reader: finds the key
        patience: seconds for a connection to show it
        dispatch: called with the descriptor of a connection and its parcel
        lingering: refuses
        figures: the dispatcher's row, see figures.py
    """

    def __init__(
        self,
        reader: Reader,
        patience: float,
        dispatch: Callable[[int, Parcel], None],
        events: Events,
        lingering: Lingering,
        notices: Notices,
        figures: memoryview,
    ) -> None:
        self._reader = reader
        self._patience = patience
        self._dispatch = dispatch
        self._events = events
        self._lingering = lingering
        self._notices = notices
        self._figures = figures
        self._buffer = bytearray(MAX_HEAD)
        #: By descriptor, in order of their deadlines.
        self._heads: dict[int, _Head] = {}
        #: Of those, the ones in many pieces that something has happened to, and when to look at them all.
        self._slow: dict[int, int] = {}
        self._slow_at = 0.0

    def __len__(self) -> int:
        return len(self._heads)

    def deadline(self) -> float | None:
        """Return when there is something to do in any case."""
        for head in self._heads.values():
            return min(head.deadline, self._slow_at) if self._slow else head.deadline
        return None

    def expire(self, now: float) -> None:
        """Do what is due."""
        if self._slow and self._slow_at <= now:
            self._look_slowly(now)
        while self._heads:
            head = next(iter(self._heads.values()))
            if head.deadline > now:
                break
            message = f"the {self._reader.wanted} did not arrive within {self._patience:g} s"
            self._refuse(head, HTTPStatus.REQUEST_TIMEOUT, message, "sticky_header_timeout")

    def hurry(self, deadline: float) -> None:
        """Wait for none of them beyond a deadline."""
        for head in self._heads.values():
            head.deadline = min(head.deadline, deadline)

    def drop(self, reason: str) -> bool:
        """Refuse the first of them, and return whether there was one."""
        for head in self._heads.values():
            message = f"too many connections ({reason})"
            self._refuse(head, HTTPStatus.SERVICE_UNAVAILABLE, message, "ulimit -n")
            return True
        return False

    def look(self, connection: socket, listener: Any, address: Any) -> None:
        """Look at a new connection, and dispatch, refuse or keep it.

        Args:
            listener: the name of the listener that it came by
            address: its peer
        """
        try:
            size = connection.recv_into(self._buffer, 0, MSG_PEEK | MSG_DONTWAIT)
            key = self._reader.first(self._buffer, size, address)
        except (OSError, Incomplete, Missing, Malformed):
            self._look(_Head(connection, listener, address))
        else:
            self._figures[BY + self._reader.source] += 1
            self._dispatch(connection.detach(), Parcel(listener, address, key))

    def _look(self, head: _Head, events: int = 0) -> None:
        try:
            size = head.connection.recv_into(self._buffer, 0, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            size = -1
        except OSError:
            self._close(head)
            return
        if size == 0 or (size <= head.seen and events & GONE):
            self._close(head)
            return
        key = None
        if size > head.seen:
            head.looked += size
            try:
                key = self._reader.first(self._buffer, size, head.address)
            except Incomplete:
                if size == MAX_HEAD:
                    message = f"the first {MAX_HEAD} bytes do not show the {self._reader.wanted}"
                    self._refuse(head, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, "sticky_header")
                    return
            except Missing:
                message = f"the request lacks the header {self._reader.affinity.header}"
                self._refuse(head, HTTPStatus.BAD_REQUEST, message, "sticky_ignore_missing_header")
                return
            except Malformed as error:
                text = "Closed a connection from %s: malformed PROXY header, %s"
                self._notices.warn("proxy_protocol", text, name(head.address), error)
                self._close(head)
                return
        if key is None:
            head.seen = max(size, 0)
            self._keep(head)
            return
        self._forget(head)
        self._figures[BY + self._reader.source] += 1
        self._dispatch(head.connection.detach(), Parcel(head.listener, head.address, key))

    def _keep(self, head: _Head) -> None:
        fd = head.connection.fileno()
        if fd not in self._heads:
            head.deadline = time.monotonic() + self._patience
            self._heads[fd] = head
            # Edge-triggered: what was only peeked at stays readable, and would wake a level-triggered watch for ever.
            self._events.watch(fd, READABLE | HANGUP | EDGE, lambda events: self._arrived(head, events))

    def _arrived(self, head: _Head, events: int) -> None:
        if head.looked <= LOOKS:
            self._look(head, events)
            return
        if not self._slow:
            self._slow_at = time.monotonic() + SLOW
        fd = head.connection.fileno()
        self._slow[fd] = self._slow.get(fd, 0) | events

    def _look_slowly(self, started: float) -> None:
        """Look at heads in many pieces, the one that has waited longest first, for a moment."""
        now = started
        while self._slow and now - started < MOMENT:
            fd = next(iter(self._slow))
            self._look(self._heads[fd], self._slow.pop(fd))
            now = time.monotonic()
        self._slow_at = now + ((now - started) / SLOW_SHARE if self._slow else SLOW)

    def _forget(self, head: _Head) -> None:
        fd = head.connection.fileno()
        if self._heads.pop(fd, None):
            self._slow.pop(fd, None)
            self._events.unwatch(fd)

    def _close(self, head: _Head) -> None:
        self._forget(head)
        head.connection.close()

    def _refuse(self, head: _Head, status: HTTPStatus, message: str, setting: str) -> None:
        self._forget(head)
        self._lingering.refuse(head.connection, head.address, status, message, setting)
