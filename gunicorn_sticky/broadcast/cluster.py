"""The processes that hear each other: the workers of a server; and other programs, which can only speak.

Messages are in rings (rings.py). A doorbell says that there is a new one: an eventfd(2) that is never read, but watched
for edges (epoll(7)) by each process that listens, so that one call wakes all of them. Whoever has these two descriptors
belongs to the cluster: workers inherit them, other programs get them through a socket (join_socket.py).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from typing import Any

from ..shared import current
from ..shared.unpatched import epoll
from .rings import SIZE, Reader, Rings, Writer


def _begin_generation() -> None:
    current.generation += 1


os.register_at_fork(after_in_child=_begin_generation)


class Cluster:
    """What its processes share.

    Args:
        fds: of a cluster that is there already, as `fds` has them; else a new one is made
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self._rings = Rings(fds[0] if fds else None)
        self._doorbell = fds[1] if fds else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._writer: Writer | None = None
        self._generation = current.generation

    def fds(self) -> tuple[int, int]:
        """Return the descriptors of rings and doorbell."""
        return self._rings.fd, self._doorbell

    def tell(self, message: bytes) -> None:
        """Let all that listen have a message. This waits for none of them.

        Raises:
            ValueError: the message is longer than `rings.MAX_MESSAGE`
            OSError: each ring has a writer already
        """
        if self._generation != current.generation:  # a child needs a ring of its own
            self._leave_ring()
            self._generation = current.generation
        if self._writer is None:
            self._writer = Writer(self._rings)
            os.set_blocking(self._doorbell, False)  # for all that have it; one of them may have said otherwise
        self._writer.write(message)
        try:
            os.eventfd_write(self._doorbell, 1)
        except BlockingIOError:  # full, which none of us can have done
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._doorbell)
                os.eventfd_write(self._doorbell, 1)

    def listener(self, log: Any) -> Listener:
        """Return what hears all that is told from now on, also by this process."""
        return Listener(Reader(self._rings), self._doorbell, log)

    def close(self) -> None:
        """Leave the cluster."""
        self._leave_ring()
        self._rings.close()
        os.close(self._doorbell)

    def _leave_ring(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Listener:
    """Hears messages. Wait for what `fileno` returns to be readable, call `hear`, and so on."""

    def __init__(self, reader: Reader, doorbell: int, log: Any) -> None:
        self._reader = reader
        self._log = log
        self._bell = epoll()
        self._bell.register(doorbell, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        """Return what is readable when something has been told."""
        return int(self._bell.fileno())

    def hear(self) -> Iterator[bytes]:
        """Return what has been told since the last time."""
        reader = self._reader
        dropped = reader.dropped
        self._bell.poll(0)  # what rings from now on is heard below
        yield from reader.read()
        if reader.dropped > dropped:
            self._log.warning(
                "Dropped %d messages of other processes: this one was more than %d MiB of them behind",
                reader.dropped - dropped,
                SIZE >> 20,
            )

    @property
    def is_behind(self) -> bool:
        """Whether there is more that could not be read yet: its writer has not finished, or has been killed."""
        return bool(self._reader.left)
