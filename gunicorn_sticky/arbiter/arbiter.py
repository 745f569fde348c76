"""The arbiter: Gunicorn's own, with slots, a channel for each of them, and a dispatcher in front.

It owns the listeners and never accepts; it reads no byte of a client. Workers get the channel of their slot instead of
the listeners. Differences between Gunicorn's versions that matter here are met in this file and nowhere else.

What the dispatcher takes is loaded before the first worker is forked: what the arbiter writes to its memory later is a
copy, and workers share that with the dispatcher no more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import time
from _queue import SimpleQueue
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import ConfigError, HaltServer
from gunicorn.pidfile import Pidfile

from .. import configuration, settings
from ..dispatcher import process as dispatcher
from ..shared import logs
from ..shared.board import RUNNING, STOPPED, STOPPING
from ..status.listener import StatusSocket
from ..status.statsd import Reporter
from ..workers.core import StickyWorker
from .children import Body, Children
from .crew import Crew
from .resources import Resources
from .signal_queue import SignalQueue
from .slot_log import SlotLog
from .succession import Succession
from .upgrade import VARIABLE, Inheritance

#: Seconds after which a dispatcher or status server hangs that shows no life, if Gunicorn's `timeout` is 0.
HUNG = 30.0
#: Seconds between two looks at the workers, while something is expected of them.
POLL = 0.1
#: Seconds between two looks for workers that hang: who is told to abort has this long, as in Gunicorn's main loop.
TURN = 1.0


class Refused(HaltServer, RuntimeError):  # type: ignore[misc]
    """A configuration that cannot work.

    At start `gunicorn.app.base.BaseApplication.run` prints a RuntimeError as one line and exits with code 1; on a
    reload `gunicorn.arbiter.Arbiter.run` meets a HaltServer with an orderly stop.
    """

    def __str__(self) -> str:
        return str(self.reason)


def _refuse(message: str, *args: Any) -> None:
    raise Refused(message % args)


class StickyArbiter(Arbiter):  # type: ignore[misc]
    """Gunicorn's master process, with sticky sessions.

    Raises:
        Refused: the configuration cannot work
    """

    _last_logged_active_worker_count: int | None
    SIG_QUEUE: Any

    def __init__(self, app: Any) -> None:
        self._resources = resources = Resources(Inheritance.received(os.environ.pop(VARIABLE, None)))
        self._board, self._channels, self._sockets = resources.board, resources.channels, resources.sockets
        self._succession = Succession(self._board)
        self._crew = Crew(self._board, lambda: self.WORKERS.values())
        self._statsd: Reporter | None = None
        self._slot_log = SlotLog(self._board)
        self._dispatchers = Children("dispatcher", self, self._new_dispatcher)
        self._status_servers = Children("status server", self, self._new_status_server)
        #: During a reload, when to look next for who hangs.
        self._murder_at: float | None = None
        self.worker_class: Any = None
        super().__init__(app)
        if type(self.SIG_QUEUE) is SimpleQueue:
            self.SIG_QUEUE = SignalQueue()

    def setup(self, app: Any) -> None:
        """Take over a configuration, at start and on each reload (`gunicorn.arbiter.Arbiter.setup`)."""
        try:
            configuration.check(app.cfg)
        except ConfigError as error:
            raise Refused(str(error)) from None
        omitted = isinstance(app.cfg.workers, settings.Omitted)
        if omitted:
            app.cfg.set("workers", configuration.available_cpus())
        before = self.worker_class
        try:
            super().setup(app)
        except ConfigError as error:  # of a worker class
            raise Refused(str(error)) from None
        if omitted:
            self.log.info("Number of workers not given: %d, one per CPU (setting: workers)", self.num_workers)
        if not issubclass(self.worker_class, StickyWorker):
            self.log.error(
                "Worker class stays %s: a reload cannot change it to %s, which is not sticky; restart instead",
                before.__name__,
                self.cfg.worker_class_str,
            )
            self.worker_class = before
        if before:
            self._crew.outdate(self.worker_age)
            self._sockets.open(self.cfg, self.log, self.log.error)

    def start(self) -> None:
        """Open the listeners (`gunicorn.arbiter.Arbiter.start`)."""
        self._sockets.open(self.cfg, self.log, _refuse)
        self._resources.own_row.half.set(self._board.half)
        self._resources.own_row.pid.set(os.getpid())
        super().start()
        if self.cfg.statsd_host:  # the logger, which sends, is as it was at the start also after a reload
            self._statsd = Reporter(self.log, self._resources.server)
        if configuration.affinity(self.cfg).by == "ip" and any(
            listener.FAMILY == socket.AF_UNIX for listener in self.LISTENERS
        ):
            if self.pidfile is not None:
                self.pidfile.unlink()
            raise Refused(configuration.UNIX_NEEDS_HEADER)  # inherited sockets show their family only now

    # --- workers in slots ---

    def _set_num_workers(self, value: int) -> None:
        if reason := configuration.too_many(value, configuration.affinity(self.cfg)):
            self.log.error("Number of workers stays %s: %s", self.num_workers, reason)
        else:
            super()._set_num_workers(value)

    num_workers = property(Arbiter._get_num_workers, _set_num_workers)

    def spawn_worker(self) -> Any:
        """Fork a worker for the slot that needs one most."""
        return self._spawn_worker(self._crew.neediest(self.num_workers))

    def _spawn_worker(self, slot: int) -> Any:
        by_session = configuration.affinity(self.cfg).by_session
        self._resources.open(slot + 1, by_session)
        number, victim = self._crew.place(slot)
        if victim:
            self.kill_worker(victim.pid, signal.SIGKILL)
        leave = functools.partial(self._leave, slot, number)
        seat = self._resources.seat(slot, number, self.worker_age + 1, by_session, leave)
        self._crew.starts(slot, time.monotonic())
        worker_class = self.worker_class
        self.worker_class = functools.partial(worker_class, seat=seat)  # upstream knows nothing of slots
        try:
            pid = super().spawn_worker()
            seat.metrics.pid.set(pid)
            return pid
        finally:
            self.worker_class = worker_class

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a worker a signal. It is lost on a worker that is still booting, so an end is told in two ways."""
        if sig in (signal.SIGTERM, signal.SIGQUIT) and pid in self.WORKERS:
            self.WORKERS[pid].alive = False
        super().kill_worker(pid, sig)

    def _leave(self, slot: int | None = None, seat: int | None = None) -> None:
        """In a new process, close what belongs to the arbiter and to other workers."""
        for listener in self.LISTENERS:
            listener.close()
        self._resources.leave(slot, seat)

    def manage_workers(self) -> None:
        """Keep one worker in each slot, and a dispatcher."""
        self._slot_log.announce(self.log, configuration.affinity(self.cfg), self.num_workers)
        self._board.restore()
        now = time.monotonic()
        for slot in range(self.num_workers):
            if self._crew.needs_worker(slot, now):
                self._spawn_worker(slot)
        self._manage_dispatcher()
        self._dismiss_workers()
        self._settle_succession()
        self._manage_status_server()
        self._report()
        self._look_at_slots()

    def _dismiss_workers(self) -> None:
        for worker in self._crew.superfluous(self.num_workers):
            self.kill_worker(worker.pid, signal.SIGTERM)

    def _look_at_slots(self) -> None:
        pids = {worker.seat: pid for pid, worker in list(self.WORKERS.items())}
        self._slot_log.look(self.log, self.num_workers, pids)

    def _report(self) -> None:
        """Send the metrics that `gunicorn.arbiter.Arbiter.manage_workers` does, and count what waits."""
        waiting = self._resources.report()
        if self._statsd:
            self._statsd.report()
        count = len(self.WORKERS)
        if self._last_logged_active_worker_count != count:
            self._last_logged_active_worker_count = count
            self.log.debug("%d workers", count, extra={"metric": "gunicorn.workers", "value": count, "mtype": "gauge"})
        if self.cfg.enable_backlog_metric:
            backlog = waiting + sum(listener.get_backlog() or 0 for listener in self.LISTENERS)
            self.log.debug(
                "socket backlog: %d",
                backlog,
                extra={"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"},
            )

    # --- the dispatcher ---

    def _manage_dispatcher(self) -> None:
        """Have one dispatcher, made for what is true now."""
        wanted = (self.cfg, tuple(self.LISTENERS), self.num_workers, tuple(self._channels.other_seats))
        self._dispatchers.keep(wanted if self.LISTENERS and self.num_workers else None)

    def _new_dispatcher(self, made_for: tuple[Any, tuple[Any, ...], int, tuple[Any, ...]]) -> Body:
        _, listeners, slots, _ = made_for  # num_workers may be changed by another thread, that of the control socket
        self._resources.open(slots, configuration.affinity(self.cfg).by_session)
        fds = [listener.fileno() for listener in listeners]
        refuses = self.worker_class.refuser(self.cfg)
        plan = self._resources.plan(self.cfg, refuses, fds, slots, self.timeout, self._succession.other)

        def dispatch(heartbeat: Callable[[], None]) -> None:
            if self._sockets.status:
                self._sockets.status.close()
            dispatcher.run(plan, self.log, heartbeat)

        return dispatch

    # --- the status server ---

    def _manage_status_server(self) -> None:
        """Have one status server, if it is wanted. Of two masters it is the active one that has it."""
        if self.cfg.sticky_status and not self._sockets.status and not self.master_pid:
            with contextlib.suppress(OSError):  # a master of another version had it
                self._sockets.open_status(self.cfg, self.log)
        wanted = (self.cfg, self._sockets.status)
        self._status_servers.keep(wanted if self._sockets.status and self._board.is_active_master else None)

    def _new_status_server(self, made_for: tuple[Any, StatusSocket]) -> Body:
        parent, own = os.getpid(), made_for[1]

        def serve(heartbeat: Callable[[], None]) -> None:
            from ..status.server import run  # not before: it loads gevent

            self._sockets.status = None
            self._leave()
            self._channels.returns.close_sender()
            run(own, self._resources.server, parent, self.log, heartbeat)

        return serve

    # --- all of them ---

    def close_heartbeats(self) -> None:
        """In a new child, close the heartbeats of its siblings, which it has inherited."""
        for sibling in [*self.WORKERS.values(), *self._dispatchers, *self._status_servers]:
            sibling.tmp.close()

    def _reap_children(self) -> None:
        """Reap those that have ended, and kill those that hang: they wait for no application, so there is a limit."""
        for children in (self._status_servers, self._dispatchers):
            children.reap()
            children.murder(self.timeout or HUNG)
        if self._board.phase == STOPPING and not self._dispatchers:
            self._board.phase = STOPPED

    def reap_workers(self) -> None:
        """Reap whoever has died; a dispatcher is replaced at once, also in the middle of a reload."""
        self._reap_children()
        before = dict(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer:
            if self._board.phase == RUNNING:
                raise
            # Two workers could not boot: the first one has stopped the server already.
            for pid in before:
                self.kill_worker(pid, 0)  # forgets who is gone, which 25.1 has not done
        for pid in before.keys() - self.WORKERS.keys():
            self._crew.ended(before[pid])
        self._crew.vacate()
        self._look_at_slots()
        self._settle_succession()
        if self._board.phase == RUNNING:
            self._dismiss_workers()
            if self._channels.slots and not self._dispatchers.in_service:
                self._manage_dispatcher()
            if not self._status_servers.in_service:
                self._manage_status_server()
            if self._murder_at is not None:
                self._go_on(self._murder_at)

    def reload(self) -> None:
        """Take over a new configuration.

        Gunicorn waits there for the old workers to end, for up to `graceful_timeout`, and only reaps who has died.
        """
        self._murder_at = time.monotonic() + TURN
        try:
            super().reload()
        finally:
            self._murder_at = None

    def _go_on(self, murder_at: float) -> None:
        """Do what the main loop does between two signals, in the middle of a reload."""
        self.maybe_promote_master()
        now = time.monotonic()
        if now >= murder_at:
            self._murder_at = now + TURN
            self.murder_workers()
        self.manage_workers()

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """Wait for signals, but not beyond the moment when there is something to do."""
        for children in (self._dispatchers, self._status_servers):
            if (due := children.due()) > 0:
                timeout = min(timeout, due)
        if not self._board.is_active_master or not self._slot_log.is_settled():
            timeout = min(timeout, POLL)
        return super().wait_for_signals(timeout)

    def murder_workers(self) -> None:
        """Kill whoever hangs."""
        # gevent's signal.signal calls a handler of SIGCHLD only when gevent's loop runs, which here may be never.
        self.handle_chld()
        super().murder_workers()

    def handle_usr1(self) -> None:
        """Reopen the logs, here and in all processes."""
        self.log.reopen_files()  # first, so that what this makes can be opened by those who give up privileges
        logs.give(self.cfg.uid)
        super().handle_usr1()
        self._dispatchers.kill(signal.SIGUSR1)
        self._status_servers.kill(signal.SIGUSR1)

    # --- stopping, and upgrading ---

    def handle_winch(self) -> None:
        """Let all workers drain, if daemonized."""
        if self.cfg.daemon:
            self._board.phase = STOPPING
        super().handle_winch()

    def stop(self, graceful: bool = True) -> None:
        """Stop the dispatcher and the workers, which serve what it still passes on."""
        self._board.phase = STOPPING if graceful else STOPPED
        if self.master_pid:
            self._succession.resign()
        # Only the active master shows its end.
        self._status_servers.retire(0 if self._board.is_active_master else signal.SIGTERM)
        self._dispatchers.retire(signal.SIGTERM if graceful else signal.SIGQUIT)
        self._reap_children()
        super().stop(graceful)
        self._dispatchers.kill(signal.SIGKILL)
        self._status_servers.kill(signal.SIGKILL)
        self._reap_children()
        if self._sockets.join and self.reexec_pid == self.master_pid == 0:
            self._sockets.join.remove()

    def reexec(self) -> None:
        """Start a new master, which inherits what both have to know of each other."""
        if self.systemd:
            self.log.error(
                "USR2 signal ignored: the listeners are systemd's, which can restart this without closing them"
            )
            return
        if self._has_other():
            super().reexec()  # refuses
            return
        with contextlib.ExitStack() as stack:
            try:
                inheritance = self._resources.inheritance(self.worker_age)
                self._succession.expect(time.monotonic())
                self.cfg.env_orig[VARIABLE] = stack.enter_context(inheritance.inheritable())
            except OSError as error:
                self.log.error("USR2 signal ignored: %s (setting: ulimit -n)", error.strerror)
                return
            try:
                super().reexec()
            except BaseException:
                if os.getpid() == self.pid:
                    raise
                self.log.exception("Exception in the new master")
                os._exit(1)  # or it would stop the workers, which are its parent's

    def _has_other(self) -> bool:
        """Tell whether there is another master: the one that started this one, or one that this one has started."""
        return bool(self.master_pid or self.reexec_pid)

    def _settle_succession(self) -> None:
        """Let one of two masters accept, or the one that is left."""
        has_other = self._has_other()
        if not has_other:
            self._succession.forget_other()
            self._channels.close_others()
        if self._succession.settle(time.monotonic(), has_other, bool(self.master_pid), self.num_workers):
            self.log.info("%s accepts connections now", self.master_name)

    def maybe_promote_master(self) -> None:
        """Be the only master, when the old one has gone."""
        before = self.master_pid
        if self.cfg.pidfile and before not in (0, os.getppid()):
            # A master that was killed has left its file, and its pid is in use until its own parent has waited for it.
            stale = Pidfile(self.cfg.pidfile)
            stale.pid = before
            stale.unlink()
        super().maybe_promote_master()
        if before and not self.master_pid:
            self._settle_succession()
            self._start_control_server()

    def _start_control_server(self) -> None:
        """Open the control socket, unless it is the old master's still."""
        if self.master_pid:
            return
        super()._start_control_server()
        if self._control_server:
            from ..status.gunicornc import Commands  # brings asyncio along, which workers need not have

            self._control_server.handlers = Commands(self, self._resources.server)
