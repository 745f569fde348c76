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

    def requested(self, served: Served) -> None:
        """The head of a request has been parsed."""
        with self.lock:
            super().requested(served)

    def minted(self) -> None:
        """A session id has been made."""
        with self.lock:
            super().minted()

    def _change(self, difference: int) -> None:
        with self.lock:
            super()._change(difference)
