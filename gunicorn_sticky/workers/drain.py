"""What a worker takes from its inboxes, also while it drains, and until when it stays for that. Decisions only.

Here is no socket, no clock and no loop: the caller says what time it is, and takes the connections. The times are those
of `time.monotonic`.

Rules:
 1. From its slot's inbox a worker takes what there is while it is the active worker of its slot, until it drains. What
    is left then waits for its successor.
 2. By session, a worker has an inbox of its own as well. From that it takes for as long as it lives, as nobody else has
    its sessions. It ends when these have been quiet for `QUIET` seconds: between two polls of a client nobody is busy.
 3. When the server ends, nobody comes after this worker. So it takes what has been sent to it, and what is still on its
    way, until the dispatcher has passed on all that it has accepted, or for some seconds at most. Not so from its own
    inbox if another master accepts, whose dispatcher goes on to send it requests of its sessions: rule 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..shared.board import RUNNING, STOPPING

if TYPE_CHECKING:
    from .seat import Seat

#: Seconds between two looks into the inboxes of a worker that drains.
POLL = 0.02
#: Seconds without a request of its sessions after which a worker that drains takes them for gone.
QUIET = 3.0


class Intake:
    """What a worker takes from one inbox. When it drains, it looks into the inbox again and again::

        intake.drain(now)
        while intake.goes_on(now):
            take whatever is in the inbox, if intake.may_take()
            intake.took_all()
            wait for POLL seconds

    Args:
        seat: the worker's
        is_own: whether the inbox is for the worker's own sessions; otherwise it is its slot's
        last_call: seconds to wait, at the end of the server, for what is still on its way
        last_served: returns when the worker has last been busy with a request
        is_orphan: tells whether the master has died
    """

    def __init__(
        self,
        seat: Seat,
        *,
        is_own: bool,
        last_call: float,
        last_served: Callable[[], float],
        is_orphan: Callable[[], bool],
    ) -> None:
        self._seat = seat
        self._is_own = is_own
        self._last_call = last_call
        self._last_served = last_served
        self._is_orphan = is_orphan
        #: Whether it is left to the successor.
        self._is_left = False
        #: When the worker began to drain.
        self._began = 0.0
        #: Whether it is emptied because nobody comes after this worker; known when it drains.
        self.is_last_call = False
        self._is_empty = False
        #: The server's, before the last look into the inbox.
        self._phase = STOPPING

    def may_take(self) -> bool:
        """Tell whether the next connection in the inbox is this worker's."""
        return self._is_own or (self._seat.is_active() and not self._is_left)

    def drain(self, now: float) -> None:
        """Begin to drain."""
        board = self._seat.board
        ends = board.phase != RUNNING
        self._began = now
        self._is_left = not ends
        self.is_last_call = ends and not (self._is_own and not board.is_active_master)

    def goes_on(self, now: float) -> bool:
        """Tell whether a worker that drains has to stay for this inbox; to be asked before each look into it."""
        if self._is_orphan():
            return False
        if self.is_last_call:
            self._phase = self._seat.board.phase  # before the look, which sees all that came before STOPPED
            return self.may_take() and not self._is_empty and now < self._began + self._last_call
        return self._is_own and now < max(self._began, self._last_served()) + QUIET

    def took_all(self) -> None:
        """Say that since the last `goes_on` all that was in the inbox has been taken."""
        self._is_empty = self._phase != STOPPING
