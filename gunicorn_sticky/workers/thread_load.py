"""What the threads of a worker are busy with."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .load import Load

if TYPE_CHECKING:
    from .seat import Seat


def _locked(method: Callable[..., None]) -> Any:
    """Return a method of `Load` as several threads may call it."""

    @functools.wraps(method)
    def locked(self: ThreadLoad, *args: Any) -> None:
        with self.lock:
            method(self, *args)

    return locked


class ThreadLoad(Load):
    """What a worker is busy with, counted by several threads."""

    def __init__(self, seat: Seat, by_session: bool) -> None:
        #: Also held by who forks: a child has no use for a lock that another thread holds.
        self.lock = threading.Lock()
        super().__init__(seat, by_session)

    connected, disconnected = _locked(Load.connected), _locked(Load.disconnected)
    waits, goes_on = _locked(Load.waits), _locked(Load.goes_on)
    requested, minted = _locked(Load.requested), _locked(Load.minted)
