"""What a master owns beside its listeners: memory, channels and sockets; and what each process is given of them."""

from __future__ import annotations

import errno
import math
import os
import resource
import secrets
from collections.abc import Callable
from typing import Any

from .. import configuration
from ..broadcast.cluster import Cluster
from ..dispatcher.balancing import Channels
from ..dispatcher.loop import Plan
from ..routing.hashing import SECRET_SIZE
from ..routing.session_ids import OWNERS
from ..shared.board import RUNNING, Board, MasterBoard
from ..shared.metrics import Metrics, SlotRow
from ..status.snapshot import Server
from ..workers.seat import Seat
from .channels import MasterChannels
from .sockets import Sockets
from .upgrade import Inheritance


class Resources:
    """The resources of one master.

    Args:
        inherited: from the master that has started this one

    Attributes:
        board: the master's half of the board
        slot_rows: the metrics of each slot
        own_row: those of the master
        server: all of them, for who shows them
    """

    def __init__(self, inherited: Inheritance | None) -> None:
        self._secret = inherited.secret if inherited else os.urandom(SECRET_SIZE)
        #: Workers are numbered from here, so that no two masters that know each other have the same number.
        self._first_owner = inherited.owner if inherited else secrets.randbelow(OWNERS)
        self.channels = MasterChannels(inherited)
        self.board = inherited.board if inherited else MasterBoard()
        #: The same, as the other processes see it.
        self._shared_board = self.board.shared()
        self._cluster = inherited.cluster if inherited else Cluster()
        self.sockets = Sockets(
            inherited.cluster_socket if inherited else None, inherited.status_socket if inherited else None
        )
        self._metrics = Metrics()
        self.own_row = self._metrics.master()
        self.slot_rows: list[SlotRow] = []
        self.server = Server(self._metrics, self._shared_board)

    def open(self, slots: int, by_session: bool) -> None:
        """Have channels and metrics for as many slots, at least."""
        self.channels.open(slots, by_session)
        for slot in range(len(self.slot_rows), len(self.channels.slots)):
            self.slot_rows.append(self._metrics.slot(slot))
        self.board.slots = len(self.channels.slots)

    def seat(self, slot: int, number: int, age: int, by_session: bool, leave: Callable[[], None]) -> Seat:
        """Return the seat of a new worker, and note that it is taken.

        Args:
            slot: the worker's; its channels are open
            number: the seat's
            age: the worker's, as Gunicorn counts
            leave: see `Seat.leave`
        """
        owner = (self._first_owner + age - 1) % (OWNERS - 1) + 1
        row = self._metrics.worker(number)
        row.starts()
        self.slot_rows[slot].starts()
        self.board.take(number, owner, age)
        return Seat(
            slot=slot,
            number=number,
            owner=owner,
            secret=self._secret,
            board=self._shared_board,
            channel=self.channels.slots[slot],
            own_channel=self.channels.of_seat(number) if by_session else None,
            returns=self.channels.returns,
            cluster=self._cluster,
            cluster_socket=self.sockets.join,
            metrics=row,
            leave=leave,
        )

    def plan(
        self, cfg: Any, refuses: Callable[[bytes], bool], listeners: list[int], slots: int, timeout: float, other: Board
    ) -> Plan:
        """Return what a new dispatcher is to do, and note that there is one.

        Args:
            cfg: Gunicorn's configuration
            refuses: tells whether a worker refuses a request by the first bytes of its head
            listeners: the descriptors that it accepts from
            slots: how many there are, with open channels
            timeout: Gunicorn's setting; 0 is no limit
            other: the half of the board that is another master's
        """
        channels = self.channels
        self.board.count = slots
        self.board.phase = RUNNING
        row = self._metrics.dispatcher(self.own_row.dispatchers.value)
        row.starts()
        self.own_row.dispatchers.inc()
        return Plan(
            parent=os.getpid(),
            affinity=configuration.affinity(cfg),
            refuses=refuses,
            secret=self._secret,
            listeners=listeners,
            tls=bool(cfg.is_ssl),
            channels=Channels(channels.slots[:slots], channels.seats, tuple(channels.other_seats), channels.returns),
            board=self._shared_board,
            other=other,
            removed=channels.slots[slots:],
            header_timeout=cfg.sticky_header_timeout,
            slot_timeout=timeout or math.inf,
            backlog=cfg.backlog,
            metrics=row,
        )

    def inheritance(self, age: int) -> Inheritance:
        """Return what a new master is to be given.

        Args:
            age: that of the youngest worker, as Gunicorn counts

        Raises:
            OSError: the limit of open files leaves no room for it
        """
        needed = len(os.listdir("/proc/self/fd")) + 2 * len(self.channels.seats) + configuration.SPARE_FILES
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY and needed > limit:
            raise OSError(errno.EMFILE, f"two masters need {needed} open files each, and the limit is {limit}")
        self.channels.open_others()
        return Inheritance(
            secret=self._secret,
            board=self.board,
            owner=(self._first_owner + age + OWNERS // 2) % OWNERS,
            returns=self.channels.returns,
            seat_channels=self.channels.seats,
            new_seat_channels=self.channels.other_seats,
            cluster=self._cluster,
            cluster_socket=self.sockets.join,
            status_socket=self.sockets.status,
        )

    def leave(self, slot: int | None = None, seat: int | None = None) -> None:
        """In a new process, close what belongs to the master and, but for one slot and seat, to workers."""
        if self.sockets.status:
            self.sockets.status.close()
        self.channels.leave(slot, seat)

    def report(self) -> int:
        """Bring the metrics of master and slots up to date, and return how many connections wait for workers."""
        self.own_row.show()
        for slot, row in enumerate(self.slot_rows):
            row.waiting.set(self.channels.queued(slot))
            row.show()
        return sum(row.waiting.value for row in self.slot_rows)
