"""The gevent kind: Gunicorn's gevent worker, which takes its connections from a channel, not from a listener."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer
from gunicorn.http.parser import RequestParser
from gunicorn.workers.ggevent import GeventWorker

from ..broadcast import gevent_driver
from ..sessions.gevent_websocket import use_simple_websocket
from ..shared import current, logs
from ..shared.refusals import FULL_DISPATCHER, HOOK_FAILED, LINGER, NOT_RELEASED, Refusal, is_silent
from ..shared.unpatched import socketpair
from . import response, wsgi
from .connection import Listener
from .core import StickyWorker
from .gate import NEED_MORE, SERVE, HandOver, LaterHead
from .gevent_inbox import Inbox, InboxServer, OwnInboxServer
from .parser import request_class
from .served import Served

if TYPE_CHECKING:
    from .seat import Seat

#: Seconds to wait, and between two tries, if the channel to the dispatcher is full.
HAND_OVER = 30.0
RETRY = 0.005
#: After so many looks at a head that arrives in pieces, seconds between two of them.
LOOKS = 16
SLOW = 0.1


class GeventStickyWorker(StickyWorker, GeventWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's gevent worker with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    wsgi: Any

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        #: The servers over the inboxes, the slot's first.
        self._inboxes: list[InboxServer] = []
        #: All that accepts something in this process.
        self._accepting: list[StreamServer] = []
        #: By the client's socket.
        self._served: dict[Any, Served] = {}
        super().__init__(*args, seat=seat, **kwargs)
        if seat:
            self.sockets = [Inbox(channel) for channel in (seat.channel, seat.own_channel) if channel]
            self.server_class = self._new_server

    # --- its life ---

    def init_process(self) -> None:
        """Prepare the process (`gunicorn.workers.base.Worker.init_process`)."""
        use_simple_websocket()
        super().init_process()

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        if not self.cfg.is_ssl:  # by address then, and what TLS knows of the connection could not be handed over
            RequestParser.mesg_class = request_class(self._served.get, self._before_request, self._after_request)
        current.cluster = seat.cluster, functools.partial(gevent_driver.messages, log=self.log)

    def load_wsgi(self) -> None:
        """Load the application, and let it see slot and key."""
        super().load_wsgi()
        if self._seat:
            headers = response.header_fields(self.cfg, self._seat)
            self.wsgi = wsgi.with_affinity(self.wsgi, self._served.get, self.slot, headers)

    def run(self) -> None:
        """Serve, and hear the other workers (`gunicorn.workers.ggevent.GeventWorker.run`)."""
        if self._seat and self._seat.cluster_socket:
            self._accepting.append(gevent_driver.serve(self._seat.cluster_socket, self._seat.cluster))
        super().run()

    def patch(self) -> None:
        """Patch the standard library, but not our inbox."""
        if not self._seat:
            super().patch()
            return
        inboxes, self.sockets = self.sockets, []
        super().patch()
        self.sockets = inboxes

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Reopen the logs, as `gunicorn.workers.ggevent.GeventWorker.handle_usr1` does, if that is possible."""
        gevent.spawn(logs.reopen, self.log)

    def _persist(self, seat: Seat) -> None:
        super()._persist(seat)
        if seat.is_active():
            self._inboxes[0].start_accepting()

    def _abandon(self) -> None:
        for server in self._accepting:
            server.stop_accepting()
        nobody, end = socketpair()
        end.close()
        for client in self._served:
            for watcher in (client._read_event, client._write_event):
                if watcher:  # else closed
                    watcher.stop()
                    os.dup2(nobody.fileno(), client.fileno(), inheritable=False)
        nobody.close()

    # --- its connections ---

    def _new_server(self, inbox: Inbox, *, spawn: Any, **kwargs: Any) -> InboxServer:
        """Make what `GeventWorker.run` calls a server class: of its arguments for pywsgi, only TLS concerns us."""
        assert self._seat
        ssl_args = {name: kwargs[name] for name in ("ssl_context",) if name in kwargs}
        arguments = {"handle": self._handle, "spawn": spawn, **ssl_args}
        last_call = self.cfg.graceful_timeout
        server: InboxServer
        if self._inboxes:
            last_served = lambda: self.load.last_served  # noqa: E731
            server = OwnInboxServer(inbox, self._seat, last_call, last_served=last_served, **arguments)
        else:
            server = InboxServer(inbox, self._seat, last_call, **arguments)
            self.activate()
        self._inboxes.append(server)
        self._accepting.append(server)
        return server

    def _handle(self, client: Any, info: Any) -> None:
        """Serve one connection, in its greenlet."""
        served = self._served[client] = Served(info)
        self.load.connected(served)
        listener = Listener(info.listener)
        try:
            if not self.admits or self._admit(served, client, listener):
                self.handle(listener, client, info.address)
        finally:
            del self._served[client]
            self.load.disconnected(served)

    def _before_request(self, served: Served, unreader: Any, number: int) -> int:
        """Prepare Gunicorn's parser for a request, or hand the connection over; see parser.py.

        Raises:
            StopIteration: the request is not for this worker, or refused
        """
        if not self.may_serve():
            raise StopIteration
        if number > 1:
            self.load.waits(served)
            self._check(unreader, served)
            self.load.goes_on(served)
        elif served.info.unread:
            unreader.unread(served.info.unread)
        # Only the first request may follow a PROXY header, and a connection that was handed over has none left.
        return number + 1 if served.info.unread else number

    def _after_request(self, served: Served, request: Any) -> None:
        """Count a request, and carry what the PROXY header of the connection said, to here and to the next worker."""
        self.load.requested(served)
        if request.proxy_protocol_info:
            served.proxy = request.proxy_protocol_info
        elif served.proxy:
            request.proxy_protocol_info = served.proxy

    def _check(self, unreader: Any, served: Served) -> None:
        """Read the head of the next request, and go on only if it is this worker's.

        Raises:
            StopIteration: it is not, or the request is refused, or the client has gone
        """
        data = unreader.read()
        if not data:
            unreader.unread(data)
            return
        head = LaterHead(self.gate, served)
        decision = head.feed(data)
        if decision is NEED_MORE:
            decision = self._wait_for_head(unreader, head)
        if decision is SERVE:
            unreader.unread(bytes(head.data))
            return
        if isinstance(decision, HandOver):
            self.explain(served, decision)
            self._hand_over(unreader.sock, served, decision, bytes(head.data))
        elif isinstance(decision, Refusal):
            self._refuse(unreader.sock, served, decision)
        raise StopIteration

    def _wait_for_head(self, unreader: Any, head: LaterHead) -> Any:
        """Return the decision on a head that arrives in pieces, or None if the client has gone.

        All others have their turn before each look, and after some looks they come ten times a second only.
        """
        looks, seconds = 0, self.cfg.sticky_header_timeout
        with gevent.Timeout(seconds, False):
            while True:
                gevent.sleep(0 if looks < LOOKS else SLOW)
                looks += 1
                data = unreader.read()
                decision = head.feed(data) if data else None
                if decision is not NEED_MORE:
                    return decision
        return head.expire(seconds)

    def _hand_over(self, client: Any, served: Served, decision: HandOver, head: bytes) -> None:
        """Give the connection back for routing; closing it here is the caller's."""
        assert self._seat
        info = served.info._replace(key=decision.key, unread=head, proxy=served.proxy)
        deadline = time.monotonic() + HAND_OVER
        while self._seat.returns.send(client.fileno(), info) is not None:
            if time.monotonic() > deadline:
                self._refuse(client, served, FULL_DISPATCHER)
                return
            # Gunicorn's keep-alive timer runs: it is for the client, and must not cut this off.
            with contextlib.suppress(gevent.Timeout):
                gevent.sleep(RETRY)
        self.load.handed_over()

    def _admit(self, served: Served, client: Any, listener: Listener) -> bool:
        """Call the hook and wait for the release, or answer the connection here and return False."""
        released = Event()
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        try:
            with gevent.Timeout(seconds, False):
                connection = self.connection(served, listener, released)
                self.cfg.sticky_connection(self, connection)
                if self.cfg.sticky_sync:
                    connection.wait()
                return True
        except Exception:
            self.log.exception("Exception in the sticky_connection hook")
            refusal = HOOK_FAILED
        else:
            refusal = NOT_RELEASED.because(event=self.cfg.sticky_sync_event, seconds=seconds)
        if served.info.unread or self.cfg.is_ssl or not is_silent(client.fileno()):
            self._refuse(client, served, refusal)
        return False

    def _refuse(self, client: Any, served: Served, refusal: Refusal) -> None:
        """Answer in the place of the application, and linger before the caller closes, see shared/refusals.py."""
        self.note_refusal(served, refusal)
        deadline = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            client.settimeout(LINGER)
            client.sendall(refusal.response())
            client.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                client.settimeout(left)
                if not client.recv(65536):
                    break
