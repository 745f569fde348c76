"""What the log says of the slots: how clients get to them, and each change of a slot's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..routing.affinity import Affinity
from ..shared.board import RUNNING, SEATS, Board
from ..status.snapshot import DOWN, READY, STARTING, slot_state, worker_state


class SlotLog:
    """Remembers what it has said, and says what is new.

    Args:
        board: the master's half of the board
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._announced = ""
        #: By slot, its state and the worker that has it.
        self._seen: dict[int, tuple[str, int]] = {}

    def announce(self, log: Any, affinity: Affinity, count: int) -> None:
        """Say how many slots there are, and what leads a client to its own."""
        text = f"Sticky sessions by {affinity}; slots: {count}"
        if text != self._announced:
            log.info(text)
            self._announced = text

    def look(self, log: Any, count: int, pids: Mapping[int, int]) -> None:
        """Say which slots are in another state than before. At the end of a server, that is nobody's concern.

        Args:
            count: how many slots there are
            pids: the workers' processes, by seat
        """
        before, self._seen = self._seen, {}
        if self._board.phase != RUNNING:
            return
        owners = self._board.owners()
        for slot in range(count):
            seats = range(slot * SEATS, min((slot + 1) * SEATS, len(owners)))
            workers = {worker_state(self._board, slot, seat): seat for seat in seats if owners[seat]}
            state = slot_state(workers)
            pid = pids.get(workers[state], 0) if workers else 0
            self._seen[slot] = state, pid
            earlier = before.get(slot, (DOWN, 0))
            if (state, pid) == earlier:
                continue
            if state == DOWN:
                log.warning("Slot %d: down", slot)
                continue
            if state == READY and earlier == (DOWN, 0):  # so fast that nobody has looked meanwhile
                log.info("Slot %d: %s (pid: %d)", slot, STARTING, pid)
            log.info("Slot %d: %s (pid: %d)", slot, state, pid)

    def is_settled(self) -> bool:
        """Tell whether nothing is expected to change: all slots are ready."""
        return all(state == READY for state, _ in self._seen.values())
