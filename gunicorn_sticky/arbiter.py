"""The arbiter: Gunicorn's own, with slots, a channel for each of them, and a dispatcher in front.

It owns the listeners and never accepts; it reads no byte of a client. Workers get the channel of their slot instead of
the listeners. Differences between Gunicorn's versions that matter here are met in this file and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.errors import ConfigError, HaltServer
from gunicorn.workers.workertmp import WorkerTmp

from . import settings
from .board import SEATS, Board
from .session import OWNERS
from .slots import SECRET_SIZE
from .worker import GeventStickyWorker, Seat

#: Carries the hash's secret to the new master on SIGUSR2.
SECRET_VARIABLE = "GUNICORN_STICKY_SECRET"
#: A slot has its worker and one that drains; a third would let max_requests pile up processes.
WORKERS_PER_SLOT = 2
#: Seconds between the starts of two dispatchers, if the first one has died.
RESPAWN = 1.0


class Refused(HaltServer, RuntimeError):  # type: ignore[misc]
    """A configuration that cannot work.

    At start `gunicorn.app.base.BaseApplication.run` prints a RuntimeError as one line and exits with code 1; on a
    reload `gunicorn.arbiter.Arbiter.run` meets a HaltServer with an orderly stop.
    """

    def __str__(self) -> str:
        return str(self.reason)


def new_arbiter(app: Any, stock: Any) -> Any:
    """Return the arbiter for `app`: ours if its worker class is sticky, else one made by `stock`."""
    worker_class = app.cfg.worker_class
    if not issubclass(worker_class, GeventStickyWorker):
        arbiter = stock(app)
        if names := settings.given(app.cfg):
            arbiter.log.warning(
                "No effect of %s: worker class %s is not sticky (use -k gunicorn_sticky.GeventStickyWorker)",
                ", ".join(names),
                app.cfg.worker_class_str,
            )
        return arbiter
    if sys.platform != "linux":
        arbiter = _one_worker(stock)(app)
        arbiter.log.warning("Sticky sessions need Linux; on %s there is one worker, which serves all", sys.platform)
        return arbiter
    return StickyArbiter(app)


def _one_worker(stock: Any) -> Any:
    """Return an arbiter class that never has more than one worker."""

    class OneWorkerArbiter(stock):  # type: ignore[misc]
        num_workers = property(lambda self: 1, lambda self, value: None)

        def setup(self, app: Any) -> None:
            app.cfg.set("workers", 1)
            super().setup(app)

    return OneWorkerArbiter


@dataclass(frozen=True)
class _Process:
    """A dispatcher's process, as the arbiter sees it."""

    pid: int
    #: Configuration, listeners and number of slots that it was made for.
    made_for: tuple[Any, tuple[Any, ...], int]
    heartbeat: WorkerTmp
    started: float


