"""What kinds have in common that run an asyncio loop, and serve ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..broadcast import asyncio_driver, thread_driver
from ..shared import current
from ..shared.refusals import HOOK_FAILED, LINGER, NOT_RELEASED, Refusal, is_silent
from ..shared.unpatched import BareSocket, epoll, socketpair
from . import asgi, response
from .asyncio_inbox import Inbox
from .asyncio_protocol import StickyProtocol
from .connection import Listener
from .core import StickyWorker
from .drain import POLL
from .inbox import family
from .served import Served

if TYPE_CHECKING:
    from ..shared.channel import ConnectionInfo
    from .seat import Seat


class Released:
    """`threading.Event` for a loop: `wait` returns a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Let whoever waits go on; any thread may call this."""
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, and return whether it is."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout)
        return self._event.is_set()


class _Client(socket.socket):
    """A client's socket. A loop asks for its family and type, and to look up a member of an enumeration takes long."""

    __slots__ = ()
    family = BareSocket.family  # type: ignore[assignment]
    type = BareSocket.type  # type: ignore[assignment]


class AsyncioStickyWorker(StickyWorker):
    """The base of such kinds: they call `_open` when they are ready, and `drain` when they have been told to end.

    An adapter overrides `_new_protocol`.
    """

    #: The context for TLS.
    _ssl: Any = None
    _application: Any
    _loop: Any = None
    SIGNALS: Any
    worker_connections: int

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        #: The slot's first.
        self._inboxes: list[Inbox] = []
        self._protocols: dict[Served, Any] = {}
        #: Connections that begin.
        self._tasks: dict[asyncio.Task[Any], tuple[socket.socket, Served]] = {}
        super().__init__(*args, seat=seat, **kwargs)
        if seat:
            self.sockets: list[Any] = []

    # --- its life ---

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        # For a Socket.IO server that is not asyncio's, in threads; AsyncClusterManager has the loop.
        current.cluster = seat.cluster, thread_driver.messages, self.log

    def _open(self) -> None:
        """Take connections from now on."""
        assert self._seat
        seat, self._loop = self._seat, asyncio.get_running_loop()
        self._headers = response.header_fields(self.cfg, seat)
        self._inboxes = [
            Inbox(channel, self.intake(is_own=is_own), self._is_full, self._connect)
            for channel, is_own in ((seat.channel, False), (seat.own_channel, True))
            if channel
        ]
        if seat.cluster_socket:
            asyncio_driver.serve(seat.cluster_socket, seat.cluster)
        self.activate()
        for inbox in self._inboxes:
            inbox.start()

    def _is_full(self) -> bool:
        return len(self._protocols) >= self.worker_connections

    def _persist(self, seat: Seat) -> None:
        super()._persist(seat)
        if seat.is_active() and self._inboxes:
            self._inboxes[0].start()

    async def drain(self, is_urgent: Callable[[], bool]) -> None:
        """Serve what is left: connections, what has been sent here at the end of the server, and own sessions.

        It ends after `graceful_timeout` seconds, whatever is left.

        Args:
            is_urgent: tells whether to end at once
        """
        began = beat = time.monotonic()
        for inbox in self._inboxes:
            inbox.drain()
        while (now := time.monotonic()) < began + self.cfg.graceful_timeout:
            if now >= beat:
                self.notify()
                beat = now + 1
            looks = [inbox.goes_on() for inbox in self._inboxes]
            if is_urgent() or self.is_orphan() or not (self._protocols or any(looks)):
                break
            await asyncio.sleep(POLL)
        for inbox in self._inboxes:
            inbox.close()

    def _abandon(self) -> None:
        # The loop's handlers are told of signals by a socket, and the loop of what is ready by an epoll instance: the
        # child has the same ones as this worker.
        with contextlib.suppress(ValueError):  # not in the main thread, which nobody tells of signals
            signal.set_wakeup_fd(-1)
            for number in self.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        selector = getattr(self._loop, "_selector", None)
        if selector is not None:  # uvloop has none
            nothing = epoll()
            os.dup2(nothing.fileno(), selector.fileno(), inheritable=False)
            nothing.close()
        nobody, end = socketpair()
        end.close()
        for protocol in self._protocols.values():
            client = protocol.transport and protocol.transport.get_extra_info("socket")
            if client and client.fileno() >= 0:  # else closed
                os.dup2(nobody.fileno(), client.fileno(), inheritable=False)
        nobody.close()

    # --- its connections ---

    def _connect(self, fd: int, info: ConnectionInfo) -> None:
        """Serve a connection."""
        served = Served(info)
        self._protocols[served] = protocol = self._new_protocol(served)
        self.load.connected(served)
        client = _Client(family(info), socket.SOCK_STREAM, 0, fd)
        if self.admits:
            begins = self._admit_and_serve(client, served, protocol)
        else:
            begins = self._loop.connect_accepted_socket(lambda: protocol, client, ssl=self._ssl)
        task = self._loop.create_task(begins)
        self._tasks[task] = client, served
        task.add_done_callback(self._has_begun)

    async def _admit_and_serve(self, client: socket.socket, served: Served, protocol: StickyProtocol) -> None:
        refusal = await self._admit(served)
        if refusal and not (served.info.unread or self.cfg.is_ssl) and not await self._asks(client.fileno()):
            raise ConnectionAbortedError("refused, and it has asked nothing")
        await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=self._ssl)
        if refusal:
            protocol.refuse(refusal)

    async def _asks(self, fd: int) -> bool:
        """Wait a moment for a request: an answer without one would be taken for that of a later one."""
        speaks = asyncio.Event()
        self._loop.add_reader(fd, speaks.set)
        try:
            await asyncio.wait_for(speaks.wait(), LINGER)
        except asyncio.TimeoutError:
            return False
        finally:
            self._loop.remove_reader(fd)
        return not is_silent(fd)

    def _has_begun(self, task: asyncio.Task[Any]) -> None:
        """Let go of a connection if it could not be served."""
        client, served = self._tasks.pop(task)
        try:
            task.result()
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError) as error:  # of TLS, or the client has gone
            self.log.debug("A connection has failed: %s", error)
            client.close()
            self.disconnected(served)

    def _new_protocol(self, served: Served) -> StickyProtocol:
        """Return what serves a connection."""
        raise NotImplementedError

    def application(self, served: Served) -> Any:
        """Return the ASGI application, as a connection's requests are to see it."""
        return asgi.with_affinity(self._application, served, self.slot, self._headers, self.load.requested)

    def count_request(self) -> bool:
        """Count a request for `max_requests`, as Gunicorn's own workers do, and tell whether this worker ends."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        return not self._flags[0]  # self.alive, without a call

    def disconnected(self, served: Served) -> None:
        """A connection has ended."""
        if self._protocols.pop(served, None) is None:
            return
        self.load.disconnected(served)
        for inbox in self._inboxes:
            inbox.start()

    def give_back(self, fd: int, info: ConnectionInfo) -> bool:
        """Give a connection back for routing, and return whether there was room for it."""
        assert self._seat
        return self._seat.returns.send(fd, info) is None

    async def _admit(self, served: Served) -> Refusal | None:
        """Call the hook and wait for the release, or return why not to serve a connection."""
        released = Released()
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        hook = self.cfg.sticky_connection
        connection = self.connection(served, Listener(served.info.listener), released)

        async def admit() -> None:
            if inspect.iscoroutinefunction(hook):
                await hook(self, connection)
            else:
                await asyncio.to_thread(hook, self, connection)  # where it may wait, and nobody else does
            if self.cfg.sticky_sync:
                await released.wait()

        try:
            await asyncio.wait_for(admit(), seconds)
        except asyncio.TimeoutError:
            return NOT_RELEASED.because(event=self.cfg.sticky_sync_event, seconds=seconds)
        except Exception:
            self.log.exception("Exception in the sticky_connection hook")
            return HOOK_FAILED
        return None
