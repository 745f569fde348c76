"""What a worker is busy with: counted for whoever looks at the server, and told to whoever balances."""

from __future__ import annotations

import time

from ..shared.board import REQUEST, SESSION
from ..shared.metrics import Gauge
from .seat import Seat
from .served import Served


class Load:
    """The connections and requests of one worker.

    Args:
        seat: the worker's place
        by_session: whether anybody balances by it
    """

    def __init__(self, seat: Seat, by_session: bool) -> None:
        self._board, self._number, self._owner = seat.board, seat.number, seat.owner
        self._metrics = seat.metrics
        self._requests, self._sessions = seat.metrics.requests, seat.metrics.minted
        self.by_session = by_session
        #: Connections with a request under way.
        self._busy = Gauge(seat.board.busy(seat.number))
        self._busy.set(0)
        #: How many sessions had been minted when last looked at.
        self._minted = self._sessions.value
        #: When a connection has last ended.
        self.last_served = 0.0

    def connected(self, served: Served) -> None:
        """A connection has come, with its first request."""
        self._metrics.connections.inc()
        (self._metrics.taken_over if served.info.unread else self._metrics.dispatched).inc()
        if self.by_session:
            self._busy.inc()

    def disconnected(self, served: Served) -> None:
        """A connection has gone."""
        self.last_served = time.monotonic()
        self._metrics.connections.dec()
        if served.busy:
            Load.waits(self, served)  # of no subclass, which may hold a lock by now

    def waits(self, served: Served) -> None:
        """A connection has been answered, and waits for its next request."""
        served.busy = False
        if self.by_session:
            busy = self._busy
            busy.value = busy.cell[0] = busy.value - 1
            if self._sessions.value != self._minted:
                self._minted = self._sessions.value
                self._board.give(self._number, SESSION)

    def goes_on(self, served: Served) -> None:
        """The next request of a connection is to be served here."""
        served.busy = True
        if self.by_session:
            busy = self._busy
            busy.value = busy.cell[0] = busy.value + 1  # busy.inc(), without a call

    def requested(self, served: Served) -> None:
        """The head of a request has been parsed."""
        requests = self._requests
        requests.value = requests.cell[0] = requests.value + 1  # requests.inc(), without a call
        if self.by_session and served.key != self._owner:
            self._board.give(self._number, REQUEST)

    def minted(self) -> None:
        """A session id has been made."""
        self._sessions.inc()

    def handed_over(self) -> None:
        """A connection is on its way to another worker."""
        self._metrics.handed_over.inc()

    def refused(self) -> None:
        """A request has been refused."""
        self._metrics.refused.inc()

    def detach(self) -> None:
        """Keep to this process what it is busy with: nobody else sees that from now on."""
        self._busy.detach()
