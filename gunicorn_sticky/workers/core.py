"""What a sticky worker of any kind does: its place, its life, and what it counts.

A worker begins in a seat of its slot. When it is ready, it becomes its slot's active worker: from then on it takes the
slot's connections, and an older worker takes no more. It drains when it is told to end, and then still serves its own
sessions. How connections are accepted, read and answered is an adapter's affair, one for each of Gunicorn's kinds of
workers.
"""

from __future__ import annotations

import gc
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from gunicorn import __version__, version_info
from gunicorn.errors import HaltServer

from .. import configuration, settings
from ..routing.affinity import reader
from ..routing.session_ids import Ids
from ..sessions import engineio, mcp, nicegui
from ..sessions.minting import Minter
from ..shared import current
from ..shared.board import RUNNING
from ..shared.limited_log import LimitedLog
from ..shared.refusals import Refusal, name
from ..shared.unpatched import close
from .config import CachedConfig
from .connection import Connection, Event, Listener
from .drain import Intake
from .gate import Gate, HandOver
from .load import Load
from .parser import refuser
from .seat import Seat
from .served import Served


class StickyWorker:
    """The base of sticky workers, to stand in front of one of Gunicorn's worker classes.

    An adapter calls `activate` when it is ready to take connections, and then, for each of them, what `load` and `gate`
    have; it overrides `_abandon`.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    cfg: Any
    log: Any
    tmp: Any
    nr: int
    max_requests: int
    ppid: int
    #: What counts for it.
    load_class: type[Load] = Load

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        if seat is None and sys.platform == "linux":
            raise HaltServer("a reload cannot make a running server sticky: restart it", 1)
        #: Two flags that the arbiter's copy of this object shares with the worker's: alive, and leaving.
        self._flags: mmap.mmap | bytearray = mmap.mmap(-1, 2)
        self._seat: Seat | None = None
        #: Whether it has been the active worker of its slot.
        self._has_been_active = False
        #: Whether this process has been forked by a worker, and is none.
        self._is_child = False
        #: Whether it has reached max_requests; and whether it has been told to end.
        self._is_spent = self._is_told = False
        super().__init__(*args, **kwargs)
        self._seat = seat
        self.slot = seat.slot if seat else 0
        self.seat = seat.number if seat else 0
        if seat:
            self._prepare(seat)

    @classmethod
    def setup(cls) -> None:
        """Refuse to run under an arbiter that knows nothing of us; Gunicorn calls this when it resolves ``-k``.

        Raises:
            RuntimeError: Gunicorn is too old, the start-up hook did not run or does not know this Gunicorn, or the
                application has an arbiter of its own
        """
        if version_info < (25, 1):
            raise RuntimeError(f"gunicorn_sticky needs Gunicorn 25.1 or newer, and this is {__version__}")
        if current.hook_failure is not None:
            raise RuntimeError(current.hook_failure)
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

    @staticmethod
    def refuser(cfg: Any) -> Callable[[bytes], bool]:
        """Return a function that tells whether a worker refuses a request by the first bytes of its head.

        Args:
            cfg: Gunicorn's configuration
        """
        return refuser(cfg)

    # --- its life ---

    # The arbiter has to know when a worker drains, whoever started that: a signal or the reloader.
    @property
    def alive(self) -> bool:
        """Whether this worker goes on. Shared with the arbiter."""
        return self._flags[0] != 0

    @alive.setter
    def alive(self, value: bool) -> None:
        if not value and self._seat and not self._is_told and (self._is_spent or self.nr >= self.max_requests):
            # max_requests: the slot would stand still until a successor has booted, so go on until then. Several
            # threads may say so, also when it does not show in max_requests any more.
            self._is_spent = self._flags[1] = True
            self.max_requests = sys.maxsize
            return
        self._flags[0] = value
        if not value and self._has_been_active:
            assert self._seat
            self._seat.board.close(self.seat)

    @property
    def leaving(self) -> bool:
        """Whether this worker waits for a successor, to be told to stop. Shared with the arbiter."""
        return self._flags[1] != 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain on SIGTERM, also in the very moment when max_requests has been reached."""
        self._is_told = True
        super().handle_exit(sig, frame)  # type: ignore[misc]

    def _prepare(self, seat: Seat) -> None:
        """Make what needs no process of its own, in the arbiter: there its memory, and that of the code, is shared."""
        affinity = configuration.affinity(self.cfg)
        self._reader = reader(affinity, seat.secret, self.refuser(self.cfg))
        self.gate = Gate(self._reader, seat, lambda: not self._flags[0])
        self.load = self.load_class(seat, affinity.by_session)
        self._limited = LimitedLog(self.log)

    def init_process(self) -> None:
        """Prepare the process (`gunicorn.workers.base.Worker.init_process`)."""
        self.cfg = CachedConfig(self.cfg)
        if self._seat:
            gc.freeze()  # a collection would write to all that is shared with the arbiter, and so copy it
            self._begin(self._seat)
        super().init_process()  # type: ignore[misc]

    def _begin(self, seat: Seat) -> None:
        """Be the worker in a seat."""
        seat.leave()
        os.environ["GUNICORN_STICKY_SLOT"] = str(self.slot)
        self._traces = logging.getLogger("gunicorn.error").isEnabledFor(logging.DEBUG)
        #: Whether anybody wants to see a connection before its first request.
        self.admits = self.cfg.sticky_sync or self.cfg.sticky_connection is not settings.StickyConnection.default
        seat.metrics.pid.set(os.getpid())
        if self._reader.affinity.by_session:
            current.minter = Minter(Ids(seat.secret), seat.owner, self.load.minted)
            for framework in (engineio, mcp, nicegui):
                framework.own_ids()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._become_child
        )

    def activate(self) -> None:
        """Take the connections of the slot from now on."""
        assert self._seat
        self._has_been_active = True
        if self.alive or self._seat.board.phase != RUNNING:
            self._seat.board.activate(self.slot, self.seat)

    def intake(self, *, is_own: bool) -> Intake:
        """Return what decides on the connections of an inbox: that for this worker's own sessions, or its slot's."""
        assert self._seat
        return Intake(
            self._seat,
            is_own=is_own,
            last_call=self.cfg.graceful_timeout,
            last_served=lambda: self.load.last_served,
            is_orphan=self.is_orphan,
        )

    def notify(self) -> None:
        """Show that this worker is alive, once a second (`gunicorn.workers.base.Worker.notify`)."""
        if self._seat:
            self._seat.metrics.show()
            if self._has_been_active and self.alive and not self._is_child:
                self._persist(self._seat)
        super().notify()  # type: ignore[misc]

    def is_orphan(self) -> bool:
        """Tell whether the master has died: then a worker ends at once, as Gunicorn's gevent worker does."""
        return self.ppid != os.getppid()

    def _persist(self, seat: Seat) -> None:
        """Claim the slot again, unless it is another worker's, in case somebody has overwritten what stood there."""
        if seat.board.active_seat(seat.slot) in (-1, seat.number):
            seat.board.activate(seat.slot, seat.number)

    # --- its connections ---

    def may_serve(self) -> bool:
        """Tell whether this process is the worker, and not a child that the application has forked."""
        return not self._is_child

    def explain(self, served: Served, decision: HandOver) -> None:
        """Say, at --log-level debug, why a connection is handed over."""
        if self._traces:
            text = "Handing over a connection from %s, as %s; key of its next request by %s: %s"
            address = served.info.address
            self.log.debug(text, name(address), decision.why, self.gate.reader.origin(address), decision.key)

    def note_refusal(self, served: Served, refusal: Refusal) -> None:
        """Log and count that a connection is refused."""
        status, message, setting = refusal
        self._limited.warn(setting, "Refused a connection with key %s: %d, %s", served.key, status, message)
        self.load.refused()

    def connection(self, served: Served, listener: Listener, released: Event) -> Connection:
        """Return a connection as the hook sticky_connection is to see it.

        Args:
            released: set when the application has emitted what sticky_sync_event names
        """
        event = self.cfg.sticky_sync_event
        return Connection(served.info.address, str(served.key), self.slot, listener, event, released)

    # --- its children ---

    # A child that the application forks (os.fork, multiprocessing) has a copy of this object, the handlers of signals,
    # the loop, and all that goes on as soon as the child waits for something. What it does, and how it ends, is its own
    # affair. So, before it runs anything else, it loses all by which it could speak for the worker.

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
        self._seat.metrics.detach()
        self.load.detach()
        self._seat.board.detach()
        self._seat.board.phase = RUNNING  # also at the end of the server, here is nothing left to take
        self._abandon()
        self._seat.channel.close_receiver()
        if self._seat.own_channel:
            self._seat.own_channel.close_receiver()
        self._seat.returns.close_sender()
        heartbeat = os.memfd_create("heartbeat")
        os.dup2(heartbeat, self.tmp.fileno(), inheritable=False)
        close(heartbeat)

    def _abandon(self) -> None:
        """In a child, accept no more, and let go of the clients without a word to them."""
        raise NotImplementedError
