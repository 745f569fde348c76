"""Connections whose first bytes have not shown the key yet.

They are peeked at, never read: the worker reads them as if it had accepted the connection itself. A head may arrive in
pieces, so a connection is kept, until a deadline, and looked at whenever something has happened to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any

from ..routing.affinity import Missing, Reader
from ..routing.head import MAX_HEAD, BareLineFeed, Head, Incomplete
from ..routing.proxy_protocol import Malformed
from ..shared.channel import ConnectionInfo, connection_info
from ..shared.limited_log import LimitedLog
from ..shared.metrics import DispatcherRow
from ..shared.refusals import MALFORMED, MISSING, TOO_LARGE, TOO_MANY, TOO_SLOW, Refusal, name
from ..shared.unpatched import BareSocket
from .lingering import Lingering
from .poller import EDGE, GONE, HANGUP, READABLE, Events

#: Each look at a head copies all of it. Once looks have copied this many bytes of it, it is only looked at every `SLOW`
#: seconds, for at most `MOMENT` seconds, and all such heads together get `SLOW_SHARE` of our time.
LOOKS = MAX_HEAD
SLOW = 0.1
MOMENT = 0.005
SLOW_SHARE = 0.1

#: How to receive. (The flags are members of an enum, and to join them anew takes longer than to receive.)
_PEEK = int(MSG_PEEK | MSG_DONTWAIT)


@dataclass
class _Waiting:
    connection: BareSocket
    listener: Any
    address: Any
    #: What has been found out about its head.
    head: Head
    #: Bytes that have arrived.
    size: int = 0
    deadline: float = 0.0
    #: Bytes that all looks at it have copied.
    looked: int = 0


class Peeking:
    """The connections that are looked at.

    Args:
        reader: finds the key
        patience: seconds for a connection to show it
        dispatch: called with the descriptor of a connection and its info
        lingering: refuses
        metrics: the dispatcher's row
    """

    def __init__(
        self,
        reader: Reader,
        patience: float,
        dispatch: Callable[[int, ConnectionInfo], None],
        events: Events,
        lingering: Lingering,
        log: LimitedLog,
        metrics: DispatcherRow,
    ) -> None:
        self._reader = reader
        self._patience = patience
        self._dispatch = dispatch
        self._events = events
        self._lingering = lingering
        self._log = log
        self._metrics = metrics
        self._buffer = bytearray(MAX_HEAD)
        #: By descriptor, in order of their deadlines.
        self._waiting: dict[int, _Waiting] = {}
        #: Of those, the ones in many pieces that something has happened to, and when to look at them all.
        self._slow: dict[int, int] = {}
        self._slow_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def deadline(self) -> float | None:
        """Return when there is something to do in any case."""
        for waiting in self._waiting.values():
            return min(waiting.deadline, self._slow_at) if self._slow else waiting.deadline
        return None

    def expire(self, now: float) -> None:
        """Do what is due."""
        if self._slow and self._slow_at <= now:
            self._look_slowly(now)
        while self._waiting:
            waiting = next(iter(self._waiting.values()))
            if waiting.deadline > now:
                break
            self._refuse(waiting, TOO_SLOW.because(wanted=self._reader.wanted, seconds=self._patience))

    def hurry(self, deadline: float) -> None:
        """Wait for none of them beyond a deadline."""
        for waiting in self._waiting.values():
            waiting.deadline = min(waiting.deadline, deadline)

    def drop(self, reason: str) -> bool:
        """Refuse the first of them, and return whether there was one."""
        for waiting in self._waiting.values():
            refusal = TOO_MANY.because(reason=reason)
            if not waiting.size:
                address = name(waiting.address)
                self._log.warn(refusal.setting, "Closed a connection from %s: %s", address, refusal.message)
            self._refuse(waiting, refusal)
            return True
        return False

    def look(self, connection: BareSocket, listener: Any, address: Any) -> None:
        """Look at a new connection, and dispatch, refuse or keep it.

        Args:
            listener: the name of the listener that it came by
            address: its peer
        """
        head, size = Head(), 0
        try:
            size = connection.recv_into(self._buffer, 0, _PEEK)
            key = self._reader.first(self._buffer, size, address, head)
        except BlockingIOError:
            self._keep(_Waiting(connection, listener, address, head))
        except OSError:
            connection.close()
        except (Incomplete, BareLineFeed, Missing, Malformed) as error:
            self._go_on(_Waiting(connection, listener, address, head, size, looked=size), error)
        else:
            self._metrics.keys[self._reader.source].inc()
            self._dispatch(connection.detach(), connection_info((listener, address, key, b"", None)))

    def _look(self, waiting: _Waiting, events: int) -> None:
        """Look at a connection again."""
        try:
            size = waiting.connection.recv_into(self._buffer, 0, _PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._close(waiting)
            return
        if size == 0 or (size <= waiting.size and events & GONE):
            self._close(waiting)
            return
        if size <= waiting.size:
            return
        waiting.size = size
        waiting.looked += size
        try:
            key = self._reader.first(self._buffer, size, waiting.address, waiting.head)
        except (Incomplete, BareLineFeed, Missing, Malformed) as error:
            self._go_on(waiting, error)
            return
        self._forget(waiting)
        self._metrics.keys[self._reader.source].inc()
        self._dispatch(waiting.connection.detach(), ConnectionInfo(waiting.listener, waiting.address, key))

    def _go_on(self, waiting: _Waiting, error: Exception) -> None:
        """Keep, refuse or close a connection whose bytes have given no key, but an error."""
        if isinstance(error, Incomplete):
            if waiting.size == 0:
                self._close(waiting)
            elif waiting.size < MAX_HEAD:
                self._keep(waiting)
            else:
                self._refuse(waiting, TOO_LARGE.because(size=MAX_HEAD, wanted=self._reader.wanted))
        elif isinstance(error, Missing):
            self._refuse(waiting, MISSING.because(error=error))
        elif isinstance(error, BareLineFeed):
            self._refuse(waiting, MALFORMED.because(error=error))
        else:
            text = "Closed a connection from %s: malformed PROXY header, %s"
            self._log.warn("proxy_protocol", text, name(waiting.address), error)
            self._close(waiting)

    def _keep(self, waiting: _Waiting) -> None:
        fd = waiting.connection.fileno()
        if fd not in self._waiting:
            waiting.deadline = time.monotonic() + self._patience
            self._waiting[fd] = waiting
            # Edge-triggered: what was only peeked at stays readable, and would wake a level-triggered watch for ever.
            self._events.watch(fd, READABLE | HANGUP | EDGE, lambda events: self._arrived(waiting, events))

    def _arrived(self, waiting: _Waiting, events: int) -> None:
        if waiting.looked <= LOOKS:
            self._look(waiting, events)
            return
        if not self._slow:
            self._slow_at = time.monotonic() + SLOW
        fd = waiting.connection.fileno()
        self._slow[fd] = self._slow.get(fd, 0) | events

    def _look_slowly(self, started: float) -> None:
        """Look at heads in many pieces, the one that has waited longest first, for a moment."""
        now = started
        while self._slow and now - started < MOMENT:
            fd = next(iter(self._slow))
            self._look(self._waiting[fd], self._slow.pop(fd))
            now = time.monotonic()
        self._slow_at = now + ((now - started) / SLOW_SHARE if self._slow else SLOW)

    def _forget(self, waiting: _Waiting) -> None:
        fd = waiting.connection.fileno()
        if self._waiting.pop(fd, None):
            self._slow.pop(fd, None)
            self._events.unwatch(fd)

    def _close(self, waiting: _Waiting) -> None:
        self._forget(waiting)
        waiting.connection.close()

    def _refuse(self, waiting: _Waiting, refusal: Refusal) -> None:
        """Answer a connection, unless it has asked nothing.

        Browsers open connections in advance, and take what comes there unasked for the answer to their next request.
        """
        if not waiting.size:
            self._close(waiting)
            return
        self._forget(waiting)
        self._lingering.refuse(waiting.connection, waiting.address, refusal)
