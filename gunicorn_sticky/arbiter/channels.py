"""The channels of a master, and who has which end of them."""

from __future__ import annotations

from ..shared.board import SEATS
from ..shared.channel import Channel
from .upgrade import Inheritance


class MasterChannels:
    """All channels of a master. It keeps both ends of each, and reads none.

    Args:
        inherited: from the master that has started this one

    Attributes:
        slots: one a slot; they are kept when the slot goes, as what is in them is routed anew
        seats: by session, one a seat, see shared/board.py
        other_seats: those of the other master, while there is one
        returns: by which workers hand connections back; the same for both masters
    """

    def __init__(self, inherited: Inheritance | None) -> None:
        self.slots: list[Channel] = []
        self.seats = inherited.new_seat_channels if inherited else []
        self.other_seats = inherited.seat_channels if inherited else []
        self.returns = inherited.returns if inherited else Channel()

    def open(self, slots: int, by_session: bool) -> None:
        """Have channels for as many slots, at least."""
        while len(self.slots) < slots:
            self.slots.append(Channel())
        while by_session and len(self.seats) < len(self.slots) * SEATS:
            self.seats.append(Channel())

    def open_others(self) -> None:
        """Make the channels of another master, so that each of the two knows the way to the other one's workers."""
        self.other_seats = [Channel() for _ in self.seats]

    def close_others(self) -> None:
        """Close what leads to the workers of a master that is gone, once nothing is in there."""
        if not any(channel.queued() for channel in self.other_seats):
            for channel in self.other_seats:
                channel.close()
            self.other_seats = []

    def of_seat(self, seat: int) -> Channel | None:
        """Return the channel of a seat, or None if there are none."""
        return self.seats[seat] if self.seats else None

    def queued(self, slot: int) -> int:
        """Return about how many connections wait for the workers of a slot."""
        return sum(channel.queued() for channel in (self.slots[slot], *self.seats[slot * SEATS : (slot + 1) * SEATS]))

    def leave(self, slot: int | None, seat: int | None) -> None:
        """In a new worker, keep the receiving ends for its slot and its seat, and close what is not its own.

        Args:
            slot, seat: the worker's; None in a process that is no worker
        """
        for channels, own in ((self.slots, slot), (self.seats, seat), (self.other_seats, None)):
            for number, channel in enumerate(channels):
                if number == own:
                    channel.close_sender()
                else:
                    channel.close()
        self.returns.close_receiver()
