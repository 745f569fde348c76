"""The inbox: what a worker has in the place of a listening socket, and gevent's server over it.

Nothing else of Gunicorn's gevent worker has to change: pool, back-pressure, TLS and graceful stop are as they are.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket

if TYPE_CHECKING:
    from .channel import Channel


class Inbox:
    """The receiving end of a channel, in the place of a listening socket."""

    family = -1

    def __init__(self, channel: Channel) -> None:
        self.receive = channel.receive
        self.fileno = channel.fileno
        self.close = channel.close

    def accept(self) -> None:
        """What gevent knows a listener by; connections are taken by `InboxServer.do_read`."""
        raise NotImplementedError

    def getsockname(self) -> str:
        """Return what gevent calls the server's address."""
        return "inbox"

    def setblocking(self, flag: bool) -> None:
        """Do nothing: receiving never blocks."""


class InboxServer(StreamServer):  # type: ignore[misc]
    """gevent's server over an inbox. It stops accepting as soon as it is told to drain."""

    draining = False

    def __init__(self, inbox: Inbox, taken: Callable[[], None], **kwargs: Any) -> None:
        #: Called for each connection that is taken.
        self._taken = taken
        super().__init__(inbox, **kwargs)

    def do_read(self) -> tuple[Any, Any] | None:
        """Take one connection, as `gevent.server.StreamServer.do_read` does with ``accept()``."""
        received = self.socket.receive()
        if received is None:
            return None
        self._taken()
        fd, parcel = received
        if not isinstance(parcel.listener, tuple):
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET if len(parcel.listener) == 2 else socket.AF_INET6
        return GeventSocket(family, socket.SOCK_STREAM, 0, fileno=fd), parcel

    def start_accepting(self) -> None:
        """Accept, unless it is too late."""
        if not self.draining:
            super().start_accepting()

    def drain(self) -> None:
        """Accept no more."""
        self.draining = True
        self.stop_accepting()


class OwnInboxServer(InboxServer):
    """gevent's server over the inbox for this worker's own sessions: it serves them for as long as the worker lives."""

    def close(self) -> None:
        """Do nothing: Gunicorn's worker closes its servers when it begins to drain."""
