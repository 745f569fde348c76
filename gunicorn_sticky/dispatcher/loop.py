"""The dispatcher: accepts connections, finds out which slot each belongs to, and passes their descriptors there.

One loop around epoll in a process of its own, forked and supervised by the arbiter (arbiter/). It is made for one
configuration, one set of listeners and one number of slots: when any of them changes, the arbiter starts another one
and tells this one to drain.

    accept ──▶ by address ─────────────────────────────▶ key ─▶ slot ─▶ channel ─▶ worker
          └──▶ by header: peek until the head shows it ─┘  │                └─ full: wait in a queue, retry
                                                           └─ bad: answer, linger

Rules:
 1. A client's bytes are peeked at, never consumed, unless the dispatcher itself answers.
 2. Every wait has a deadline. All waits of one kind last equally long, so each kind is a dict in order of deadlines.
 3. Nothing here blocks, and nothing that a client sends raises out of the loop.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import AF_UNIX, IPPROTO_TCP, SOCK_STREAM, TCP_DEFER_ACCEPT
from typing import Any

from ..routing.affinity import Affinity, reader
from ..routing.key import IP, peer_key
from ..shared.board import RUNNING, Board
from ..shared.channel import Channel, ConnectionInfo, connection_info
from ..shared.limited_log import LimitedLog
from ..shared.lookout import Lookout
from ..shared.metrics import Counter, DispatcherRow
from ..shared.refusals import FULL_WORKER, NO_WORKER, Refusal
from ..shared.unpatched import BareSocket, sleep
from .balancing import Channels, HashRoute, SessionRoute
from .lingering import Lingering
from .peeking import Peeking
from .pending import Pending
from .poller import READABLE, Events, Handler
from .vacancies import Vacancies

#: Connections taken from one listener before others get their turn.
ACCEPT_BATCH = 64
#: Seconds between two looks at the parent process and two heartbeats.
TICK = 1.0
#: Seconds between two looks at the board, while another master is active.
ALERT = 0.1
#: Seconds until something that was full is tried again: a channel, or the table of open files.
RETRY = 0.01
#: Seconds that a client has to show its head, once the server stops.
HURRY = 2.0

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Plan:
    """What a dispatcher is made for."""

    #: The arbiter's process.
    parent: int
    affinity: Affinity
    #: Tells whether a worker refuses a request already, by what has arrived of its head.
    refuses: Callable[[bytes], bool]
    #: The hash's key, see routing/hashing.py.
    secret: bytes
    #: File descriptors of the listening sockets.
    listeners: Sequence[int]
    #: Whether the workers speak TLS, so that nobody here could answer.
    tls: bool
    #: All that leads to workers.
    channels: Channels
    #: Who has which seat, here and at the other master.
    board: Board
    other: Board
    #: Channels of slots that are no more: what is in them is routed anew.
    removed: Sequence[Channel]
    #: Seconds for a connection to show its header.
    header_timeout: float
    #: Seconds that connections wait for a worker that does not come, or whose channel is full; they do not count while
    #: one boots.
    slot_timeout: float
    #: Number of connections that a full channel may hold up.
    backlog: int
    #: The dispatcher's row.
    metrics: DispatcherRow


@dataclass
class _Listener:
    socket: BareSocket
    name: Any
    #: For another connection after the first one.
    lookout: Lookout = field(default_factory=Lookout)


class Dispatcher:
    """The loop of the dispatcher's process.

    Args:
        plan: what to dispatch, how and where to
        log: Gunicorn's logger
        heartbeat: called about once in `TICK`
    """

    def __init__(self, plan: Plan, log: Any, heartbeat: Callable[[], None]) -> None:
        self.plan = plan
        self.log = log
        self._limited = LimitedLog(log)
        self.heartbeat = heartbeat
        self._told_to_drain = False
        self._draining = False

        self._reader = reader(plan.affinity, plan.secret, plan.refuses)
        self._route: HashRoute | SessionRoute
        if plan.affinity.by_session:
            self._route = SessionRoute(plan.channels, plan.secret, plan.affinity, plan.board, plan.other)
        else:
            self._route = HashRoute(plan.channels, plan.secret)
        #: How often seats had been taken or left, when last seen.
        self._changes = -1, -1
        self._vacancies = Vacancies(plan.board)

        self._events = Events()
        self._listeners: list[_Listener] = []
        self._accepting = False
        self._metrics = plan.metrics
        self._lingering = Lingering(self._events, self._limited, plan.tls, plan.metrics)
        self._peeking = Peeking(
            self._reader,
            plan.header_timeout,
            self._dispatch,
            self._events,
            self._lingering,
            self._limited,
            plan.metrics,
        )
        self._pending = Pending(plan.backlog, plan.slot_timeout, self._refuse_waiting, self._limited)
        self._resume_at: float | None = None

    # --- the loop ---

    def run(self) -> None:
        """Dispatch until told to drain and done with it, or until the arbiter is gone."""
        for fd in self.plan.listeners:
            listener = BareSocket(fileno=fd)
            if listener.family != AF_UNIX:
                # With the head on its way, the first look mostly sees it (tcp(7)). What is silent is accepted later.
                listener.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, int(self.plan.affinity.by != "ip"))
            self._listeners.append(_Listener(listener, listener.getsockname()))
        for channel in self.plan.removed:
            self._events.watch(channel.fileno(), READABLE, functools.partial(self._move, channel))

        ticked = time.monotonic() - TICK
        while not self._is_done():
            if self._told_to_drain and not self._draining:
                self._stop()
                continue
            if self._may_accept() != self._accepting:
                if self._is_orphan():
                    return  # it must not take another new master for its own, once that is active
                self._turn(not self._accepting)
            self._events.wait(self._patience())
            now = time.monotonic()
            if now - ticked >= TICK:
                self.heartbeat()
                self._measure()
                self._empty_vacant(now - ticked)
                self._changes = -1, -1
                ticked = now
                if self._is_orphan():
                    self.log.info("Parent changed, shutting down the dispatcher")
                    return
            self._expire(now)
            if isinstance(self._route, SessionRoute):
                self._clear_seats(self._route)  # last, so that nothing that was sent here is left behind at the end

    def _measure(self) -> None:
        self._metrics.peeking.set(len(self._peeking))
        self._metrics.full.set(len(self._pending))
        self._metrics.held.set(self._pending.held())
        self._metrics.show()

    def _is_orphan(self) -> bool:
        return os.getppid() != self.plan.parent

    def drain(self) -> None:
        """Accept no more, and end the loop when every connection has found its way. May be called at any time."""
        self._told_to_drain = True  # and no more: a signal may come anywhere in the loop

    def _stop(self) -> None:
        if self._accepting:
            self._turn(False)
        self._draining = True
        for listener in self._listeners:
            listener.socket.close()
        self._listeners.clear()
        self._resume_at = None
        for channel in self.plan.removed:
            self._events.unwatch(channel.fileno())
        if self.plan.board.phase != RUNNING:
            self._peeking.hurry(time.monotonic() + HURRY)

    def wake_by(self, fd: int) -> None:
        """Let the loop look around when the non-blocking `fd` becomes readable (see `signal.set_wakeup_fd`)."""
        self._events.watch(fd, READABLE, lambda _events: self._swallow(fd))

    def _swallow(self, fd: int) -> None:
        os.read(fd, 512)

    def _is_done(self) -> bool:
        """Tell whether nothing is left to do here, and what workers hand back is routed by somebody else."""
        if not self._draining or not self._idle():
            return False
        board = self.plan.board
        if board.phase == RUNNING or not board.is_active_master:
            return True
        if self.plan.other.goes_on:
            return False  # until it is active
        # Nobody comes after this one.
        return not self._reroute(self.plan.channels.returns, self._metrics.handed_back) and self._idle()

    def _idle(self) -> bool:
        return not (self._peeking or self._lingering or self._pending)

    def _patience(self) -> float:
        """Return the seconds until something has to be done in any case."""
        wait = TICK
        if self._pending:
            wait = RETRY
        elif self._draining or not self.plan.board.is_active_master:
            wait = ALERT
        for due in (self._resume_at, self._peeking.deadline(), self._lingering.deadline()):
            if due is not None:
                wait = min(wait, due - time.monotonic())
        return max(wait, 0.0)

    def _expire(self, now: float) -> None:
        """Do what is due."""
        self._peeking.expire(now)
        self._lingering.expire(now)
        self._pending.advance(now)
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None

    # --- accepting ---

    def _may_accept(self) -> bool:
        """Tell whether connections may be accepted now. What is not stays in the kernel's backlog."""
        board = self.plan.board
        if self._resume_at is not None or not board.is_active_master:
            return False
        if self._draining:  # without listeners
            return board.phase != RUNNING and self.plan.other.goes_on
        return not self._pending.block(self.plan.channels.slots)

    def _turn(self, on: bool) -> None:
        """Begin to accept, or stop it. Whoever accepts also routes what workers hand back."""
        self._accepting = on
        handlers: dict[int, Handler] = {self.plan.channels.returns.fileno(): self._take_back}
        for listener in self._listeners:
            handlers[listener.socket.fileno()] = lambda _events, listener=listener: self._accept(listener)  # type: ignore[misc]
        for fd, handler in handlers.items():
            if on:
                self._events.watch(fd, READABLE, handler)
            else:
                self._events.unwatch(fd)

    def _accept(self, listener: _Listener) -> None:
        if not self.plan.board.is_active_master:
            return  # since a moment ago
        family, accept = listener.socket.family, listener.socket._accept  # type: ignore[attr-defined]
        prefix, accepted, by_ip = self.plan.affinity.ipv6_prefix, self._metrics.accepted, self._metrics.keys[IP]
        needs_bytes, name = self._reader.needs_bytes, listener.name
        for number in range(ACCEPT_BATCH):
            if number == 1 and not listener.lookout.pays():
                return
            try:
                fd, address = accept()
            except BlockingIOError:
                listener.lookout.found(False)
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._make_room(error)
                    return
                continue  # the client has gone before it was accepted, see accept(2)
            if number == 1:
                listener.lookout.found(True)
            accepted.inc()
            if needs_bytes(address):
                self._peeking.look(BareSocket(family, SOCK_STREAM, 0, fd), name, address)
            else:
                by_ip.inc()
                self._dispatch(fd, connection_info((name, address, peer_key(address, prefix), b"", None)))

    def _make_room(self, error: OSError) -> None:
        """Newcomers come before those who keep us waiting; if there is nobody to drop, stop for a moment."""
        if self._lingering.drop() or self._peeking.drop(str(error.strerror)):
            return
        self._limited.warn("ulimit -n", "Dispatcher cannot accept: %s", error.strerror)
        self._resume_at = time.monotonic() + TICK

    # --- to the worker ---

    def _dispatch(self, fd: int, info: ConnectionInfo) -> None:
        """Pass a new connection on, and close it here."""
        self._pending.pass_on(self._route.channel(info.key), fd, info)

    def _dispatch_again(self, fd: int, info: ConnectionInfo, counter: Counter) -> None:
        """Pass on a connection that was dispatched before; `counter` is where that counts."""
        counter.inc()
        self._pending.pass_on(self._route.channel(info.key), fd, info)

    def _refuse_waiting(self, fd: int, info: ConnectionInfo) -> None:
        self._refuse(fd, info, FULL_WORKER)

    def _refuse(self, fd: int, info: ConnectionInfo, refusal: Refusal) -> None:
        self._lingering.refuse(BareSocket(fileno=fd), info.address, refusal)

    def _empty_vacant(self, elapsed: float) -> None:
        """Refuse what waits for a slot that has had no worker for too long, except while one boots.

        Args:
            elapsed: seconds since this was called last
        """
        for slot, channel in enumerate(self.plan.channels.slots):
            waited, boots = self._vacancies.look(slot, elapsed)
            if boots:
                self._pending.prolong(channel, elapsed)
            elif waited >= self.plan.slot_timeout:
                refusal = NO_WORKER.because(seconds=self.plan.slot_timeout)
                with contextlib.suppress(OSError):  # no descriptors left: next time, maybe
                    while received := channel.receive():
                        self._refuse(*received, refusal)

    def _move(self, channel: Channel, _events: int) -> None:
        self._reroute(channel, self._metrics.moved)

    def _take_back(self, _events: int) -> None:
        if self.plan.board.is_active_master:  # still
            self._reroute(self.plan.channels.returns, self._metrics.handed_back)

    def _reroute(self, channel: Channel, counter: Counter) -> bool:
        """Dispatch anew what a removed slot has not taken, or a worker has handed back.

        Args:
            counter: where that counts

        Returns:
            whether there is more
        """
        for _ in range(ACCEPT_BATCH):
            try:
                received = channel.receive()
            except OSError as error:
                self._make_room(error)
                sleep(RETRY)  # the channel stays readable, which would make the loop spin
                return True
            if received is None:
                return False
            self._dispatch_again(*received, counter)
        return True

    def _clear_seats(self, route: SessionRoute) -> None:
        """Dispatch anew what was for a worker that is gone. So are its sessions, which the application will say.

        This looks at what is, not at what has changed: who has died, and which dispatcher had seen it, does not matter.
        """
        changes = self.plan.board.changes, self.plan.other.changes
        if changes == self._changes:
            return
        self._changes = changes
        for half in route.halves:
            for channel in half.deserted():
                for _ in range(0, channel.queued(), ACCEPT_BATCH):
                    self._reroute(channel, self._metrics.moved)
                for fd, info in self._pending.clear(channel):
                    self._dispatch_again(fd, info, self._metrics.moved)
