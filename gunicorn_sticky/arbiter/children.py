"""The arbiter's children that are no workers: of each kind one process, which is replaced when it dies or hangs, and
when what it has been made for has changed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gunicorn import util
from gunicorn.workers.workertmp import WorkerTmp

from ..shared import logs
from ..shared.unpatched import fork, handle_signal, waitpid

#: Seconds between the starts of two of them, if the first one has died.
RESPAWN = 0.5

#: What a process does, given what to call about once a second. It unblocks signals, and handles SIGTERM.
Body = Callable[[Callable[[], None]], None]


@dataclass(eq=False)
class _Child:
    pid: int
    #: What it was made for.
    made_for: Any
    #: Its heartbeat.
    tmp: WorkerTmp
    started: float
    #: Whether it has been killed, as its heart did not beat.
    is_hung: bool = False


class Children:
    """The children of one kind: the one in service, if there is one, and those that drain.

    Args:
        kind: what they are called
        arbiter: whose children they are
        prepare: returns, in the arbiter, what a new one does that is made for something
    """

    def __init__(self, kind: str, arbiter: Any, prepare: Callable[[Any], Body]) -> None:
        self._kind = kind
        self._arbiter = arbiter
        self._prepare = prepare
        #: The one in service.
        self._child: _Child | None = None
        self._retired: list[_Child] = []
        #: When the next one may start, if the last one has died.
        self._not_before = 0.0

    def __iter__(self) -> Iterator[_Child]:
        return iter([*self._retired, *filter(None, [self._child])])

    def __bool__(self) -> bool:
        return bool(self._retired or self._child)

    @property
    def in_service(self) -> bool:
        """Whether there is one that does not drain."""
        return self._child is not None

    def keep(self, wanted: Any) -> None:
        """Have one in service that is made for `wanted`, or none if that is None, and let its predecessor drain."""
        old = self._child
        if wanted == (old and old.made_for):
            return
        if wanted is None:
            self._child = None
        elif self.due() > 0:
            return
        else:
            self._child = self._fork(wanted)
        if old is not None:
            self._retired.append(old)
        for child in self._retired:
            self._kill(child, signal.SIGTERM)

    def due(self) -> float:
        """Return the seconds until the next one may start."""
        return 0.0 if self._child else self._not_before - time.monotonic()

    def retire(self, number: int) -> None:
        """Have none in service, and send a signal to all."""
        self._retired, self._child = list(self), None
        self.kill(number)

    def kill(self, number: int) -> None:
        """Send a signal to all."""
        for child in self:
            self._kill(child, number)

    @staticmethod
    def _kill(child: _Child, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)

    def reap(self) -> None:
        """Wait for those that have ended."""
        for child in self:
            try:
                pid, status = waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = child.pid, None  # the waitpid(-1) of Gunicorn, or of gevent's loop, was faster
            if not pid:
                continue
            child.tmp.close()
            if child is self._child:
                self._child = None
                self._not_before = child.started + RESPAWN
                if status == 0:  # it was told to end, maybe as the arbiter is about to be
                    self._arbiter.log.info("%s (pid:%s) has ended", self._kind.capitalize(), pid)
                else:
                    self._arbiter.log.error("%s (pid:%s) has died (status %s)", self._kind.capitalize(), pid, status)
            else:
                self._retired.remove(child)

    def murder(self, timeout: float) -> None:
        """Kill those whose heart has not beaten for `timeout` seconds; it beats also while they drain."""
        for child in self:
            if not child.is_hung and time.monotonic() - child.tmp.last_update() > timeout:
                child.is_hung = True
                self._arbiter.log.critical("%s TIMEOUT (pid:%s)", self._kind.upper(), child.pid)
                self._kill(child, signal.SIGKILL)

    def _fork(self, made_for: Any) -> _Child:
        arbiter, body = self._arbiter, self._prepare(made_for)
        heartbeat = WorkerTmp(arbiter.cfg)
        heartbeat.notify()
        # The child must not act on a signal before it has handlers of its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, arbiter.SIGNALS)
        pid = fork()
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return _Child(pid, made_for, heartbeat, time.monotonic())
        code = 1
        try:
            util._setproctitle(f"{self._kind} [{arbiter.proc_name}]")
            arbiter.close_heartbeats()
            arbiter.log.info("Booting %s with pid: %s", self._kind, os.getpid())
            self._settle()
            body(heartbeat.notify)
            code = 0
        except Exception:
            arbiter.log.exception("Exception in the %s", self._kind)
        finally:
            os._exit(code)  # never 3 or 4, which halt older versions of Gunicorn's master

    def _settle(self) -> None:
        """Give up privileges and the application's settings, and handle all signals but SIGTERM as no worker does."""
        cfg, log = self._arbiter.cfg, self._arbiter.log
        for name in ("HUP", "USR2", "TTIN", "TTOU", "WINCH", "ABRT"):
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        handle_signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, lambda _signal, _frame: logs.reopen(log))
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda _signal, _frame: os._exit(0))
        socket.setdefaulttimeout(None)  # nothing here may wait because the configuration or a library has set one
        util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
