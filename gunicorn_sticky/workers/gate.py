"""The gate: whether the next request on a connection that stays open is this worker's to serve.

Sans-I/O: here is no socket and no loop. The bytes of a request's head go in as they arrive, and a decision
comes out: that more are needed, to serve the request, to hand the connection over, or to refuse it. The first request
on a connection has passed the dispatcher, which reads keys in the same way.

Rules:
 0. What has just been decided is not decided again: see `Gate.stays`.
 1. A head is refused for what the dispatcher refuses one for: malformed, without the header, too large, too slow.
 2. What another worker ought to serve is handed over, as long as there is a dispatcher that could route it.
 3. By address or header, that is a request whose key belongs to another slot; and any request, when another worker
    takes the connections of this slot by now, or another master accepts.
 4. By session, a request of this worker's own sessions is served here, also while the worker drains. That of another
    worker's session is handed over, if that worker is there.
 5. What is left is of no session, or of one whose worker is gone. It is handed over if this worker takes no new
    sessions any more. And, balanced by least-connections, if it has more than its share (share.py): a reverse proxy's
    connections would keep all new sessions on the workers that they happen to lead to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from ..routing.affinity import Missing, Reader
from ..routing.hashing import Slots
from ..routing.head import MAX_HEAD, BareLineFeed, Head, Incomplete
from ..routing.key import Key
from ..shared.board import RUNNING
from ..shared.refusals import MALFORMED, MISSING, TOO_LARGE, TOO_SLOW, Refusal
from .feed import is_head
from .seat import Seat
from .served import Served
from .share import Share

#: Bytes of a head that are remembered, at most.
REMEMBERED = 2048


class Verdict(Enum):
    """A decision that says no more."""

    NEED_MORE = "need more"
    SERVE = "serve"


class HandOver(NamedTuple):
    """The decision that the connection belongs elsewhere."""

    key: Key
    #: For the log: "Handing over, as ..."
    why: str


NEED_MORE, SERVE = Verdict
Decision = Verdict | HandOver | Refusal


class Gate:
    """The gate of one worker.

    Args:
        reader: reads keys
        seat: the worker's place
        is_draining: tells whether the worker takes no new sessions any more
        clock: returns the time in seconds
    """

    def __init__(
        self, reader: Reader, seat: Seat, is_draining: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reader = reader
        affinity = reader.affinity
        self._by_session, self._balances = affinity.by_session, affinity.balance == "least-connections"
        #: Whether a later request's key is in its head.
        self._reads = affinity.by_session or affinity.header is not None
        self._seat, self._owner = seat, seat.owner
        self._board = seat.board
        self._is_unchanged = seat.board.watch(seat.slot, seat.number)
        self._other_board = seat.board.other()
        self._is_draining = is_draining
        self._requests = seat.metrics.requests
        self._share = Share(seat.board, seat.number, seat.metrics.requests, clock)
        self._slots: Slots
        #: How many there are of them; none until a request asks for them.
        self._count = 0

    def stays(self, served: Served, data: bytes) -> bool:
        """Tell at once, without reading a key, whether the next request is served here as the last one was.

        Args:
            served: the connection
            data: the first bytes of the request, which may be all of its head
        """
        if self._reads and data != served.last_head:
            return False
        if not self._by_session:
            return self._is_unchanged(served.slots)
        if served.key == self._owner:
            return True
        if not self._is_unchanged(served.slots) or self._is_draining():
            return False
        return not self._balances or self._requests.value < self._share.due or not self._share.is_exceeded()

    def decide(self, key: Key, served: Served) -> Decision:
        """Decide on a request that bears a key, and note that in `served`."""
        why = self._why_elsewhere(key, served)
        if why is not None:
            return HandOver(key, why)
        served.key = key
        return SERVE

    def _why_elsewhere(self, key: Key, served: Served) -> str | None:
        board = self._board
        takes = self._seat.is_active() and board.is_active_master
        if takes and key == served.key and served.slots == board.count and not self._by_session:
            return None
        if board.phase != RUNNING and not self._other_board.goes_on:
            served.slots = 0
            return None
        if not self._by_session:
            if not takes:
                return "another worker has its slot by now"
            return None if self._is_ours(str(key), served) else "its next request is for another slot"
        if key == self._owner:
            return None
        if isinstance(key, int) and any(half.seat_of(key) is not None for half in (board, self._other_board)):
            return "its next request is of another worker's session"
        if self._is_draining() or not takes:
            return "this worker takes no new sessions any more"
        if self._balances and self._share.is_exceeded():
            self._share.passed_on()
            return "other workers are less busy"
        served.slots = board.count
        return None

    def _is_ours(self, key: str, served: Served) -> bool:
        """Tell whether a key belongs to the slot of this worker, by the number of slots that there are now."""
        count = self._board.count
        if self._count != count:
            self._slots, self._count = Slots(self._seat.secret, count), count
        if self._slots.slot_of(key) != self._seat.slot:
            return False
        served.slots = count
        return True


class LaterHead:
    """The head of a later request on a connection, as far as it has arrived.

    Args:
        gate: the worker's
        served: the connection
    """

    __slots__ = ("_gate", "_head", "_served", "data")

    def __init__(self, gate: Gate, served: Served) -> None:
        self._gate = gate
        self._served = served
        self._head = Head()
        #: What has arrived.
        self.data: bytes | bytearray = b""

    def feed(self, data: bytes) -> Decision:
        """Take the next bytes, at least one, and decide."""
        if not self.data:
            self.data = data
        elif isinstance(self.data, bytes):
            self.data = bytearray(self.data + data)
        else:
            self.data += data
        size, served, reader = len(self.data), self._served, self._gate.reader
        try:
            key = reader.later(self.data, size, served.info.address, served.source, self._head)
        except Incomplete:
            return NEED_MORE if size < MAX_HEAD else TOO_LARGE.because(size=MAX_HEAD, wanted=reader.wanted)
        except BareLineFeed as error:
            return MALFORMED.because(error=error)
        except Missing as error:
            return MISSING.because(error=error)
        decision = self._gate.decide(key, served)
        # A head that has come in one piece, and nothing else.
        if decision is SERVE and size <= REMEMBERED and len(data) == size and is_head(data):
            served.last_head = data
        return decision

    def expire(self, seconds: float) -> Refusal:
        """Return how to refuse a head that has not arrived within some seconds."""
        return TOO_SLOW.because(wanted=self._gate.reader.wanted, seconds=seconds)
