"""The worker: Gunicorn's gevent worker, which takes its connections from a channel instead of a listening socket."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent.server import StreamServer
from gunicorn.errors import HaltServer
from gunicorn.http.parser import RequestParser
from gunicorn.workers.ggevent import GeventWorker

from .. import configuration, settings
from ..routing.affinity import Missing, reader
from ..routing.hashing import Slots
from ..routing.head import MAX_HEAD, BareLineFeed, Head, Incomplete
from ..routing.session_ids import Ids
from ..sessions import minting as session
from ..sessions.engineio import own_engineio_ids, use_simple_websocket
from ..sessions.minting import Minter
from ..shared import current, logs
from ..shared.board import REQUEST, RUNNING, SESSION
from ..shared.figures import CONNECTIONS, DISPATCHED, HANDED_OVER, MINTED, PID, REFUSED, REQUESTS, TAKEN_OVER
from ..shared.refusals import Notices, answer, is_silent, name
from ..shared.unpatched import close, socketpair
from .config import CachedConfig
from .connection import Connection, Listener
from .gevent_inbox import Inbox, InboxServer, OwnInboxServer
from .parser import refuser, request_class

if TYPE_CHECKING:
    from ..shared.channel import Parcel
    from .seat import Seat

#: Seconds that a client has to read our answer.
LINGER = 2.0
#: Seconds to wait, and between two tries, if the channel to the dispatcher is full.
HAND_OVER = 30.0
RETRY = 0.005
#: After so many looks at a head that arrives in pieces, seconds between two of them.
LOOKS = 16
SLOW = 0.1
#: By how much a worker may be busier than another one before it passes requests without a session on.
SLACK = 2 * REQUEST


class _Served:
    """A connection that this worker serves now."""

    __slots__ = ("busy", "count", "key", "parcel", "proxy")

    def __init__(self, parcel: Parcel) -> None:
        #: Whether a request is under way.
        self.busy = True
        self.parcel = parcel
        #: The key of the request that is served now.
        self.key = parcel.key
        #: Of how many slots this worker's is known to be the key's.
        self.count = 0
        #: What Gunicorn has parsed from the PROXY header.
        self.proxy = parcel.proxy


def _with_headers(more: Sequence[tuple[str, str]], start_response: Any) -> Any:
    """Return a start_response that also sends our own headers."""

    def start(status: str, headers: list[tuple[str, str]], *args: Any) -> Any:
        return start_response(status, [*headers, *more], *args)

    return start


class GeventStickyWorker(GeventWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's gevent worker with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    cfg: Any
    nr: int
    max_requests: int

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        if seat is None and sys.platform == "linux":
            raise HaltServer("a reload cannot make a running server sticky: restart it", 1)
        #: Two flags that the arbiter's copy of this object shares with the worker's: alive, and leaving.
        self._flags: mmap.mmap | bytearray = mmap.mmap(-1, 2)
        self._seat: Seat | None = None
        self._server: InboxServer | None = None
        #: All that accepts something in this process.
        self._accepting: list[StreamServer] = []
        #: Whether this process has been forked by a worker, and is none.
        self._is_child = False
        self.wsgi: Any = None
        #: By the client's socket.
        self._served: dict[Any, _Served] = {}
        super().__init__(*args, **kwargs)
        self._seat = seat
        self.slot = seat.slot if seat else 0
        self.seat = seat.number if seat else 0
        #: Connections with a request under way.
        self._active = 0
        #: How many sessions had been minted when last looked at.
        self._minted = 0
        #: When a connection has last ended.
        self._last_served = 0.0
        if seat:
            self._figures = seat.figures
            self._affinity = configuration.affinity(self.cfg)
            #: Whether anybody wants to see a connection before its first request.
            self._admits = self.cfg.sticky_sync or "sticky_connection" in settings.given(self.cfg)
            self.sockets = [Inbox(seat.channel)]
            if seat.own_channel is not None:
                self.sockets.append(Inbox(seat.own_channel))
            self.server_class = self._new_server

    @classmethod
    def setup(cls) -> None:
        """Refuse to run under an arbiter that knows nothing of us; Gunicorn calls this when it resolves ``-k``.

        Raises:
            RuntimeError: the start-up hook did not run, does not know this Gunicorn, or the application has an arbiter
                of its own
        """
        if current.hook_failure is not None:
            raise RuntimeError(f"gunicorn_sticky does not know this version of Gunicorn: {current.hook_failure}")
        if not current.arbiter_is_ours and not current.loaded_late:
            raise RuntimeError(
                "the application runs an arbiter of its own making, which cannot route connections: let "
                "gunicorn.app.base.BaseApplication.run() make the arbiter, and use Gunicorn's server hooks instead of "
                "a subclass"
            )
        if not current.arbiter_is_ours:
            raise RuntimeError(
                "gunicorn_sticky was loaded after Gunicorn, because its start-up hook did not run "
                "(GUNICORN_STICKY_HOOK=0, or .pth files are not processed): start with `gunicorn-sticky` or "
                "`python -m gunicorn_sticky`, or import gunicorn_sticky before gunicorn"
            )

    # The arbiter has to know when a worker drains, whoever started that: a signal or the reloader.
    @property
    def alive(self) -> bool:
        """Whether this worker goes on. Shared with the arbiter."""
        return self._flags[0] != 0

    @alive.setter
    def alive(self, value: bool) -> None:
        if not value and self._seat and self.nr >= self.max_requests:
            # max_requests: the slot would stand still until a successor has booted, so go on until then.
            self._flags[1] = True
            self.max_requests = sys.maxsize
            return
        self._flags[0] = value
        if not value and self._server is not None:
            assert self._seat
            self._seat.board.close(self.seat)

    @property
    def leaving(self) -> bool:
        """Whether this worker waits for a successor, to be told to stop. Shared with the arbiter."""
        return self._flags[1] != 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain on SIGTERM, also in the very moment when max_requests has been reached."""
        self.max_requests = sys.maxsize
        super().handle_exit(sig, frame)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Reopen the logs, as `gunicorn.workers.ggevent.GeventWorker.handle_usr1` does, if that is possible."""
        gevent.spawn(logs.reopen, self.log)

    def init_process(self) -> None:
        """Prepare the process (`gunicorn.workers.base.Worker.init_process`)."""
        self.cfg = CachedConfig(self.cfg)
        if self._seat:
            self._seat.leave()
            os.environ["GUNICORN_STICKY_SLOT"] = str(self.slot)
            self._notices = Notices(self.log)
            self._explains = logging.getLogger("gunicorn.error").isEnabledFor(logging.DEBUG)
            self._reader = reader(self._affinity, self._seat.secret, refuser(self.cfg))
            self._other_board = self._seat.board.other()
            self._slots = Slots(self._seat.secret, 1), 1
            self._figures[PID] = os.getpid()
            self._minted = self._figures[MINTED]
            self._own_key = str(self._seat.owner)
            if self._affinity.by_session:
                current.minter = Minter(Ids(self._seat.secret), self._seat.owner, self._figures)
                own_engineio_ids()
            if not self.cfg.is_ssl:  # by address then, and what TLS knows of the connection could not be handed over
                RequestParser.mesg_class = request_class(self._served.get, self._before_request, self._after_request)
            current.cluster = self._seat.cluster, self.log
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._become_child
            )
        use_simple_websocket()
        super().init_process()

    # A child that the application forks (os.fork, multiprocessing) has a copy of this object, the handlers of signals,
    # gevent's loop, and all greenlets, which go on as soon as the child waits for something. What it does, and how it
    # ends, is its own affair. So, before it runs anything else, it loses all by which it could speak for the worker.

    def _before_fork(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _become_child(self) -> None:
        try:
            self._resign()
        finally:
            self._after_fork()

    def _resign(self) -> None:
        """Keep copies of what is shared with other processes, and neither inboxes nor clients."""
        if self._is_child:
            return
        assert self._seat
        self._is_child = True
        self._flags = bytearray(self._flags)
        self._figures.detach()
        self._seat.board.detach()
        self._seat.board.phase = RUNNING  # also at the end of the server, here is nothing left to take
        for server in self._accepting:
            server.stop_accepting()
        self._seat.channel.close_receiver()
        if self._seat.own_channel:
            self._seat.own_channel.close_receiver()
        self._seat.returns.close_sender()
        nobody, end = socketpair()
        end.close()
        for client in self._served:
            for watcher in (client._read_event, client._write_event):
                if watcher:  # else closed
                    watcher.stop()
                    os.dup2(nobody.fileno(), client.fileno(), inheritable=False)
        nobody.close()
        heartbeat = os.memfd_create("heartbeat")
        os.dup2(heartbeat, self.tmp.fileno(), inheritable=False)
        close(heartbeat)

    def run(self) -> None:
        """Serve, and hear the other workers (`gunicorn.workers.ggevent.GeventWorker.run`)."""
        if self._seat and self._seat.cluster_socket:
            self._accepting.append(self._seat.cluster_socket.serve(self._seat.cluster))
        super().run()

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
        if not self._seat:
            return
        application: Any = self.wsgi
        by_cookie = self._affinity.by == "cookie"
        slot_header = [("X-Sticky-Slot", str(self.slot))] if self.cfg.sticky_slot_header else []

        def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            served = self._served.get(environ["gunicorn.socket"])
            if served is not None:
                environ["gunicorn_sticky.slot"] = self.slot
                environ["gunicorn_sticky.key"] = served.key
                headers = slot_header
                if by_cookie and not self._is_mine(served.key):
                    headers = [*slot_header, self._cookie(environ)]
                if headers:
                    start_response = _with_headers(headers, start_response)
            response: Iterable[bytes] = application(environ, start_response)
            return response

        self.wsgi = wsgi

    def _count(self, change: int) -> None:
        """Count the connections with a request under way, and new sessions, for whoever balances."""
        if not self._affinity.by_session:
            return
        assert self._seat
        self._active += change
        self._seat.board.set_active(self.seat, self._active)
        minted = self._figures[MINTED]
        if minted != self._minted:
            self._minted = minted
            self._seat.board.give(self.seat, SESSION)

    def notify(self) -> None:
        """Show that this worker is alive, once a second (`gunicorn.workers.ggevent.GeventWorker.notify`)."""
        if self._seat:
            self._figures.show()
            if self._server is not None and self.alive and not self._is_child:
                self._server.persist()
        super().notify()

    def _cookie(self, environ: dict[str, Any]) -> tuple[str, str]:
        """Return the header that sets our cookie (RFC 6265; SameSite: draft-ietf-httpbis-rfc6265bis)."""
        same_site = self.cfg.sticky_cookie_samesite
        # Browsers ignore SameSite=None without it.
        secure = "; Secure" if same_site == "none" or environ["wsgi.url_scheme"] == "https" else ""
        attributes = f"Path=/; HttpOnly; SameSite={same_site.capitalize()}{secure}"
        return "Set-Cookie", f"{configuration.cookie_name(self.cfg)}={session.session_id()}; {attributes}"

    def _new_server(self, inbox: Inbox, *, spawn: Any, **kwargs: Any) -> InboxServer:
        """Make what `GeventWorker.run` calls a server class: of its arguments for pywsgi, only TLS concerns us."""
        assert self._seat
        ssl_args = {name: kwargs[name] for name in ("ssl_context",) if name in kwargs}
        arguments = {"handle": self._handle, "spawn": spawn, **ssl_args}
        last_call = self.cfg.graceful_timeout
        if self._server is not None:  # the slot's comes first
            own = OwnInboxServer(inbox, self._seat, last_call, last_served=lambda: self._last_served, **arguments)
            self._accepting.append(own)
            return own
        self._server = InboxServer(inbox, self._seat, last_call, **arguments)
        self._accepting.append(self._server)
        if self.alive or self._seat.board.phase != RUNNING:
            self._seat.board.claim(self.slot, self.seat)
        return self._server

    def _handle(self, client: Any, parcel: Any) -> None:
        """Serve one connection, in its greenlet."""
        served = self._served[client] = _Served(parcel)
        figures = self._figures
        figures[CONNECTIONS] += 1
        figures[TAKEN_OVER if parcel.unread else DISPATCHED] += 1
        self._count(1)
        listener = Listener(parcel.listener)
        try:
            if not self._admits or self._admit(served, client, listener):
                self.handle(listener, client, parcel.address)
        finally:
            del self._served[client]
            self._last_served = time.monotonic()
            figures[CONNECTIONS] -= 1
            if served.busy:
                self._count(-1)

    def _before_request(self, served: _Served, unreader: Any, number: int) -> int:
        """Prepare Gunicorn's parser for a request, or hand the connection over; see parser.py.

        Raises:
            StopIteration: the request is not for this worker, or refused
        """
        if self._is_child:
            raise StopIteration
        if number > 1:
            served.busy = False
            self._count(-1)
            self._check_key(unreader, served)
            served.busy = True
            self._count(1)
        elif served.parcel.unread:
            unreader.unread(served.parcel.unread)
        # Only the first request may follow a PROXY header, and a connection that was handed over has none left.
        return number + 1 if served.parcel.unread else number

    def _after_request(self, served: _Served, request: Any) -> None:
        """Count a request, and carry what the PROXY header of the connection said, to here and to the next worker."""
        self._figures[REQUESTS] += 1
        if self._affinity.by_session and not self._is_mine(served.key):
            assert self._seat
            self._seat.board.give(self.seat, REQUEST)
        if request.proxy_protocol_info:
            served.proxy = request.proxy_protocol_info
        elif served.proxy:
            request.proxy_protocol_info = served.proxy

    def _check_key(self, unreader: Any, served: _Served) -> None:
        """Read the head of the next request, and go on only if it bears the key that the connection is bound to.

        Raises:
            StopIteration: it does not, or the request is refused
        """
        proxy = served.proxy or {}
        source = (proxy["client_addr"], proxy["client_port"]) if proxy.get("client_addr") else None
        data, head = unreader.read(), Head()
        try:
            key = data and self._reader.later(data, len(data), served.parcel.address, source, head)
        except Incomplete:
            data, key = self._wait_for_head(unreader, served, bytearray(data), source, head)
        except (BareLineFeed, Missing) as error:
            self._refuse_head(unreader, served, error)
        if data and (why := self._why_elsewhere(key, served)):
            if self._explains:
                text = "Handing over a connection from %s, as %s; key of its next request by %s: %s"
                address = served.parcel.address
                self.log.debug(text, name(address), why, self._reader.origin(address), key)
            self._hand_over(unreader.sock, served, key, data)
            raise StopIteration
        if data:
            served.key = key
        unreader.unread(data)

    def _wait_for_head(
        self, unreader: Any, served: _Served, data: bytearray, source: tuple[Any, ...] | None, head: Head
    ) -> tuple[bytes, str]:
        """Return the bytes of a head that arrives in pieces, and its key.

        All others have their turn before each look, and after some looks they come ten times a second only.

        Raises:
            StopIteration: the client has gone, or the request is refused
        """
        message = f"the {self._reader.wanted} did not arrive within {self.cfg.sticky_header_timeout} s"
        looks = 0
        with gevent.Timeout(self.cfg.sticky_header_timeout, False):
            while len(data) < MAX_HEAD:
                gevent.sleep(0 if looks < LOOKS else SLOW)
                looks += 1
                more = unreader.read()
                if not more:
                    raise StopIteration
                data += more
                try:
                    return bytes(data), self._reader.later(data, len(data), served.parcel.address, source, head)
                except Incomplete:
                    continue
                except (BareLineFeed, Missing) as error:
                    self._refuse_head(unreader, served, error)
            message = f"the first {MAX_HEAD} bytes do not show the {self._reader.wanted}"
            self._refuse(unreader.sock, served, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, "sticky_header")
            raise StopIteration
        self._refuse(unreader.sock, served, HTTPStatus.REQUEST_TIMEOUT, message, "sticky_header_timeout")
        raise StopIteration

    def _refuse_head(self, unreader: Any, served: _Served, error: Exception) -> NoReturn:
        setting = "sticky_ignore_missing_header" if isinstance(error, Missing) else "sticky_by"
        self._refuse(unreader.sock, served, HTTPStatus.BAD_REQUEST, str(error), setting)
        raise StopIteration

    def _is_mine(self, key: str) -> bool:
        """Tell whether a request belongs to a session of this worker."""
        return key == self._own_key

    def _is_mine_by_hash(self, key: str, served: _Served) -> bool:
        """Tell whether a key belongs to the slot of this worker, by the number of slots that there are now."""
        assert self._seat
        count = self._seat.board.count
        slots, known = self._slots
        if known != count:
            slots = Slots(self._seat.secret, count)
            self._slots = slots, count
        if slots.slot_of(key) != self.slot:
            return False
        served.count = count
        return True

    def _why_elsewhere(self, key: str, served: _Served) -> str | None:
        """Return why a later request on a connection is not for this worker, or None if it is."""
        assert self._seat
        board = self._seat.board
        takes = self._seat.is_taker() and board.in_charge
        if takes and key == served.key and served.count == board.count:
            return None
        if board.phase != RUNNING and not self._other_board.goes_on:
            return None  # nobody routes any more
        if not self._affinity.by_session:
            if not takes:
                return "another worker has its slot by now"
            return None if self._is_mine_by_hash(key, served) else "its next request is for another slot"
        if self._is_mine(key):
            return None
        if key.isdecimal() and (board.seat_of(int(key)) is not None or self._other_board.seat_of(int(key)) is not None):
            return "its next request is of another worker's session"
        if not (self.alive and takes):
            return "this worker takes no new sessions any more"
        if self._affinity.balance != "least-connections":
            return None
        # A proxy's connections would keep all new sessions on the workers that they happen to lead to.
        others = [board.load(slot) for slot in range(board.slots) if slot != self.slot and board.is_open(slot)]
        return "other workers are less busy" if others and board.load(self.slot) > min(others) + SLACK else None

    def _hand_over(self, client: Any, served: _Served, key: str, head: bytes) -> None:
        """Give the connection back for routing; closing it here is the caller's."""
        assert self._seat
        parcel = served.parcel._replace(key=key, unread=head, proxy=served.proxy)
        deadline = time.monotonic() + HAND_OVER
        while self._seat.returns.send(client.fileno(), parcel) is not None:
            if time.monotonic() > deadline:
                message = "the dispatcher takes no connections"
                setting = "workers or worker_connections"  # only when all workers are full
                self._refuse(client, served, HTTPStatus.SERVICE_UNAVAILABLE, message, setting)
                return
            # Gunicorn's keep-alive timer runs: it is for the client, and must not cut this off.
            with contextlib.suppress(gevent.Timeout):
                gevent.sleep(RETRY)
        self._figures[HANDED_OVER] += 1

    def _admit(self, served: _Served, client: Any, listener: Listener) -> bool:
        """Call the hook and wait for the release, or answer the connection here and return False."""
        connection = Connection(served.parcel.address, served.key, self.slot, listener, self.cfg.sticky_sync_event)
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        try:
            with gevent.Timeout(seconds, False):
                self.cfg.sticky_connection(self, connection)
                if self.cfg.sticky_sync:
                    connection.wait()
                return True
        except Exception:
            self.log.exception("Exception in the sticky_connection hook")
            status, setting = HTTPStatus.INTERNAL_SERVER_ERROR, "sticky_connection"
            message = "the sticky_connection hook has failed"
        else:
            status, setting = HTTPStatus.SERVICE_UNAVAILABLE, "sticky_sync_timeout"
            message = f"the application did not emit {self.cfg.sticky_sync_event!r} within {seconds} s"
        if served.parcel.unread or self.cfg.is_ssl or not is_silent(client.fileno()):
            self._refuse(client, served, status, message, setting)
        return False

    def _refuse(self, client: Any, served: _Served, status: HTTPStatus, message: str, setting: str) -> None:
        """Answer in the place of the application, and give the client time to read that before the caller closes.

        Closing with bytes unread would reset the connection, and destroy the answer on its way.
        """
        self._notices.warn(setting, "Refused a connection with key %s: %d, %s", served.key, status, message)
        self._figures[REFUSED] += 1
        deadline = time.monotonic() + LINGER
        try:
            client.settimeout(LINGER)
            client.sendall(answer(status, message))
            client.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                client.settimeout(left)
                if not client.recv(65536):
                    break
        except OSError:
            pass
