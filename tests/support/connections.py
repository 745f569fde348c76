"""A connection that stays open."""

from __future__ import annotations

import json
import socket
from typing import Any


class Connection:
    """A kept-alive client connection that reads one JSON answer after the other."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = self.socket.getsockname()
        self._file = self.socket.makefile("rb")

    def answer(self) -> dict[str, Any]:
        status = self._file.readline()
        assert status.startswith(b"HTTP/1.1 200 "), status + self._file.read(1000)
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        return dict(json.loads(self._file.read(int(headers[b"content-length"]))))

    def close(self) -> None:
        self._file.close()
        self.socket.close()
