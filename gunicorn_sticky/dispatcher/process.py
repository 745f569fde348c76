"""The dispatcher's process: limits and signals, around its loop (loop.py)."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from .loop import Dispatcher, Plan
from .tracing import TracingDispatcher


def run(plan: Plan, log: Any, heartbeat: Callable[[], None]) -> None:
    """Be the dispatcher's process (see children.py), until SIGTERM and what has been accepted is passed on."""
    # Connections that wait are open files, and descriptors in flight count against the same limit (unix(7)).
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # While all processors are busy, interrupt no worker for a single connection: a moment later there are several, and
    # each costs a third (sched(7), SCHED_BATCH).
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    plan.metrics.pid.set(os.getpid())
    traces = logging.getLogger("gunicorn.error").isEnabledFor(logging.DEBUG)  # however that was configured
    dispatcher = (TracingDispatcher if traces else Dispatcher)(plan, log, heartbeat)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    dispatcher.wake_by(reader)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: dispatcher.drain())
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    dispatcher.run()
