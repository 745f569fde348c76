"""The inbox: what a worker has in the place of a listening socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..shared.channel import Channel, ConnectionInfo


class Inbox:
    """The receiving end of a channel, in the place of a listening socket."""

    def __init__(self, channel: Channel) -> None:
        self.receive = channel.receive
        self.fileno = channel.fileno
        self.close = channel.close

    def setblocking(self, flag: bool) -> None:
        """Do nothing: receiving never blocks."""


def family(info: ConnectionInfo) -> socket.AddressFamily:
    """Return the address family of a connection."""
    if not isinstance(info.listener, tuple):
        return socket.AF_UNIX
    return socket.AF_INET if len(info.listener) == 2 else socket.AF_INET6
