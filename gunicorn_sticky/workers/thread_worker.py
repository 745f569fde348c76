"""The threads kind: Gunicorn's threaded worker, which takes its connections from channels, not from listeners.

A thread has a connection for as long as it serves a request. All else is done in the loop, which waits for nobody: it
takes connections, if a thread is free; reads what comes on kept-alive ones until it is decided where that belongs;
hands them over; refuses; and lingers. So neither who is silent or slow with the key in a later head nor who does not
read a refusal holds a thread; half a head whose key is known does, as in Gunicorn. A connection that ends with its
request is closed by the thread, which wakes the loop only if that waits for room.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import time
from collections import deque
from concurrent.futures import Future
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

from ..broadcast import thread_driver
from ..shared import current, logs
from ..shared.refusals import Refusal, is_silent
from ..shared.unpatched import socketpair
from .connection import Listener
from .drain import POLL
from .inbox import family
from .thread_connection import ThreadConnection
from .thread_deadlines import Deadlines, Timetable
from .thread_inbox import ThreadInbox
from .thread_load import ThreadLoad
from .thread_pool import DaemonPool
from .thread_waiting import WaitingConnections
from .wsgi_worker import WSGIStickyWorker

if TYPE_CHECKING:
    from .seat import Seat

#: Seconds between two signs of life.
SIGN = 0.5
#: Seconds for which a worker that drains keeps a connection open that waits for its next request.
KEPT = 1.0
#: Seconds to wait if there are no descriptors left.
NO_FILES = 0.1


class ThreadStickyWorker(WSGIStickyWorker, ThreadWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's threaded worker (``gthread``) with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    load_class = ThreadLoad
    load: ThreadLoad
    sockets: list[ThreadInbox]

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        super().__init__(*args, seat=seat, **kwargs)
        if seat:
            self.sockets = [ThreadInbox(channel) for channel in (seat.channel, seat.own_channel) if channel]
        #: Threads that have a connection, and connections that wait for a thread.
        self._busy = 0
        #: An item for each connection that a thread has closed, until the loop counts it; and whether the loop wants to
        #: be woken by that.
        self._closed: deque[None] = deque()
        self._waits_for_room = True
        #: When the next sign of life is due.
        self._next_sign = 0.0
        self._drains = False
        #: The inboxes that a worker which drains stays for: each counts as a connection.
        self._stays_for: list[ThreadInbox] = []

    # --- its life ---

    def _prepare(self, seat: Seat) -> None:
        super()._prepare(seat)
        self._timetable = timetable = Timetable()
        self._waiting = WaitingConnections(self, self._served, seat.returns, timetable)
        self._held: Deadlines[ThreadConnection] = Deadlines(timetable, self.cfg.sticky_sync_timeout, self._refuse_held)
        self._no_files: Deadlines[ThreadInbox] = Deadlines(timetable, NO_FILES, lambda _: self._watch_inboxes())

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        current.cluster = seat.cluster, thread_driver.messages, self.log

    def run(self) -> None:
        """Serve (`gunicorn.workers.gthread.ThreadWorker.run`)."""
        if not self._seat:
            super().run()
            return
        for inbox in self.sockets:
            inbox.intake = self.intake(is_own=inbox is not self.sockets[0])
        if self._seat.cluster_socket:
            thread_driver.serve(self._seat.cluster_socket, self._seat.cluster)
        self.activate()
        super().run()
        self._count_closed()
        if self._busy:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def get_thread_pool(self) -> Any:
        """Return our threads, or a user's own (`gunicorn.workers.gthread.ThreadWorker.get_thread_pool`)."""
        inherited = super().get_thread_pool
        return DaemonPool(self.cfg.threads) if inherited.__func__ is ThreadWorker.get_thread_pool else inherited()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain on SIGTERM, also if the arbiter has said so already, where Gunicorn's would neither say so nor wake."""
        super().handle_exit(sig, frame)
        self.alive = False
        self.method_queue.defer(lambda: None)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Reopen the logs, as `gunicorn.workers.base.Worker.handle_usr1` does, if that is possible."""
        self.method_queue.defer(logs.reopen, self.log)

    def notify(self) -> None:
        """Show that this worker is alive, if that is due; Gunicorn's loop calls this at each of its turns."""
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + SIGN
            super().notify()
            if self._seat and self.is_orphan():
                self.log.info("Parent changed, shutting down: %s", self)
                sys.exit(0)

    def _persist(self, seat: Seat) -> None:
        super()._persist(seat)
        self._watch_inboxes()

    # --- its loop ---

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Do one turn of the loop, and what has become due."""
        if not self._seat:
            super().wait_for_and_dispatch_events(timeout)
            return
        # Older Gunicorns wait for all of the graceful timeout at once, also when their master has died.
        timeout = min(timeout, POLL if self._stays_for else SIGN)
        super().wait_for_and_dispatch_events(min(timeout, max(self._timetable.next - time.monotonic(), 0)))
        self._timetable.expire(time.monotonic())
        if self._drains:
            self._drain()
        self.notify()  # older Gunicorns do not at the end

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take connections from now on, or no more; at the end, begin to drain."""
        if not self._seat:
            super().set_accept_enabled(enabled)
            return
        # What threads have closed since Gunicorn has looked may have made room, and what they close now wakes the loop.
        self._waits_for_room = True
        self._count_closed()
        self._accepting = enabled or (self.alive and self.nr_conns < self.worker_connections)
        if not self.alive and not self._drains:
            self._drains = True
            now = time.monotonic()
            for inbox in self.sockets:
                inbox.intake.drain(now)
            self._stays_for = list(self.sockets)
            self.nr_conns += len(self._stays_for)
        self._watch_inboxes()

    def _drain(self) -> None:
        """Look into the inboxes that this worker stays for."""
        for inbox in list(self._stays_for):
            if not inbox.intake.goes_on(time.monotonic()):
                self._stays_for.remove(inbox)
                self.nr_conns -= 1
                continue
            while self._is_open(inbox):
                if not self._take(inbox):
                    inbox.intake.took_all()
                    break
        self._watch_inboxes()

    # --- its inboxes ---

    def _watch_inboxes(self) -> None:
        """Let those be watched that connections are to be taken from now."""
        self._waits_for_room = True
        self._count_closed()
        for inbox in self.sockets:
            if (is_open := self._is_open(inbox)) != inbox.is_watched:
                inbox.is_watched = is_open
                if is_open:
                    self.poller.register(inbox, EVENT_READ, self.accept)
                else:
                    self.poller.unregister(inbox)
        self._waits_for_room = not all(inbox.is_watched for inbox in self.sockets)

    def _is_open(self, inbox: ThreadInbox) -> bool:
        # While all threads are busy, the others wait in the channel, where the dispatcher sees them.
        if self._busy >= self.cfg.threads or not (self._accepting or self._drains) or inbox in self._no_files:
            return False
        return inbox.intake.may_take()

    def accept(self, inbox: Any) -> None:
        """Take a connection from an inbox; Gunicorn's loop calls this when there is one."""
        if not self._seat:
            super().accept(inbox)
            return
        self._count_closed()
        if not self._is_open(inbox) or not self._take(inbox) or self._busy >= self.cfg.threads or self._no_files:
            self._watch_inboxes()

    def _take(self, inbox: ThreadInbox) -> bool:
        """Take a connection, and return whether there may be more."""
        try:
            with self.load.lock:  # a child that is forked now would keep what nobody knows of
                received = inbox.receive()
                if received is None:
                    return False
                fd, info = received
                conn = ThreadConnection(self, socket.socket(family(info), socket.SOCK_STREAM, 0, fd), info)
                self._served[conn.sock] = conn
        except OSError:
            self._no_files.add(inbox)
            return True
        self.nr_conns += 1
        self.load.connected(conn)
        if not info.unread and is_silent(fd):
            self._waiting.listen(conn)
        else:
            self.serve(conn)
        return True

    # --- its connections ---

    def serve(self, conn: ThreadConnection) -> None:
        """Let a thread serve the next request."""
        if not conn.busy:
            self.load.goes_on(conn)
        self.enqueue_req(conn)

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection to a thread, as soon as there is one (`ThreadWorker.enqueue_req`)."""
        self._busy += 1
        if self._seat and isinstance(self.tpool, DaemonPool):
            self.tpool.start(functools.partial(self._serve_and_close, conn))
        else:
            super().enqueue_req(conn)

    def _serve_and_close(self, conn: ThreadConnection) -> None:
        """Serve a request, in a thread, and close the connection, if it ends with that, or tell the loop."""
        outcome: Future[Any]
        try:
            stays_open = self.handle(conn)
            if not stays_open and not self.admits and conn.is_over():
                self._close(conn)
                return
        except BaseException as error:
            outcome = Future()
            outcome.set_exception(error)
        else:
            outcome = Future()
            outcome.set_result(stays_open)
        self.method_queue.defer(self.finish_request, conn, outcome)

    def _close(self, conn: ThreadConnection) -> None:
        """Close a connection in the thread that has served it."""
        conn.is_gone = True
        self.load.disconnected(conn)
        self._waiting.forget(conn)
        self._closed.append(None)
        if self._waits_for_room:
            self.method_queue.defer(self._watch_inboxes)

    def _count_closed(self) -> None:
        """Count the connections that threads have closed."""
        while self._closed:
            self._closed.popleft()
            self._busy -= 1
            self.nr_conns -= 1

    def begin(self, conn: ThreadConnection) -> Refusal | None:
        """Prepare, in a thread, what a connection needs before its first request, and return how to refuse it."""
        self._served[conn.sock] = conn  # TLS has changed that
        if not self.admits:
            return None
        if self.cfg.sticky_sync:
            self.method_queue.defer(self._held.add, conn)
        refusal = self._call_hook(conn, Listener(conn.server))
        with self.load.lock:
            conn.is_admitted = refusal is None and conn.refusal is None
            return conn.refusal or refusal

    def _refuse_held(self, conn: ThreadConnection) -> None:
        """Refuse a connection whose hook still has its thread, which nobody can take away from it."""
        with self.load.lock:
            if conn.is_admitted or conn.is_gone:
                return
            conn.refusal = self._not_released()
        self._waiting.refuse(conn, conn.refusal)
        self._waiting.drop(conn)

    def handle(self, conn: Any) -> Any:
        """Serve a request, in a thread."""
        try:
            return super().handle(conn)
        finally:
            if self._is_child:
                # The application has forked, and the child comes back to us, where nothing is left for it to do.
                sys.stdout.flush()
                os._exit(0)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """A thread has done with a connection (`ThreadWorker.finish_request`)."""
        self._busy -= 1
        if not self._seat:
            super().finish_request(conn, fs)
            return
        if not conn.is_gone:
            self._go_on(conn, fs)
        if self._waits_for_room:
            self._watch_inboxes()

    def _go_on(self, conn: ThreadConnection, fs: Any) -> None:
        """Wait for the next request of a connection, or let it end."""
        self._held.discard(conn)
        stays_open = not fs.cancelled() and fs.exception() is None and fs.result()
        if stays_open:
            self.load.waits(conn)
        elif conn.refusal:
            self._waiting.refuse(conn, conn.refusal)
        if not stays_open:
            conn.lingers = True  # in older Gunicorns no connection does
            self._waiting.drop(conn)
        elif conn.parser.unreader.buf.getvalue():
            self._waiting.look(conn)
        elif not self.alive:
            self._keep(conn)
        else:
            super().finish_request(conn, fs)

    def _keep(self, conn: ThreadConnection) -> None:
        """Keep a connection open for a moment that was to stay open, as newer Gunicorns do: it may be handed over."""
        conn.sock.setblocking(False)
        conn.set_timeout()
        conn.timeout = min(conn.timeout, time.monotonic() + KEPT)
        self.keepalived_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, functools.partial(self.on_client_socket_readable, conn))

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """The next request comes on a kept-alive connection, or its end."""
        if not self._seat:
            super().on_client_socket_readable(conn, client)
            return
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._waiting.look(conn)

    def let_go(self, conn: ThreadConnection, graceful: bool) -> None:
        """Close a connection so that what was answered arrives, if that is asked for; do not wait for it here."""
        self._held.discard(conn)
        self._waiting.let_go(conn, graceful)

    # --- its children ---

    def _before_fork(self) -> None:
        self.load.lock.acquire()
        super()._before_fork()

    def _after_fork(self) -> None:
        super()._after_fork()
        self.load.lock.release()

    def _abandon(self) -> None:
        # These handlers would have told the loop, which a child has not got.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGABRT):
            if signal.getsignal(number) in (self.handle_exit, self.handle_quit, self.handle_abort):
                signal.signal(number, signal.SIG_DFL)
        nobody, end = socketpair()
        end.close()
        for client in self._served:
            if client.fileno() >= 0:  # else closed
                os.dup2(nobody.fileno(), client.fileno(), inheritable=False)
        nobody.close()
