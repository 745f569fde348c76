"""Connections of a worker with threads that no thread has, for as long as that is so.

They are silent, or the head of their next request arrives, or they are about to be handed over, or they linger. The
loop waits for all of them, and for each for some seconds only.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, Protocol

from gunicorn import util
from gunicorn.http.parser import RequestParser

from ..shared.refusals import FULL_DISPATCHER, LINGER, Refusal, is_silent
from . import limits
from .gate import NEED_MORE, SERVE, Gate, HandOver, LaterHead
from .served import Served
from .thread_connection import ThreadConnection
from .thread_deadlines import Deadlines, Timetable
from .thread_load import ThreadLoad

if TYPE_CHECKING:
    from ..shared.channel import Channel

#: Seconds that a new connection may be silent, beside Gunicorn's `keepalive`, as in Gunicorn.
SILENCE = 5.0


class Worker(Protocol):
    """Whose connections these are: thread_worker.py."""

    cfg: Any
    log: Any
    poller: Any
    nr_conns: int
    gate: Gate
    load: ThreadLoad

    def explain(self, served: Served, decision: HandOver) -> None: ...

    def note_refusal(self, served: Served, refusal: Refusal) -> None: ...

    def serve(self, conn: ThreadConnection) -> None: ...


class WaitingConnections:
    """Connections that no thread has. Only the loop calls this.

    Args:
        worker: whose they are
        served: all of its connections, by socket
        returns: where those go whose next request belongs elsewhere
        timetable: until when the loop waits
    """

    def __init__(self, worker: Worker, served: dict[Any, Served], returns: Channel, timetable: Timetable) -> None:
        self._worker = worker
        self._served = served
        self._returns = returns
        cfg = worker.cfg
        #: Whether later requests can be handed over.
        self._has_gate = not cfg.is_ssl
        self._silent: Deadlines[ThreadConnection] = Deadlines(timetable, SILENCE + cfg.keepalive, self.drop)
        self._heads: Deadlines[ThreadConnection] = Deadlines(timetable, cfg.sticky_header_timeout, self._refuse_slow)
        self._slow: Deadlines[ThreadConnection] = Deadlines(timetable, limits.SLOW, self._watch_head)
        self._lingering: Deadlines[ThreadConnection] = Deadlines(timetable, LINGER, self._close)
        self._returning: Deadlines[functools.partial[None]] = Deadlines(timetable, limits.RETRY, lambda again: again())

    # --- for something to be read ---

    def listen(self, conn: ThreadConnection) -> None:
        """Wait for the first bytes of a connection."""
        self._silent.add(conn)
        self._watch(conn, self._hear)

    def _hear(self, conn: ThreadConnection) -> None:
        """The first bytes of a connection have come, or its end."""
        self._silent.discard(conn)
        if is_silent(conn.sock.fileno()):
            self.drop(conn)
        else:
            self._worker.serve(conn)

    def _watch(self, conn: ThreadConnection, react: Callable[[ThreadConnection], None]) -> None:
        """Let something be done when there is something to be read, or the client has gone."""

        def readable(client: Any) -> None:
            self._worker.poller.unregister(client)
            react(conn)

        try:
            conn.sock.setblocking(False)
            self._worker.poller.register(conn.sock, EVENT_READ, readable)
        except (OSError, ValueError):  # closed
            self.drop(conn)

    def _unwatch(self, conn: ThreadConnection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._worker.poller.unregister(conn.sock)

    # --- for the next request ---

    def look(self, conn: ThreadConnection) -> None:
        """Look at what has come of the next request, and go on only if it is this worker's."""
        if not self._has_gate or not isinstance(conn.parser, RequestParser):
            self._worker.serve(conn)
            return
        try:
            self._decide(conn)
        except Exception:  # which would end the loop, and the worker
            self._worker.log.exception("Error reading a request")
            self.drop(conn)

    def _decide(self, conn: ThreadConnection) -> None:
        try:
            data = conn.parser.unreader.read()
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self.drop(conn)
            return
        if data and conn.head is None and self._worker.gate.stays(conn, data):
            conn.parser.unreader.unread(data)
            self._worker.serve(conn)
            return
        head = conn.head or LaterHead(self._worker.gate, conn)
        decision = head.feed(data) if data else NEED_MORE
        if decision is NEED_MORE:
            self._wait_for_head(conn, head)
            return
        self._heads.discard(conn)
        conn.head, conn.looks = None, 0
        if decision is SERVE:
            conn.parser.unreader.unread(bytes(head.data))
            self._worker.serve(conn)
        elif isinstance(decision, HandOver):
            self._worker.explain(conn, decision)
            self._hand_over(conn, decision, bytes(head.data), time.monotonic() + limits.HAND_OVER)
        elif isinstance(decision, Refusal):
            self.refuse(conn, decision)
            self.drop(conn)

    def _wait_for_head(self, conn: ThreadConnection, head: LaterHead) -> None:
        """Look again when more has arrived; after some looks, ten times a second only."""
        if conn.head is None:
            conn.head = head
            self._heads.add(conn)
        conn.looks += 1
        if conn.looks < limits.LOOKS:
            self._watch_head(conn)
        else:
            self._slow.add(conn)

    def _watch_head(self, conn: ThreadConnection) -> None:
        self._watch(conn, self.look)

    def _refuse_slow(self, conn: ThreadConnection) -> None:
        assert conn.head
        if conn.head.data:
            self.refuse(conn, conn.head.expire(self._worker.cfg.sticky_header_timeout))
        self.drop(conn)

    def _hand_over(self, conn: ThreadConnection, decision: HandOver, head: bytes, deadline: float) -> None:
        """Give the connection back for routing; in a moment, if the channel is full."""
        info = conn.info._replace(key=decision.key, unread=head, proxy=conn.proxy)
        if self._returns.send(conn.sock.fileno(), info) is None:
            self._worker.load.handed_over()
        elif time.monotonic() < deadline:
            self._returning.add(functools.partial(self._hand_over, conn, decision, head, deadline))
            return
        else:
            self.refuse(conn, FULL_DISPATCHER)
        self.drop(conn)

    def refuse(self, conn: ThreadConnection, refusal: Refusal) -> None:
        """Answer in the place of the application; closing it is the caller's."""
        self._worker.note_refusal(conn, refusal)
        with contextlib.suppress(OSError):
            conn.sock.setblocking(False)
            conn.sock.send(refusal.response())
            conn.lingers = True

    # --- for their end ---

    def drop(self, conn: ThreadConnection) -> None:
        """Close a connection that no thread has, and that is neither idle nor lingering."""
        if not conn.is_gone:
            self._worker.nr_conns -= 1
            conn.close()

    def let_go(self, conn: ThreadConnection, graceful: bool) -> None:
        """Close a connection so that what was answered arrives, if that is asked for; do not wait for it here."""
        conn.is_gone = True
        self._unwatch(conn)
        for deadlines in (self._silent, self._heads, self._slow):
            deadlines.discard(conn)
        self._worker.load.disconnected(conn)
        if graceful or conn.lingers:
            self._linger(conn)
        else:
            self.forget(conn)

    def _linger(self, conn: ThreadConnection) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self._worker.poller.register(conn.sock, EVENT_READ, functools.partial(self._discard, conn))
        except (OSError, ValueError):  # the client has gone
            self.forget(conn)
            return
        self._worker.nr_conns += 1
        self._lingering.add(conn)

    def _discard(self, conn: ThreadConnection, client: Any) -> None:
        try:
            if client.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lingering.discard(conn)
        self._close(conn)

    def _close(self, conn: ThreadConnection) -> None:
        """Close a connection that has lingered."""
        self._unwatch(conn)
        self._worker.nr_conns -= 1
        self.forget(conn)

    def forget(self, conn: ThreadConnection) -> None:
        """Close the socket, in any thread."""
        # Without shutdown(), which would reach whoever it has been handed over to. Until it is closed, a child that is
        # forked has to know of it.
        util.close(conn.sock)
        self._served.pop(conn.sock, None)
        if conn.sock is not conn.client_socket:
            util.close(conn.client_socket)
            self._served.pop(conn.client_socket, None)
