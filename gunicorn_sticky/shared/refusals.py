"""Why a connection is refused: what the client is answered, and which setting the operator is told to change.

Who refuses sends `Refusal.response`, and then lingers: closing with bytes unread resets the connection, and a reset
destroys the answer on its way. So it ends its own side, and what the client still sends is read and discarded, until
the client closes or `LINGER` seconds have passed. Two do so: the dispatcher (dispatcher/lingering.py) and the worker.
"""

from __future__ import annotations

from fcntl import ioctl
from http import HTTPStatus
from termios import FIONREAD
from typing import Any, NamedTuple

#: Seconds that a client has to read our answer.
LINGER = 2.0
#: Seconds after which a client may try again.
RETRY_AFTER = 5


class Refusal(NamedTuple):
    """An answer in the place of the application's."""

    status: int
    #: What is wrong, with names of what `because` fills in.
    message: str
    #: What to change, if this should not have been refused.
    setting: str

    def because(self, **values: object) -> Refusal:
        """Return the same with these values in its message."""
        return self._replace(message=self.message.format(**values))

    def response(self) -> bytes:
        """Return a whole HTTP/1.1 response that says what is wrong and closes the connection."""
        status = HTTPStatus(self.status)
        body = f"{status.value} {status.phrase}: {self.message}\n".encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "Connection: close\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            head += f"Retry-After: {RETRY_AFTER}\r\n"
        return head.encode() + b"\r\n" + body


# What the head of a request lacks, to the dispatcher or, on a connection that stays open, to the worker.
MALFORMED = Refusal(400, "{error}", "sticky_by")
MISSING = Refusal(400, "{error}", "sticky_ignore_missing_header")
TOO_SLOW = Refusal(408, "the {wanted} did not arrive within {seconds:g} s", "sticky_header_timeout")
TOO_LARGE = Refusal(431, "the first {size} bytes do not show the {wanted}", "sticky_header")
# What the server has no room for, or nobody.
TOO_MANY = Refusal(503, "too many connections ({reason})", "ulimit -n")
NO_WORKER = Refusal(503, "there has been no worker for this client for {seconds:g} s", "timeout")
FULL_WORKER = Refusal(503, "the worker of this client takes no more connections", "workers or worker_connections")
FULL_DISPATCHER = Refusal(503, "the dispatcher takes no connections", "workers or worker_connections")
# What the application has not done before the first request of a connection.
NOT_RELEASED = Refusal(503, "the application did not emit {event!r} within {seconds} s", "sticky_sync_timeout")
HOOK_FAILED = Refusal(500, "the sticky_connection hook has failed", "sticky_connection")


def name(address: Any) -> str:
    """Return how the log names a peer."""
    return str(address[0]) if isinstance(address, tuple) else "a Unix socket"


def is_silent(fd: int) -> bool:
    """Tell whether a connection has no bytes to be read."""
    return ioctl(fd, FIONREAD, bytes(4)) == bytes(4)
