"""What the log says, at --log-level debug, of each connection: where it goes, and why.

A dispatcher of its own kind, so that the usual one need not ask whether to explain itself.
"""

from __future__ import annotations

from ..routing.affinity import Affinity
from ..routing.key import Key
from ..shared.board import SEATS
from ..shared.channel import Channel, ConnectionInfo
from ..shared.metrics import Counter
from ..shared.refusals import name
from .balancing import Channels
from .loop import Dispatcher


def destination(affinity: Affinity, channels: Channels, channel: Channel, key: Key) -> str:
    """Return where a channel leads, and why a connection with this key goes there."""
    if channel in channels.slots:
        why = "hash"
        if affinity.by_session:
            why = "the session's worker is gone" if isinstance(key, int) else "a new session"
            why += f", {affinity.balance}"
        return f"slot {channels.slots.index(channel)} ({why})"
    if channel in channels.seats:
        seat = channels.seats.index(channel)
        return f"the session's worker in seat {seat} (slot {seat // SEATS})"
    if channel in channels.others:
        return "the session's worker, which is another master's"
    return "the other master, which accepts connections now"


class TracingDispatcher(Dispatcher):
    """Does as a dispatcher does, and says so."""

    def _dispatch(self, fd: int, info: ConnectionInfo) -> None:
        self._pass_on(fd, info, f"key by {self._reader.origin(info.address)}")

    def _dispatch_again(self, fd: int, info: ConnectionInfo, counter: Counter) -> None:
        counter.inc()
        back = counter is self._metrics.handed_back
        why = "handed back by a worker" if back else "moved, as its worker or its slot is gone"
        self._pass_on(fd, info, f"{why}, key")

    def _pass_on(self, fd: int, info: ConnectionInfo, how: str) -> None:
        channel = self._route.channel(info.key)
        where = destination(self.plan.affinity, self.plan.channels, channel, info.key)
        # What clients can choose comes last, so that they cannot feign the rest.
        self.log.debug("Connection from %s goes to %s; %s: %s", name(info.address), where, how, info.key)
        self._pending.pass_on(channel, fd, info)
