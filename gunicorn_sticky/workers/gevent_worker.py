"""The gevent kind: Gunicorn's gevent worker, which takes its connections from a channel, not from a listener."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import gevent
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from ..broadcast import gevent_driver
from ..sessions.gevent_websocket import use_simple_websocket
from ..shared import current, logs
from ..shared.unpatched import socketpair
from .blocking import BlockingStickyWorker
from .gevent_inbox import GeventInbox, InboxServer, OwnInboxServer
from .gevent_patching import memory_stays_shared

if TYPE_CHECKING:
    from .seat import Seat


class GeventStickyWorker(BlockingStickyWorker, GeventWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's gevent worker with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        #: The servers over the inboxes, the slot's first.
        self._inboxes: list[InboxServer] = []
        #: All that accepts something in this process.
        self._accepting: list[StreamServer] = []
        super().__init__(*args, seat=seat, **kwargs)
        if seat:
            self.sockets = [GeventInbox(channel) for channel in (seat.channel, seat.own_channel) if channel]
            self.server_class = self._new_server

    # --- its life ---

    def init_process(self) -> None:
        """Prepare the process (`gunicorn.workers.base.Worker.init_process`)."""
        use_simple_websocket()
        super().init_process()

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        current.cluster = seat.cluster, gevent_driver.messages, self.log

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
        with memory_stays_shared():
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

    def _new_server(self, inbox: GeventInbox, *, spawn: Any, **kwargs: Any) -> InboxServer:
        """Make what `GeventWorker.run` calls a server class: of its arguments for pywsgi, only TLS concerns us."""
        assert self._seat
        ssl_args = {name: kwargs[name] for name in ("ssl_context",) if name in kwargs}
        arguments = {"handle": self._handle, "spawn": spawn, **ssl_args}
        intake = self.intake(is_own=bool(self._inboxes))
        server: InboxServer
        if self._inboxes:
            server = OwnInboxServer(inbox, intake, **arguments)
        else:
            server = InboxServer(inbox, intake, **arguments)
            self.activate()
        self._inboxes.append(server)
        self._accepting.append(server)
        return server

    def _pause(self, seconds: float) -> None:
        # Gunicorn's keep-alive timer runs: it is for the client, and must not cut this off.
        with contextlib.suppress(gevent.Timeout):
            gevent.sleep(seconds)

    def _time_limit(self, seconds: float | None) -> gevent.Timeout:
        return gevent.Timeout(seconds, False)
