"""A worker's place among the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..shared.board import Board
from ..shared.metrics import WorkerRow

if TYPE_CHECKING:
    # They need Linux.
    from ..broadcast.cluster import Cluster
    from ..broadcast.join_socket import JoinSocket
    from ..shared.channel import Channel


@dataclass(frozen=True)
class Seat:
    """A worker's place, given by the arbiter."""

    slot: int
    #: The seat's number on the board, and the worker's own.
    number: int
    owner: int
    secret: bytes
    board: Board
    #: The slot's channel, shared with this worker's predecessors and successors.
    channel: Channel
    #: By session, for this worker only: requests of its sessions.
    own_channel: Channel | None
    #: For connections whose next request belongs to another slot.
    returns: Channel
    #: By which the workers hear each other, and the socket where other programs join, if there is one.
    cluster: Cluster
    cluster_socket: JoinSocket | None
    #: The worker's row.
    metrics: WorkerRow
    #: Closes, in the worker's process, what it has inherited and must not keep.
    leave: Callable[[], None]

    def is_active(self) -> bool:
        """Tell whether this worker takes the connections of its slot."""
        return self.board.active_seat(self.slot) == self.number
