"""How a worker gets gevent's version of the standard library without a copy of all that it shares with the arbiter.

A forked process shares each page of its memory with its parent until one of the two writes there. So:

- What `gevent.monkey.patch_all` loads is loaded here, and so in the arbiter, once for all workers, which also start
  sooner. Nothing is patched by that, and neither hub nor loop is made. `concurrent.futures`, which it loads as well, is
  not: it has a lock that has to be gevent's from the beginning.
- `gevent.monkey.patch_thread` looks at each object that Python's garbage collector knows, in search of locks that are
  held. To count the references to an object is to write to it, and so a worker would get a page of its own of nearly
  each that there is, those of a preloaded application included. There is nothing to be found: the arbiter forks while
  no lock of Python's own making is held. Locks of imports might be; then gevent looks at everything. What else it
  searches, it does not write to, and is to see all, though that is frozen (core.py) before and afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import importlib._bootstrap
from collections.abc import Iterator
from typing import Any

from gevent import events, select, selectors, signal, ssl, subprocess, thread, threading, time  # noqa: F401


@contextlib.contextmanager
def memory_stays_shared() -> Iterator[None]:
    """While gevent patches the standard library, hide from its search for held locks what has been there before."""
    hides = False

    def hide(event: Any) -> None:
        nonlocal hides
        if isinstance(event, events.GeventWillPatchModuleEvent) and event.module_name == "threading":
            hides = not importlib._bootstrap._module_locks  # type: ignore[attr-defined]
            if hides:
                gc.freeze()
        elif isinstance(event, events.GeventDidPatchModuleEvent) and hides:
            gc.unfreeze()
            hides = False

    events.subscribers.append(hide)
    gc.unfreeze()
    try:
        yield
    finally:
        events.subscribers.remove(hide)
        gc.freeze()
