"""A worker that stays with a connection, by blocking calls, until it ends: only the gevent kind does so.

There, `time` and sockets are gevent's, so that only a greenlet waits. This is apart from the adapter because it takes
nothing of gevent's own.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from ..shared.refusals import FULL_DISPATCHER, LINGER, Refusal
from . import limits
from .connection import Listener
from .gate import NEED_MORE, SERVE, HandOver, LaterHead
from .served import Served
from .wsgi_worker import WSGIStickyWorker


class BlockingStickyWorker(WSGIStickyWorker):
    """The base of such a kind: it calls `_handle` for each connection that it has taken."""

    def _handle(self, client: Any, info: Any) -> None:
        """Serve one connection."""
        served = self._served[client] = Served(info)
        self.load.connected(served)
        listener = Listener(info.listener)
        try:
            refusal = self._call_hook(served, listener) if self.admits else None
            if refusal is None:
                self.handle(listener, client, info.address)  # type: ignore[attr-defined]
            elif info.unread or self.cfg.is_ssl or self._asks(client):
                self._refuse(client, served, refusal)
        finally:
            del self._served[client]
            self.load.disconnected(served)

    def _before_request(self, served: Served, unreader: Any, number: int) -> int:
        """Prepare Gunicorn's parser for a request, or hand the connection over; see parser.py.

        Raises:
            StopIteration: the request is not for this worker, or refused
        """
        is_first = number == 1
        number = super()._before_request(served, unreader, number)
        if not is_first:
            self.load.waits(served)
            self._check(unreader, served)
            self.load.goes_on(served)
        return number

    def _check(self, unreader: Any, served: Served) -> None:
        """Read the head of the next request, and go on only if it is this worker's.

        Raises:
            StopIteration: it is not, or the request is refused, or the client has gone
        """
        data = unreader.read()
        if not data or self.gate.stays(served, data):
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
                time.sleep(0 if looks < limits.LOOKS else limits.SLOW)
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
        deadline = time.monotonic() + limits.HAND_OVER
        while self._seat.returns.send(client.fileno(), info) is not None:
            if time.monotonic() > deadline:
                self._refuse(client, served, FULL_DISPATCHER)
                return
            self._pause(limits.RETRY)
        self.load.handed_over()

    def _pause(self, seconds: float) -> None:
        """Let all others have their turn."""
        time.sleep(seconds)

    def _asks(self, client: Any) -> bool:
        """Wait a moment for a request: an answer without one would be taken for that of a later one."""
        client.settimeout(LINGER)
        try:
            return bool(client.recv(1, socket.MSG_PEEK))
        except OSError:
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
