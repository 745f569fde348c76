"""Which of two masters is active: accepts connections, while there are two of them (SIGUSR2).

Decisions only: here is no process, no signal and no clock. The rules:

 1. A new master becomes active once each of its slots has a worker that takes connections.
 2. A master that has been told to end gives that up to one that goes on, ready or not; and does not take it back.
 3. Whoever is left alone is active, and clears what the other one has left on the board.
 4. A new master that has not shown up after `SHOW_UP` seconds is one that never will: it is of another version.
"""

from __future__ import annotations

from ..shared.board import RUNNING, STARTING, STOPPED, MasterBoard

#: Seconds that a new master has to show up on the board.
SHOW_UP = 10.0


class Succession:
    """A master's view of itself and the other one.

    Args:
        board: its own half of the board

    Attributes:
        other: the other master's half
    """

    def __init__(self, board: MasterBoard) -> None:
        self._board = board
        self.other = board.other()
        #: Until when a new master has to show up.
        self._show_up = 0.0

    def expect(self, now: float) -> None:
        """Note that a new master is about to be executed."""
        self.other = self._board.other()
        self.other.phase = STARTING
        self._show_up = now + SHOW_UP

    def resign(self) -> None:
        """Let the other master accept connections, if it goes on."""
        if self.other.goes_on:
            self.other.become_active_master()

    def forget_other(self) -> None:
        """Clear what another master has left: there is none any more."""
        if self.other.is_current:
            self.other.clear()

    def settle(self, now: float, has_other: bool, is_new: bool, slots: int) -> bool:
        """Become active if that is due.

        Args:
            has_other: whether there is another master
            is_new: whether this master was started by that one
            slots: how many there are

        Returns:
            whether this master goes on, and has become active just now
        """
        board, other = self._board, self.other
        if has_other and other.phase == STARTING and now > self._show_up:
            other.phase = STOPPED
        if board.is_active_master:
            return False
        if has_other:
            is_ready = is_new and all(board.is_open(slot) for slot in range(slots))
            if board.phase != RUNNING or (other.goes_on and not is_ready):
                return False
        board.become_active_master()
        return board.phase == RUNNING
