"""Names of the standard library as they are without gevent.

`gevent.monkey` replaces them in workers, and, if gunicorn.conf.py or a preloaded application wants that, in the arbiter
and what it forks. There no loop of gevent's runs: what waits for it waits for ever, and what is left to it (such as
``os.close()`` of a descriptor that is watched) is never done. In a worker, what must not switch to another greenlet in
the middle needs them as well. So whatever works below the level of greenlets takes these names from here.
"""

from __future__ import annotations

import posix
import sys
from _socket import socket as BareSocket
from _socket import socketpair
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = [
    "BareSocket",
    "Socket",
    "allocate_lock",
    "close",
    "dup",
    "epoll",
    "fork",
    "getaddrinfo",
    "handle_signal",
    "poll",
    "sleep",
    "socketpair",
    "waitpid",
]


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")  # where that is not loaded, nothing is replaced
    return monkey.get_original(module, name) if monkey else getattr(import_module(module), name)


# `os` is patched, and this, which it takes them from, is not.
close, dup, fork, waitpid = posix.close, posix.dup, posix.fork, posix.waitpid
#: `socket.socket`; `BareSocket` is the class of the C module below it.
Socket: Any = _original("socket", "socket")
getaddrinfo: Any = _original("socket", "getaddrinfo")
sleep: Callable[[float], None] = _original("time", "sleep")
allocate_lock: Any = _original("_thread", "allocate_lock")
#: `signal.signal`
handle_signal: Any = _original("signal", "signal")


def epoll() -> Any:
    """Return a new `select.epoll`, which not every system has."""
    return _original("select", "epoll")()


def poll() -> Any:
    """Return a new `select.poll`."""
    return _original("select", "poll")()
