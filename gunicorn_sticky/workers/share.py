"""Whether a worker has more than its share of the requests without a session. Decisions only.

Whoever has to pass one on for that pays as much as for a few requests. So what is looked at is how far this worker is
ahead of the average of all that take new sessions.

Rules:
 1. What counts is what they have been given since the last look (board.py), and how many connections they are busy
    with now.
 2. To be behind counts up to a bound, as what was long ago is not to be made good.
 3. The same bound is how far ahead one may be. It is a few requests, and those of some milliseconds at the rate at
    which they come: of many, a few more are not worth it.
 4. Who has passed one on is as far as the average: with it goes its connection, and what that changes is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..shared.board import LOOK, REQUEST, SESSION, Board
from ..shared.metrics import Number

#: By how much a worker may be ahead, at least: a request that begins a session. And in seconds, at the present rate.
SLACK, SLACK_SECONDS = REQUEST + SESSION, 0.0025
#: Seconds between two that are passed on, at least.
PAUSE = 0.002
#: The time constant, in seconds, of the present rate.
MEMORY = 0.3
#: After how many requests to look again, at the latest.
FAR = 100


class Share:
    """The share of one worker.

    Args:
        board: where workers say what they are given
        seat: the worker's
        requests: counts all requests of the worker
        clock: returns the time in seconds
    """

    def __init__(self, board: Board, seat: int, requests: Number, clock: Callable[[], float]) -> None:
        self._board, self._seat, self._requests, self._clock = board, seat, requests, clock
        #: By how much the worker is ahead.
        self._lead = 0.0
        #: What it has been given within about `MEMORY`.
        self._recent = 0.0
        #: What workers had been given in all, by seat, when last looked at; and when that was.
        self._given: dict[int, int] = {}
        self._looked_at = -math.inf
        #: When to look again.
        self._look_at = -math.inf
        #: The count of requests before which there is no need to.
        self.due = 0

    def is_exceeded(self) -> bool:
        """Tell whether another worker ought to serve the next request without a session."""
        if self._requests.value < self.due or (now := self._clock()) < self._look_at:
            return False
        board, own = self._board, self._seat
        before, self._given = self._given, {seat: board.given(seat) for seat in board.open_seats()}
        if own not in before or own not in self._given:
            return False
        # Never less, unless the memory has been overwritten.
        gains = {seat: max(0, given - before.get(seat, given)) for seat, given in self._given.items()}
        self._recent += gains[own] - self._recent * min(1.0, (now - self._looked_at) / MEMORY)
        self._looked_at = now
        slack = max(SLACK, self._recent / MEMORY * SLACK_SECONDS)
        self._lead = max(self._lead + gains[own] - sum(gains.values()) / len(gains), -slack)
        busy = board.busy(own)[0] - min(board.busy(seat)[0] for seat in gains)
        room = slack - self._lead - busy * REQUEST
        if room < 0:
            return True
        self._look_at = now + LOOK * board.slots
        self.due = self._requests.value + min(int(max(room, slack / 2) / REQUEST), FAR)
        return False

    def passed_on(self) -> None:
        """One has been passed on."""
        self._lead, self._look_at = 0.0, self._clock() + PAUSE
