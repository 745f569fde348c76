"""gevent's server over an inbox.

Nothing else of Gunicorn's gevent worker has to change: pool, back-pressure, TLS and graceful stop are as they are.
"""

from __future__ import annotations

import contextlib
import contextvars
import socket
import time
from typing import Any

import gevent
from gevent.hub import Waiter
from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket

from ..shared.lookout import Lookout
from .drain import POLL, Intake
from .inbox import Inbox, family

#: Seconds after which a greenlet that serves one connection after the other lets the rest of the worker run.
TURN = 0.005
#: How many greenlets of an inbox wait for its next connections: on Python 3.11 and newer, one that ends and one that
#: begins cost a munmap(2) and an mmap(2).
PARKED = 16


class GeventInbox(Inbox):
    """An inbox as gevent knows a listener."""

    family = -1

    def accept(self) -> None:
        """What gevent knows a listener by; connections are taken by `InboxServer.do_read`."""
        raise NotImplementedError

    def getsockname(self) -> str:
        """Return what gevent calls the server's address."""
        return "inbox"


class InboxServer(StreamServer):  # type: ignore[misc]
    """gevent's server over the inbox of a slot, for as long as its connections are this worker's to take.

    Args:
        inbox: where connections come from
        intake: which of them to take
    """

    max_accept = 1  # the others stay in the channel, where nothing can happen to them, until `_serve` takes them

    def __init__(self, inbox: Inbox, intake: Intake, **kwargs: Any) -> None:
        self._intake = intake
        self._lookout = Lookout()
        #: What greenlets of the pool that have nothing to do wait by.
        self._parked: list[Waiter] = []
        self._parks = True
        super().__init__(inbox, **kwargs)

    def do_read(self) -> tuple[Any, Any] | None:
        """Take one connection, as `gevent.server.StreamServer.do_read` does with ``accept()``."""
        if not self._intake.may_take():
            self.stop_accepting()
            return None
        received = self.socket.receive()
        if received is None:
            return None
        fd, info = received
        return GeventSocket(family(info), socket.SOCK_STREAM, 0, fileno=fd), info

    def set_spawn(self, spawn: Any) -> None:
        """Use a pool, and say how full it is (`gevent.baseserver.BaseServer.set_spawn`)."""
        super().set_spawn(spawn)
        self.full = self._is_full

    def _is_full(self) -> bool:
        return not self._parked and self.pool.full()

    def do_handle(self, *taken: Any) -> None:
        """Serve a connection in a greenlet of the pool."""
        if self._parked:
            self.loop.run_callback(self._parked.pop().switch, taken)
        else:
            self._spawn(self._serve, taken)

    def _serve(self, taken: tuple[Any, Any] | None) -> None:
        """Serve a connection, and then others: a greenlet for each would cost more than all we add."""
        until = time.monotonic() + TURN
        while taken:
            try:
                # In a context of its own (PEP 567), as if it had a greenlet of its own.
                contextvars.copy_context().run(self._handle, *taken)
            finally:
                self.do_close(*taken)
            taken = None
            if self.started and time.monotonic() < until and self._lookout.pays():
                with contextlib.suppress(OSError):  # no descriptors left: `_do_read` will see that, too
                    taken = self.do_read()
                self._lookout.found(taken is not None)
            # While the pool is full, gevent waits for a greenlet to end.
            if taken is None and self._parks and len(self._parked) < PARKED and not self.pool.full():
                taken = self._park()
                until = time.monotonic() + TURN

    def _park(self) -> tuple[Any, Any] | None:
        """Wait for the next connection, and return it, or None at the end."""
        waiter = Waiter()
        self._parked.append(waiter)
        found: tuple[Any, Any] | None = waiter.get()
        return found

    def _end_parking(self) -> None:
        self._parks = False
        while self._parked:
            self.loop.run_callback(self._parked.pop().switch, None)

    def _take_the_rest(self) -> None:
        while self._intake.goes_on(time.monotonic()):
            with contextlib.suppress(OSError):  # no descriptors left: in a moment, maybe
                while received := self.do_read():
                    self.do_handle(*received)
                self._intake.took_all()
            gevent.sleep(POLL)

    def close(self) -> None:
        """Accept no more; Gunicorn's worker calls this when it begins to drain."""
        if not self.closed:
            self._end_parking()
            self._intake.drain(time.monotonic())
            self._take_the_rest()
        # gevent forgets by what connections are handled, which those need that begin, or are in a handshake of TLS.
        handlers = {name: self.__dict__[name] for name in ("handle", "_handle")}
        super().close()
        self.__dict__.update(handlers)


class OwnInboxServer(InboxServer):
    """gevent's server over the inbox for this worker's own sessions: it serves them for as long as the worker lives."""

    def close(self) -> None:
        """Go on; the worker ends when nobody is busy, but not between two requests of a client that polls."""
        self._end_parking()
        self._intake.drain(time.monotonic())
        if self._intake.is_last_call:
            self._take_the_rest()
        elif self.full():
            gevent.spawn(self._spawn, self._stay)  # not to wait here, where the heartbeat comes from
        else:
            self._spawn(self._stay)

    def _stay(self) -> None:
        while self._intake.goes_on(time.monotonic()):
            gevent.sleep(POLL)
