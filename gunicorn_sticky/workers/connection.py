"""A client's connection, as the worker and the sticky_connection hook see it."""

from __future__ import annotations

from typing import Any, Protocol


class Event(Protocol):
    """`threading.Event`, or what the worker's kind has in its place."""

    def set(self) -> object: ...

    def wait(self, timeout: float | None = None) -> Any: ...


class Listener:
    """The listening socket that accepted a connection: in a worker only its name is left of it."""

    __slots__ = ("address",)

    def __init__(self, address: Any) -> None:
        self.address = address

    def getsockname(self) -> Any:
        """Return the listener's own address, as `socket.getsockname` does."""
        return self.address


class Connection:
    """One connection, before its first request.

    Attributes:
        address: the peer's address, as ``socket.accept()`` gives it
        key: the affinity key that the connection was dispatched under
        slot: the slot of the worker that serves it
        listener: the listening socket that accepted it
    """

    def __init__(
        self, address: Any, key: str, slot: int, listener: Listener, release_event: str, released: Event
    ) -> None:
        self.address = address
        self.key = key
        self.slot = slot
        self.listener = listener
        self._release_event = release_event
        self._released = released

    def __repr__(self) -> str:
        return f"<Connection from {self.address} with key {self.key!r} in slot {self.slot}>"

    def emit(self, event: str) -> bool:
        """Release the connection's first request, if `event` is the one that the setting sticky_sync_event names.

        Returns:
            whether it is
        """
        if event != self._release_event:
            return False
        self._released.set()
        return True

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the connection is released.

        Args:
            timeout: how many seconds at most, or None

        Returns:
            whether it is; under asyncio, a coroutine that returns that
        """
        return self._released.wait(timeout)
