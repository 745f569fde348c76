"""What the threads of a worker are busy with."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .load import Load
from .served import Served

if TYPE_CHECKING:
    from .seat import Seat


class ThreadLoad(Load):
    """What a worker is busy with, counted by several threads."""

    def __init__(self, seat: Seat, by_session: bool) -> None:
        #: Also held by who forks: a child has no use for a lock that another thread holds.
        self.lock = threading.Lock()
        super().__init__(seat, by_session)

    def connected(self, served: Served) -> None:
        """A connection has come, with its first request."""
        with self.lock:
            super().connected(served)

    def disconnected(self, served: Served) -> None:
        """A connection has gone."""
        with self.lock:
            super().disconnected(served)

    def waits(self, served: Served) -> None:
        """A connection has been answered, and waits for its next request."""
        with self.lock:
            super().waits(served)

    def goes_on(self, served: Served) -> None:
        """The next request of a connection is to be served here."""
        with self.lock:
            super().goes_on(served)

    def requested(self, served: Served) -> None:
        """The head of a request has been parsed."""
        with self.lock:
            super().requested(served)

    def minted(self) -> None:
        """A session id has been made."""
        with self.lock:
            super().minted()
