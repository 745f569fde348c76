"""Waiting for what happens to file descriptors: epoll, with a handler for each of them."""

from __future__ import annotations

from collections.abc import Callable

from ..shared.unpatched import epoll

# epoll(7); the names in `select` are gone if gevent has patched it.
READABLE, EDGE, HANGUP = 0x001, 1 << 31, 0x2000
#: The peer will send no more, or there is an error.
GONE = HANGUP | 0x010 | 0x008

Handler = Callable[[int], object]


class Events:
    """The events of some file descriptors, and who handles them."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Handler] = {}

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Let `handler` be called with what has happened, when any of `events` has."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, which is still open."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def wait(self, seconds: float) -> None:
        """Wait for something to happen, and let it be handled."""
        for fd, events in self._epoll.poll(seconds):
            if handler := self._handlers.get(fd):  # else unwatched by the handler of another one
                handler(events)
