"""For how long slots have had no worker."""

from __future__ import annotations

from ..shared.board import Board


class Vacancies:
    """A clock for each slot without a worker, which stands still while one boots: that takes as long as it takes.

    Args:
        board: who is where
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        #: By slot without a worker, the seconds that count, and the worker that booted when last looked.
        self._seen: dict[int, tuple[float, int]] = {}

    def look(self, slot: int, elapsed: float) -> tuple[float, bool]:
        """Look at a slot.

        Args:
            elapsed: seconds since the last look

        Returns:
            for how many seconds it has had no worker, and whether one has booted since the last look
        """
        if self._board.is_open(slot):
            self._seen.pop(slot, None)
            return 0.0, False
        waited, before = self._seen.get(slot, (-elapsed, 0))
        newcomer = self._board.newcomer(slot)
        # Workers that die while they boot, one after the other, do not stop the clock.
        boots = newcomer != 0 and newcomer == before
        if not boots:
            waited += elapsed
        self._seen[slot] = waited, newcomer
        return waited, boots
