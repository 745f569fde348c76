"""Refusing connections: the HTTP answer that the client gets, and the line in the log that the operator gets."""

from __future__ import annotations

import time
from fcntl import ioctl
from http import HTTPStatus
from termios import FIONREAD
from typing import Any

#: Seconds after which a client may try again.
RETRY_AFTER = 5
#: Seconds between two lines of one kind in the log.
INTERVAL = 1.0


def name(address: Any) -> str:
    """Return how the log names a peer."""
    return str(address[0]) if isinstance(address, tuple) else "a Unix socket"


def is_silent(fd: int) -> bool:
    """Tell whether a connection has no bytes to be read."""
    return ioctl(fd, FIONREAD, bytes(4)) == bytes(4)


def answer(status: HTTPStatus, message: str) -> bytes:
    """Return a whole HTTP/1.1 response that says `message` and closes the connection."""
    body = f"{status.value} {status.phrase}: {message}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Connection: close\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head += f"Retry-After: {RETRY_AFTER}\r\n"
    return head.encode() + b"\r\n" + body


class Notices:
    """Writes to the log, at most one line a second for each setting that would have to be changed.

    Args:
        log: Gunicorn's logger
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        #: By setting: when the next line may be written, and how many have been left out.
        self._next: dict[str, tuple[float, int]] = {}

    def warn(self, setting: str, text: str, *args: Any) -> None:
        """Log what has gone wrong, and the setting to change."""
        now = time.monotonic()
        due, left_out = self._next.get(setting, (0.0, 0))
        if now < due:
            self._next[setting] = due, left_out + 1
            return
        self._next[setting] = now + INTERVAL, 0
        more = f", and {left_out} more like it" if left_out else ""
        self._log.warning(f"{text} (setting: {setting}){more}", *args)
