"""The listening socket of the status server. The arbiter opens it, so nothing here loads the server's libraries."""

from __future__ import annotations

import socket

from ..shared.unpatched import Socket, getaddrinfo


class StatusSocket:
    """The listening socket.

    Args:
        address: ``HOST:PORT``
        fd: of a socket that is there already; else a new one is made

    Raises:
        OSError: there is no such address, or it is in use
    """

    def __init__(self, address: str, fd: int | None = None) -> None:
        self.address = address
        if fd is not None:
            self.socket = Socket(fileno=fd)
            self.socket.setblocking(False)  # whatever socket.setdefaulttimeout says
            return
        host, _, port = address.rpartition(":")
        family, kind, _, _, where = getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        self.socket = Socket(family, kind)
        self.socket.setblocking(False)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(where)
            self.socket.listen()
        except OSError:
            self.socket.close()
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return int(self.socket.fileno())

    def close(self) -> None:
        """Close the socket, here."""
        self.socket.close()
