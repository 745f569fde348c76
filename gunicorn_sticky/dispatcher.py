"""The dispatcher: accepts connections, finds out which slot each belongs to, and passes their descriptors there.

One loop around epoll in a process of its own, forked and supervised by the arbiter (arbiter.py). It is made for one
configuration, one set of listeners and one number of slots: when any of them changes, the arbiter starts another one
and tells this one to drain.

    accept ──▶ by address ─────────────────────────────▶ key ─▶ slot ─▶ channel ─▶ worker
          └──▶ by header: peek until the head shows it ─┘  │                └─ full: wait in a lane, retry
                                                           └─ bad: answer, linger

Rules:
 1. A client's bytes are peeked at, never consumed, unless the dispatcher itself answers.
 2. Every wait has a deadline. All waits of one kind last equally long, so each kind is a dict in order of deadlines.
 3. Nothing here blocks, and nothing that a client sends raises out of the loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posix
import resource
import signal
import time

# The C sockets, posix.close and the original epoll: an application may be preloaded, and have replaced those of
# `socket`, `os` and `select` by gevent's, which need gevent's loop.
from _socket import (
    AF_UNIX,
    IPPROTO_TCP,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    SHUT_WR,
    SOCK_STREAM,
    TCP_DEFER_ACCEPT,
    socket,
)
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from gevent.monkey import get_original

from .affinity import Affinity, Missing, reader
from .board import RUNNING, Board
from .channel import Channel, Parcel
from .head import MAX_HEAD, Incomplete
from .key import peer_key
from .proxy import Malformed
from .refusal import Notices, answer
from .route import Channels, HashRoute, SessionRoute

#: Connections taken from one listener before others get their turn.
ACCEPT_BATCH = 64
#: Seconds that a client has to read our answer.
LINGER = 2.0
#: Seconds between two looks at the parent process and two heartbeats.
TICK = 1.0
#: Seconds between two looks at the board, while another master is in charge.
ALERT = 0.1
#: Seconds until something that was full is tried again: a channel, or the table of open files.
RETRY = 0.01
#: Each look at a head reads all of it. Once looks have read this many bytes of it, it is only looked at every `SLOW`
#: seconds, and all such heads together get `SLOW_SHARE` of our time.
LOOKS = MAX_HEAD
SLOW = 0.1
SLOW_SHARE = 0.1

_EPOLLIN, _EPOLLET, _EPOLLRDHUP = 0x001, 1 << 31, 0x2000
_GONE = 0x2000 | 0x010 | 0x008  # EPOLLRDHUP, EPOLLHUP, EPOLLERR
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Plan:
    """What a dispatcher is made for."""

    affinity: Affinity
    #: The hash's key, see slots.py.
    secret: bytes
    #: File descriptors of the listening sockets.
    listeners: Sequence[int]
    #: Whether the workers speak TLS, so that nobody here could answer.
    tls: bool
    #: All that leads to workers.
    channels: Channels
    #: Who has which seat.
    board: Board
    #: Channels of slots that are no more: what is in them is routed anew.
    removed: Sequence[Channel]
    #: Seconds for a connection to show its header.
    header_timeout: float
    #: Seconds that connections wait for a worker that does not come, or whose channel is full.
    slot_timeout: float
    #: Number of connections that a full channel may hold up.
    lane_size: int


@dataclass
class _Listener:
    socket: socket
    name: Any


@dataclass
class _Head:
    """A connection whose head has not shown the header yet."""

    connection: socket
    listener: _Listener
    address: Any
    deadline: float
    seen: int = 0
    #: Bytes that all looks at it have read.
    looked: int = 0


@dataclass
class _Waiting:
    """A connection whose channel is full."""

    fd: int
    parcel: Parcel
    deadline: float


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
        self.notices = Notices(log)
        self.heartbeat = heartbeat
        self.ppid = os.getppid()
        self._told_to_drain = False
        self._draining = False

        self._reader = reader(plan.affinity, plan.secret)
        self._route: HashRoute | SessionRoute
        if plan.affinity.by_session:
            self._route = SessionRoute(plan.channels, plan.secret, plan.affinity, plan.board)
        else:
            self._route = HashRoute(plan.channels, plan.secret)
        #: The seats of this master and of the other one, and who had them when last seen.
        self._seats = [(plan.board, plan.channels.seats), (plan.board.other(), plan.channels.others)]
        self._owners: list[list[int]] = [[], []]
        #: Since when slots have had no worker.
        self._vacant: dict[int, float] = {}
        self._buffer = bytearray(MAX_HEAD)

        self._epoll = get_original("select", "epoll")()
        #: Who handles the events of a file descriptor.
        self._watched: dict[int, Callable[[int], object]] = {}
        self._listeners: list[_Listener] = []
        self._accepting = False
        self._heads: dict[int, _Head] = {}
        #: Of those, the ones in many pieces that something has happened to, and when to look at them all.
        self._slow: dict[int, int] = {}
        self._slow_at = 0.0
        self._lingering: dict[int, tuple[socket, float]] = {}
        #: By channel, in order of arrival, and only channels that are full.
        self._lanes: dict[Channel, deque[_Waiting]] = {}
        self._resume_at: float | None = None

    # --- the loop ---

    def run(self) -> None:
        """Dispatch until told to drain and done with it, or until the arbiter is gone."""
        for fd in self.plan.listeners:
            listener = socket(fileno=fd)
            if listener.family != AF_UNIX:
                # With the head on its way, the first look mostly sees it (tcp(7)). What is silent is accepted later.
                listener.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, int(self.plan.affinity.by != "ip"))
            self._listeners.append(_Listener(listener, listener.getsockname()))
        for channel in self.plan.removed:
            self._watch(channel.fileno(), _EPOLLIN, lambda _events, channel=channel: self._reroute(channel))  # type: ignore[misc]

        ticked = 0.0
        while not (self._draining and self._idle()):
            if self._told_to_drain and not self._draining:
                self._stop()
                continue
            if self._may_accept() != self._accepting:
                if self._is_orphan():
                    return  # it must not mistake the charge of another new master for its own
                self._turn(not self._accepting)
            for fd, events in self._epoll.poll(self._patience()):
                if handler := self._watched.get(fd):
                    handler(events)
            now = time.monotonic()
            if self.plan.affinity.by_session:
                self._clear_seats()
            if now - ticked >= TICK:
                ticked = now
                self.heartbeat()
                self._empty_vacant(now)
                if self._is_orphan():
                    self.log.info("Parent changed, shutting down the dispatcher")
                    return
            self._expire(now)

    def _is_orphan(self) -> bool:
        return os.getppid() != self.ppid

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
            self._unwatch(channel.fileno())
        if self.plan.board.phase == RUNNING:
            return
        # Nobody comes after this one: what workers have handed back is routed here, and who is slow has to hurry.
        returns = self.plan.channels.returns
        for _ in range(0, returns.queued() + 1, ACCEPT_BATCH):
            self._reroute(returns)
        soon = time.monotonic() + LINGER
        for head in self._heads.values():
            head.deadline = min(head.deadline, soon)

    def wake_by(self, fd: int) -> None:
        """Let the loop look around when the non-blocking `fd` becomes readable (see `signal.set_wakeup_fd`)."""
        self._watch(fd, _EPOLLIN, lambda _events: self._swallow(fd))

    def _swallow(self, fd: int) -> None:
        os.read(fd, 512)

    def _idle(self) -> bool:
        return not (self._heads or self._lingering or self._lanes)

    def _patience(self) -> float:
        """Return the seconds until something has to be done in any case."""
        wait = TICK
        if self._lanes:
            wait = RETRY
        elif not self.plan.board.in_charge:
            wait = ALERT
        now = time.monotonic()
        if self._resume_at is not None:
            wait = min(wait, self._resume_at - now)
        if self._slow:
            wait = min(wait, self._slow_at - now)
        for head in self._heads.values():
            wait = min(wait, head.deadline - now)
            break
        for _, deadline in self._lingering.values():
            wait = min(wait, deadline - now)
            break
        return max(wait, 0.0)

    def _expire(self, now: float) -> None:
        """Do what is due."""
        if self._slow and self._slow_at <= now:
            self._look_slowly(now)
        while self._heads:
            head = next(iter(self._heads.values()))
            if head.deadline > now:
                break
            self._refuse_head(
                head,
                HTTPStatus.REQUEST_TIMEOUT,
                f"the {self._reader.wanted} did not arrive within {self.plan.header_timeout:g} s",
                "sticky_header_timeout",
            )
        while self._lingering:
            fd, (_, deadline) = next(iter(self._lingering.items()))
            if deadline > now:
                break
            self._linger_no_more(fd)
        for channel in list(self._lanes):
            self._advance(channel, now)
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None

    def _watch(self, fd: int, events: int, handler: Callable[[int], object]) -> None:
        self._watched[fd] = handler
        self._epoll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        del self._watched[fd]
        self._epoll.unregister(fd)

    # --- accepting ---

    def _may_accept(self) -> bool:
        """Tell whether connections may be accepted now. What is not stays in the kernel's backlog."""
        if self._draining or self._resume_at is not None or not self.plan.board.in_charge:
            return False
        return not (self._lanes and all(channel in self._lanes for channel in self.plan.channels.slots))

    def _turn(self, on: bool) -> None:
        """Begin to accept, or stop it. Whoever accepts also routes what workers hand back."""
        self._accepting = on
        handlers: dict[int, Callable[[int], object]] = {self.plan.channels.returns.fileno(): self._take_back}
        for listener in self._listeners:
            handlers[listener.socket.fileno()] = lambda _events, listener=listener: self._accept(listener)  # type: ignore[misc]
        for fd, handler in handlers.items():
            if on:
                self._watch(fd, _EPOLLIN, handler)
            else:
                self._unwatch(fd)

    def _accept(self, listener: _Listener) -> None:
        if not self.plan.board.in_charge:
            return  # since a moment ago
        family = listener.socket.family
        prefix = self.plan.affinity.ipv6_prefix
        for _ in range(ACCEPT_BATCH):
            try:
                fd, address = listener.socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._make_room(error)
                    return
                continue  # the client has gone before it was accepted, see accept(2)
            if not self._reader.needs_bytes(address):
                self._dispatch(fd, Parcel(listener.name, address, peer_key(address, prefix)))
                continue
            connection = socket(family, SOCK_STREAM, 0, fd)
            try:
                size = connection.recv_into(self._buffer, 0, MSG_PEEK | MSG_DONTWAIT)
                key = self._reader.first(self._buffer, size, address)
            except (OSError, Incomplete, Missing, Malformed):
                self._look(_Head(connection, listener, address, 0.0))
            else:
                self._dispatch(connection.detach(), Parcel(listener.name, address, key))

    def _make_room(self, error: OSError) -> None:
        """Newcomers come before those who keep us waiting; if there is nobody to drop, stop for a moment."""
        for fd in self._lingering:  # it has its answer
            self._linger_no_more(fd)
            return
        if self._heads:
            self._refuse_head(
                next(iter(self._heads.values())),
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"too many connections ({error.strerror})",
                "ulimit -n",
            )
            return
        self.notices.warn("ulimit -n", "Dispatcher cannot accept: %s", error.strerror)
        self._resume_at = time.monotonic() + TICK

    # --- the head of the first request ---

    def _look(self, head: _Head, events: int = 0) -> None:
        """Peek at a connection, and dispatch, refuse or keep it."""
        try:
            size = head.connection.recv_into(self._buffer, 0, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            size = -1
        except OSError:
            self._forget(head)
            head.connection.close()
            return
        if size == 0 or (size <= head.seen and events & _GONE):
            self._forget(head)
            head.connection.close()
            return
        key = None
        if size > head.seen:
            head.looked += size
            try:
                key = self._reader.first(self._buffer, size, head.address)
            except Incomplete:
                if size == MAX_HEAD:
                    self._refuse_head(
                        head,
                        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                        f"the first {MAX_HEAD} bytes do not show the {self._reader.wanted}",
                        "sticky_header",
                    )
                    return
            except Missing:
                self._refuse_head(
                    head,
                    HTTPStatus.BAD_REQUEST,
                    f"the request lacks the header {self.plan.affinity.header}",
                    "sticky_ignore_missing_header",
                )
                return
            except Malformed as error:
                text = "Closed a connection from %s: malformed PROXY header, %s"
                self.notices.warn("proxy_protocol", text, _name(head.address), error)
                self._forget(head)
                head.connection.close()
                return
        if key is None:
            head.seen = max(size, 0)
            self._keep(head)
            return
        self._forget(head)
        self._dispatch(head.connection.detach(), Parcel(head.listener.name, head.address, key))

    def _keep(self, head: _Head) -> None:
        fd = head.connection.fileno()
        if fd not in self._heads:
            head.deadline = time.monotonic() + self.plan.header_timeout
            self._heads[fd] = head
            # Edge-triggered: what was only peeked at stays readable, and would wake a level-triggered watch for ever.
            self._watch(fd, _EPOLLIN | _EPOLLRDHUP | _EPOLLET, lambda events: self._arrived(head, events))

    def _arrived(self, head: _Head, events: int) -> None:
        if head.looked <= LOOKS:
            self._look(head, events)
            return
        if not self._slow:
            self._slow_at = time.monotonic() + SLOW
        fd = head.connection.fileno()
        self._slow[fd] = self._slow.get(fd, 0) | events

    def _look_slowly(self, started: float) -> None:
        """Look at heads in many pieces, the one that has waited longest first, for a moment."""
        now = started
        while self._slow and now - started < RETRY / 2:
            fd = next(iter(self._slow))
            self._look(self._heads[fd], self._slow.pop(fd))
            now = time.monotonic()
        self._slow_at = now + ((now - started) / SLOW_SHARE if self._slow else SLOW)

    def _forget(self, head: _Head) -> None:
        fd = head.connection.fileno()
        if self._heads.pop(fd, None):
            self._slow.pop(fd, None)
            self._unwatch(fd)

    def _refuse_head(self, head: _Head, status: HTTPStatus, message: str, setting: str) -> None:
        self._forget(head)
        self._refuse(head.connection, head.address, status, message, setting)

    # --- to the worker ---

    def _dispatch(self, fd: int, parcel: Parcel) -> None:
        """Pass a connection on, and close it here."""
        channel = self._route.channel(parcel.key)
        lane = self._lanes.get(channel)
        if lane is None and self._send(channel, fd, parcel):
            return
        waiting = _Waiting(fd, parcel, time.monotonic() + self.plan.slot_timeout)
        if lane is None:
            self._lanes[channel] = deque([waiting])
        elif len(lane) < self.plan.lane_size:
            lane.append(waiting)
        else:
            self._refuse_waiting(fd, parcel)

    def _send(self, channel: Channel, fd: int, parcel: Parcel) -> bool:
        """Send a descriptor and close it here, unless the channel is full."""
        error = channel.send(fd, parcel)
        if error is None:
            posix.close(fd)
            return True
        if error.errno != errno.EAGAIN:
            self.notices.warn("ulimit -n", "Dispatcher cannot pass connections on: %s", error.strerror)
        return False

    def _advance(self, channel: Channel, now: float) -> None:
        """Send what waits for a full channel, and refuse who has waited too long."""
        lane = self._lanes[channel]
        while lane and self._send(channel, lane[0].fd, lane[0].parcel):
            lane.popleft()
        while lane and lane[0].deadline <= now:
            waiting = lane.popleft()
            self._refuse_waiting(waiting.fd, waiting.parcel)
        if not lane:
            del self._lanes[channel]

    def _refuse_waiting(self, fd: int, parcel: Parcel) -> None:
        self._refuse(
            socket(fileno=fd),
            parcel.address,
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the worker of this client takes no more connections",
            "workers or worker_connections",
        )

    def _empty_vacant(self, now: float) -> None:
        """Refuse what waits for a slot that has had no worker for too long."""
        for slot, channel in enumerate(self.plan.channels.slots):
            if self.plan.board.is_open(slot):
                self._vacant.pop(slot, None)
            elif now - self._vacant.setdefault(slot, now) >= self.plan.slot_timeout:
                with contextlib.suppress(OSError):  # no descriptors left: next time, maybe
                    while received := channel.receive():
                        self._refuse_waiting(*received)

    def _take_back(self, _events: int) -> None:
        if self.plan.board.in_charge:  # still
            self._reroute(self.plan.channels.returns)

    def _reroute(self, channel: Channel) -> bool:
        """Dispatch anew what a removed slot has not taken, or a worker has handed back.

        Returns:
            whether there is more
        """
        for _ in range(ACCEPT_BATCH):
            try:
                received = channel.receive()
            except OSError as error:
                self._make_room(error)
                time.sleep(RETRY)  # the channel stays readable, which would make the loop spin
                return True
            if received is None:
                return False
            self._dispatch(*received)
        return True

    def _clear_seats(self) -> None:
        """Dispatch anew what was for a worker that is gone. So are its sessions, which the application will say."""
        for half, (board, channels) in enumerate(self._seats):
            owners = board.owners()
            if owners == self._owners[half]:
                continue
            for channel, before, now in zip(channels, self._owners[half], owners, strict=False):
                if before and before != now:
                    if self._reroute(channel):
                        return  # and again, until it is empty
                    for waiting in self._lanes.pop(channel, ()):
                        self._dispatch(waiting.fd, waiting.parcel)
            self._owners[half] = owners

    # --- answering ---

    def _refuse(self, connection: socket, address: Any, status: HTTPStatus, message: str, setting: str) -> None:
        """Answer a connection ourselves and close it, with one line in the log that names the setting to change."""
        self.notices.warn(setting, "Refused a connection from %s: %d, %s", _name(address), status, message)
        try:
            if self.plan.tls:
                connection.close()
                return
            connection.send(answer(status, message), MSG_DONTWAIT | MSG_NOSIGNAL)
            connection.shutdown(SHUT_WR)
        except OSError:
            connection.close()
            return
        # Closing now would send a reset for what is still unread, and that destroys the answer on its way.
        fd = connection.fileno()
        self._lingering[fd] = connection, time.monotonic() + LINGER
        self._watch(fd, _EPOLLIN | _EPOLLRDHUP, lambda _events: self._discard(fd, connection))

    def _discard(self, fd: int, connection: socket) -> None:
        try:
            if connection.recv_into(self._buffer, 0, MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._linger_no_more(fd)

    def _linger_no_more(self, fd: int) -> None:
        self._unwatch(fd)
        self._lingering.pop(fd)[0].close()


def _name(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else "a Unix socket"


def run(plan: Plan, cfg: Any, log: Any, heartbeat: Callable[[], None]) -> None:
    """Be the dispatcher's process: give up privileges, answer signals, and dispatch.

    SIGTERM drains, SIGINT and SIGQUIT end at once, SIGUSR1 reopens the logs; the other signals of Gunicorn's master
    are ignored.
    """
    from gunicorn import util

    for name in ("HUP", "USR2", "TTIN", "TTOU", "WINCH", "ABRT"):
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    # Connections that wait are open files, and descriptors in flight count against the same limit (unix(7)).
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)

    dispatcher = Dispatcher(plan, log, heartbeat)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    dispatcher.wake_by(reader)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: dispatcher.drain())
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: log.reopen_files())
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda _signal, _frame: os._exit(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    dispatcher.run()
