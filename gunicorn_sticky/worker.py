"""The worker: Gunicorn's gevent worker, which takes its connections from a channel instead of a listening socket."""

from __future__ import annotations

import mmap
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent
from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket
from gunicorn.errors import HaltServer
from gunicorn.workers.ggevent import GeventWorker

from . import _startup
from .answer import answer
from .connection import Connection, Listener
from .websocket import use_simple_websocket

if TYPE_CHECKING:
    from .channel import Channel

#: Seconds that a client has to read our answer.
LINGER = 2.0


@dataclass(frozen=True)
class Seat:
    """A worker's place among the others, given by the arbiter."""

    slot: int
    channel: Channel
    #: Closes, in the worker's process, what it has inherited and must not keep.
    leave: Callable[[], None]


class Inbox:
    """The receiving end of a channel, in the place of a listening socket."""

    family = -1

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
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

    def do_read(self) -> tuple[Any, Any] | None:
        """Take one connection, as `gevent.server.StreamServer.do_read` does with ``accept()``."""
        received = self.socket.receive()
        if received is None:
            return None
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


class GeventStickyWorker(GeventWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's gevent worker with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        if seat is None and sys.platform == "linux":
            raise HaltServer("a reload cannot make a running server sticky: restart it", 1)
        #: One byte that the arbiter's copy of this object shares with the worker's.
        self._alive = mmap.mmap(-1, 1)
        self._server: InboxServer | None = None
        self.wsgi: Any = None
        self._connections: dict[Any, Connection] = {}
        super().__init__(*args, **kwargs)
        self._seat = seat
        self.slot = seat.slot if seat else 0
        if seat:
            self.sockets = [Inbox(seat.channel)]
            self.server_class = self._new_server

    @classmethod
    def setup(cls) -> None:
        """Refuse to run under an arbiter that knows nothing of us; Gunicorn calls this when it resolves ``-k``.

        Raises:
            RuntimeError: the start-up hook did not run
        """
        if not _startup.in_charge:
            raise RuntimeError(
                "gunicorn_sticky was loaded after Gunicorn, because its start-up hook did not run "
                "(GUNICORN_STICKY_HOOK=0, or .pth files are not processed): start with `gunicorn-sticky` or "
                "`python -m gunicorn_sticky`, or import gunicorn_sticky before gunicorn"
            )

    # The arbiter has to know when a worker drains, whoever started that: a signal, max_requests, the reloader.
    @property
    def alive(self) -> bool:
        """Whether this worker takes connections. Shared with the arbiter."""
        return self._alive[0] != 0

    @alive.setter
    def alive(self, value: bool) -> None:
        self._alive[0] = value
        if not value and self._server is not None:
            self._server.loop.run_callback_threadsafe(self._server.drain)

    def init_process(self) -> None:
        """Prepare the process (`gunicorn.workers.base.Worker.init_process`)."""
        if self._seat:
            self._seat.leave()
            os.environ["GUNICORN_STICKY_SLOT"] = str(self.slot)
        use_simple_websocket()
        super().init_process()

    def patch(self) -> None:
        """Patch the standard library, but not our inbox."""
        if not self._seat:
            super().patch()
            return
        inboxes, self.sockets = self.sockets, []
        super().patch()
        self.sockets = inboxes

    def load_wsgi(self) -> None:
        """Load the application, and let it see slot and key."""
        super().load_wsgi()
        application: Any = self.wsgi

        def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            connection = self._connections.get(environ["gunicorn.socket"])
            if connection is not None:
                environ["gunicorn_sticky.slot"] = connection.slot
                environ["gunicorn_sticky.key"] = connection.key
            response: Iterable[bytes] = application(environ, start_response)
            return response

        self.wsgi = wsgi

    def _new_server(self, inbox: Inbox, *, spawn: Any, **kwargs: Any) -> InboxServer:
        """Make what `GeventWorker.run` calls a server class: of its arguments for pywsgi, only TLS concerns us."""
        ssl_args = {name: kwargs[name] for name in ("ssl_context",) if name in kwargs}
        self._server = InboxServer(inbox, handle=self._handle, spawn=spawn, **ssl_args)
        return self._server

    def _handle(self, client: Any, parcel: Any) -> None:
        """Serve one connection, in its greenlet."""
        connection = Connection(
            parcel.address, parcel.key, self.slot, Listener(parcel.listener), self.cfg.sticky_sync_event
        )
        self._connections[client] = connection
        try:
            if self._admit(connection, client):
                self.handle(connection.listener, client, connection.address)
        finally:
            del self._connections[client]

    def _admit(self, connection: Connection, client: Any) -> bool:
        """Call the hook and wait for the release, or answer the connection here and return False."""
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        try:
            with gevent.Timeout(seconds, False):
                self.cfg.sticky_connection(self, connection)
                if self.cfg.sticky_sync:
                    connection.wait()
                return True
        except Exception:
            self.log.exception("Exception in the sticky_connection hook")
            status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "the sticky_connection hook has failed"
        else:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            message = f"the application did not emit {self.cfg.sticky_sync_event!r} within {seconds} s"
            self.log.warning(
                "Refused a connection with key %s: %d, %s (setting: sticky_sync_timeout)",
                connection.key,
                status,
                message,
            )
        self._answer(client, answer(status, message))
        return False

    def _answer(self, client: Any, response: bytes) -> None:
        """Send a response, and give the client time to read it: closing with bytes unread would reset it."""
        deadline = time.monotonic() + LINGER
        try:
            client.settimeout(LINGER)
            client.sendall(response)
            client.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                client.settimeout(left)
                if not client.recv(65536):
                    break
        except OSError:
            pass
