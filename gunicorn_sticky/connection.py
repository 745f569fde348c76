"""A client's connection, as the worker and the sticky_connection hook see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event


@dataclass(frozen=True)
class Listener:
    """The listening socket that accepted a connection: in a worker only its name is left of it."""

    address: Any

    def getsockname(self) -> Any:
        """Return the listener's own address, as `socket.getsockname` does."""
        return self.address


@dataclass(frozen=True, eq=False)
class Connection:
    """One connection, before its first request.

    Attributes:
        address: the peer's address, as ``socket.accept()`` gives it
        key: the affinity key that the connection was dispatched under
        slot: the slot of the worker that serves it
        listener: the listening socket that accepted it
    """

    address: Any
    key: str
    slot: int
    listener: Listener
    _release_event: str = field(repr=False)
    _released: Event = field(default_factory=Event, repr=False)

    def emit(self, event: str) -> bool:
        """Release the connection's first request, if `event` is the one that the setting sticky_sync_event names.

        Returns:
            whether it is
        """
        if event != self._release_event:
            return False
        self._released.set()
        return True

    def wait(self) -> None:
        """Wait until the connection is released."""
        self._released.wait()
