"""What kinds have in common that read with blocking calls, by Gunicorn's own parser, and serve WSGI: all but asyncio's.

Where a kind is gevent's, `threading` and `time` are gevent's as well, so that only a greenlet waits.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from gunicorn.http.parser import RequestParser

from ..shared.refusals import FULL_DISPATCHER, HOOK_FAILED, LINGER, NOT_RELEASED, Refusal, is_silent
from . import response, wsgi
from .connection import Listener
from .core import StickyWorker
from .gate import NEED_MORE, SERVE, HandOver, LaterHead
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


class BlockingStickyWorker(StickyWorker):
    """The base of such kinds: they call `_handle` for each connection that they have taken."""

    wsgi: Any

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        #: By the client's socket.
        self._served: dict[Any, Served] = {}
        super().__init__(*args, seat=seat, **kwargs)

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        if not self.cfg.is_ssl:  # by address then, and what TLS knows of the connection could not be handed over
            RequestParser.mesg_class = request_class(self._served.get, self._before_request, self._after_request)

    def load_wsgi(self) -> None:
        """Load the application, and let it see slot and key."""
        super().load_wsgi()  # type: ignore[misc]
        if self._seat:
            headers = response.header_fields(self.cfg, self._seat)
            self.wsgi = wsgi.with_affinity(self.wsgi, self._served.get, self.slot, headers)

    def _handle(self, client: Any, info: Any) -> None:
        """Serve one connection."""
        served = self._served[client] = Served(info)
        self.load.connected(served)
        listener = Listener(info.listener)
        try:
            if not self.admits or self._admit(served, client, listener):
                self.handle(listener, client, info.address)  # type: ignore[attr-defined]
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
        deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(0 if looks < LOOKS else SLOW)
                looks += 1
                unreader.sock.settimeout(left)
                data = unreader.read()
                decision = head.feed(data) if data else None
                if decision is not NEED_MORE:
                    unreader.sock.settimeout(None)
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
            self._pause(RETRY)
        self.load.handed_over()

    def _pause(self, seconds: float) -> None:
        """Let all others have their turn."""
        time.sleep(seconds)

    def _time_limit(self, seconds: float | None) -> contextlib.AbstractContextManager[object]:
        """Return what ends a block, without an exception, after some seconds: only some kinds can interrupt a hook."""
        return contextlib.nullcontext()

    def _admit(self, served: Served, client: Any, listener: Listener) -> bool:
        """Call the hook and wait for the release, or answer the connection here and return False."""
        released = threading.Event()
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        try:
            with self._time_limit(seconds):
                connection = self.connection(served, listener, released)
                self.cfg.sticky_connection(self, connection)
                if not self.cfg.sticky_sync or connection.wait(seconds):
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