class StickyArbiter(Arbiter):  # type: ignore[misc]
    """Gunicorn's master process, with sticky sessions.

    Raises:
        Refused: the configuration cannot work
    """

    def __init__(self, app: Any) -> None:
        secret = os.environ.pop(SECRET_VARIABLE, None)
        self._secret = bytes.fromhex(secret) if secret else os.urandom(SECRET_SIZE)
        #: By slot. They are kept when the slot goes: what is in them is routed anew.
        self._channels: list[Any] = []
        #: By seat, see board.py.
        self._seat_channels: list[Any] = []
        self._board = Board()
        #: Workers are numbered from here, so that an upgraded master does not take the old one's numbers for its own.
        self._first_owner = secrets.randbelow(OWNERS)
        #: By which workers hand back connections whose next request belongs to another slot.
        self._returns: Any = None
        self._dispatcher: _Process | None = None
        #: Dispatchers that drain.
        self._retired: list[_Process] = []
        #: When the next one may start, if the last one has died.
        self._not_before = 0.0
        self.worker_class: Any = None
        super().__init__(app)

    def setup(self, app: Any) -> None:
        """Take over a configuration, at start and on each reload (`gunicorn.arbiter.Arbiter.setup`)."""
        try:
            settings.check(app.cfg)
        except ConfigError as error:
            raise Refused(str(error)) from None
        omitted = isinstance(app.cfg.workers, settings.Omitted)
        if omitted:
            app.cfg.set("workers", settings.available_cpus())
        app.cfg.env_orig[SECRET_VARIABLE] = self._secret.hex()  # reexec() starts the new master with this
        before = self.worker_class
        super().setup(app)
        if omitted:
            self.log.info("Number of workers not given: %d, one per CPU (setting: workers)", self.num_workers)
        if not issubclass(self.worker_class, GeventStickyWorker):
            self.log.error(
                "Worker class stays %s: a reload cannot change it to %s, which is not sticky; restart instead",
                before.__name__,
                self.cfg.worker_class_str,
            )
            self.worker_class = before

    def start(self) -> None:
        """Open the listeners (`gunicorn.arbiter.Arbiter.start`)."""
        super().start()
        if settings.affinity(self.cfg).by == "ip" and any(
            listener.FAMILY == socket.AF_UNIX for listener in self.LISTENERS
        ):
            if self.pidfile is not None:
                self.pidfile.unlink()
            raise Refused(settings.UNIX_NEEDS_HEADER)  # inherited sockets show their family only now

    # --- workers in slots ---

    def _workers_of(self, slot: int) -> list[Any]:
        """Return the workers of `slot`, the newest last."""
        return sorted((w for w in self.WORKERS.values() if w.slot == slot), key=lambda w: w.age)

    def spawn_worker(self) -> Any:
        """Fork a worker for the slot that needs one most: without a worker, or with the oldest."""

        def need(slot: int) -> int:
            ages = [worker.age for worker in self._workers_of(slot) if worker.alive]
            return max(ages, default=0)

        return self._spawn_worker(min(range(self.num_workers), key=need))

    def _spawn_worker(self, slot: int) -> Any:
        self._open_channels(slot + 1)
        before = self._workers_of(slot)
        worker_class = self.worker_class
        number = self._free_seat(slot)
        owner = (self._first_owner + self.worker_age) % (OWNERS - 1) + 1
        seat = Seat(
            slot=slot,
            number=number,
            owner=owner,
            secret=self._secret,
            board=self._board,
            channel=self._channels[slot],
            own_channel=self._seat_channels[number],
            returns=self._returns,
            leave=functools.partial(self._leave, slot, number),
        )
        self._board.take(number, owner)
        self.worker_class = functools.partial(worker_class, seat=seat)  # upstream knows nothing of slots
        try:
            pid = super().spawn_worker()
        finally:
            self.worker_class = worker_class
        for worker in before:  # from now on there are two at one channel
            self.kill_worker(worker.pid, signal.SIGTERM)
        return pid

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a worker a signal. SIGTERM is lost on a worker that is still booting, so that is told in two ways."""
        if sig == signal.SIGTERM and pid in self.WORKERS:
            self.WORKERS[pid].alive = False
        super().kill_worker(pid, sig)

    def _open_channels(self, count: int) -> None:
        from .channel import Channel

        if self._returns is None:
            self._returns = Channel()
        while len(self._channels) < count:
            self._channels.append(Channel())
            self._seat_channels += [Channel() for _ in range(SEATS)]
        self._board.slots = len(self._channels)

    def _free_seat(self, slot: int) -> int:
        """Return a seat of `slot` that no worker has; if there is none, the oldest worker's, which ends here."""
        self._leave_seats()
        seats = range(slot * SEATS, (slot + 1) * SEATS)
        owners = self._board.owners()
        for seat in seats:
            if not owners[seat]:
                return seat
        oldest = self._workers_of(slot)[0]
        self.kill_worker(oldest.pid, signal.SIGKILL)
        return int(oldest.seat)

    def _leave_seats(self) -> None:
        """Take the seats from workers that are gone."""
        taken = {worker.seat for worker in self.WORKERS.values()}
        for seat, owner in enumerate(self._board.owners()):
            if owner and seat not in taken:
                self._board.leave(seat)

    def _leave(self, slot: int, seat: int) -> None:
        """In a new worker, close what belongs to the arbiter and to other slots."""
        for listener in self.LISTENERS:
            listener.close()
        for channels, own in ((self._channels, slot), (self._seat_channels, seat)):
            for number, channel in enumerate(channels):
                if number == own:
                    channel.close_sender()
                else:
                    channel.close()
        self._returns.close_receiver()

    def manage_workers(self) -> None:
        """Keep one worker in each slot, and a dispatcher."""
        for slot in range(self.num_workers):
            workers = self._workers_of(slot)
            if len(workers) < WORKERS_PER_SLOT and not any(worker.alive for worker in workers):
                self._spawn_worker(slot)
        self._manage_dispatcher()
        for worker in list(self.WORKERS.values()):
            surplus = worker.slot >= self.num_workers or worker is not self._workers_of(worker.slot)[-1]
            if surplus and worker.alive:
                self.kill_worker(worker.pid, signal.SIGTERM)
        if len(self.WORKERS) == self.num_workers:
            super().manage_workers()  # only to report its metrics: there is nobody to spawn or to kill

    # --- the dispatcher ---

    def _manage_dispatcher(self) -> None:
        """Have one dispatcher, made for what is true now."""
        wanted = (self.cfg, tuple(self.LISTENERS), self.num_workers)
        old = self._dispatcher
        if old is not None and old.made_for == wanted:
            return
        if self.LISTENERS and self.num_workers:
            if time.monotonic() < self._not_before:
                return
            self._dispatcher = self._spawn_dispatcher(wanted)
        else:
            self._dispatcher = None
        if old is not None:
            self._retired.append(old)
        for process in self._retired:
            self._kill(process, signal.SIGTERM)

    def _spawn_dispatcher(self, made_for: tuple[Any, tuple[Any, ...], int]) -> _Process:
        from . import dispatcher
        from .route import Channels

        heartbeat = WorkerTmp(self.cfg)
        count = made_for[2]  # num_workers may be changed by another thread, that of the control socket
        self._open_channels(count)
        plan = dispatcher.Plan(
            affinity=settings.affinity(self.cfg),
            secret=self._secret,
            listeners=[listener.fileno() for listener in self.LISTENERS],
            tls=bool(self.cfg.is_ssl),
            channels=Channels(self._channels[:count], self._seat_channels),
            board=self._board,
            returned=[*self._channels[count:], self._returns],
            header_timeout=self.cfg.sticky_header_timeout,
            lane_timeout=self.timeout or 30,
            lane_size=self.cfg.backlog,
        )
        # The child must not act on a signal before it has handlers of its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        pid = os.fork()
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return _Process(pid, made_for, heartbeat, time.monotonic())
        code = 1
        try:
            util._setproctitle(f"dispatcher [{self.proc_name}]")
            self.log.info("Booting dispatcher with pid: %s", os.getpid())
            dispatcher.run(plan, self.cfg, self.log, heartbeat.notify)
            code = 0
        except Exception:
            self.log.exception("Exception in the dispatcher")
        finally:
            os._exit(code)  # never 3 or 4, which halt older versions of Gunicorn's master

    def _kill(self, process: _Process, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def _reap_dispatchers(self) -> None:
        for process in [*self._retired, *filter(None, [self._dispatcher])]:
            try:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = process.pid, None  # upstream's waitpid(-1) was faster
            if not pid:
                continue
            process.heartbeat.close()
            if process is self._dispatcher:
                self._dispatcher = None
                self._not_before = process.started + RESPAWN
                self.log.error("Dispatcher (pid:%s) has died (status %s)", pid, status)
            else:
                self._retired.remove(process)

    def reap_workers(self) -> None:
        """Reap whoever has died; a dispatcher is replaced at once, also in the middle of a reload."""
        self._reap_dispatchers()
        super().reap_workers()
        self._leave_seats()
        if self._dispatcher is None and self._channels:
            self._manage_dispatcher()

    def murder_workers(self) -> None:
        """Kill whoever hangs."""
        super().murder_workers()
        process = self._dispatcher
        if not self.timeout or process is None:
            return
        if time.monotonic() - process.heartbeat.last_update() > self.timeout:
            self.log.critical("DISPATCHER TIMEOUT (pid:%s)", process.pid)
            self._kill(process, signal.SIGKILL)

    def handle_usr1(self) -> None:
        """Reopen the logs, here and in all processes."""
        super().handle_usr1()
        for process in [*self._retired, *filter(None, [self._dispatcher])]:
            self._kill(process, signal.SIGUSR1)

    def stop(self, graceful: bool = True) -> None:
        """Stop the dispatcher, then the workers."""
        processes = [*self._retired, *filter(None, [self._dispatcher])]
        for process in processes:
            self._kill(process, signal.SIGTERM if graceful else signal.SIGQUIT)
        self._retired, self._dispatcher = processes, None
        super().stop(graceful)
        for process in self._retired:
            self._kill(process, signal.SIGKILL)
        self._reap_dispatchers()
