"""A connection as Gunicorn's threads know it, and until when the loop waits for some of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from ..shared.refusals import Refusal
from .gate import LaterHead
from .served import Served

if TYPE_CHECKING:
    from ..shared.channel import ConnectionInfo

T = TypeVar("T")


class Worker(Protocol):
    """Who serves connections: thread_worker.py."""

    cfg: Any

    def begin(self, conn: ThreadConnection) -> Refusal | None: ...

    def let_go(self, conn: ThreadConnection, graceful: bool) -> None: ...


class ThreadConnection(TConn, Served):  # type: ignore[misc]
    """A connection: Gunicorn's, and ours.

    Args:
        worker: who serves it
        client: its socket
        info: what it came with
    """

    initialized: bool

    def __init__(self, worker: Worker, client: Any, info: ConnectionInfo) -> None:
        Served.__init__(self, info)
        TConn.__init__(self, worker.cfg, client, info.address, info.listener)
        self._worker = worker
        #: The socket that it came with; TLS has one of its own.
        self.client_socket = client
        #: The head of its next request, as far as it has arrived, and how often it has been looked at.
        self.head: LaterHead | None = None
        self.looks = 0
        #: Whether the hook has let it pass; or how its first request is to be refused.
        self.is_admitted = False
        self.refusal: Refusal | None = None
        #: Whether it is closed so that an answer arrives, see shared/refusals.py; and whether that has begun.
        self.lingers = False
        self.is_gone = False
        self.data_ready = True  # a thread gets it when there is something to be read

    def init(self) -> None:
        """Prepare the connection, in a thread (`gunicorn.workers.gthread.TConn.init`).

        Raises:
            StopIteration: its first request is refused
        """
        if self.initialized:
            return
        if self.info.unread:
            # Gunicorn's would look for the preface of HTTP/2 in the socket, where the request is not any more.
            self.initialized = True
            self.sock.setblocking(True)
            self.parser = RequestParser(self.cfg, self.sock, self.client)
        else:
            super().init()
        self.refusal = self._worker.begin(self)
        if self.refusal:
            raise StopIteration

    def close(self, graceful: bool = False) -> None:
        """Close it; Gunicorn's loop calls this."""
        self._worker.let_go(self, graceful)


class Deadlines(Generic[T]):
    """Things to do if what they are about has not come within some seconds, the same for all.

    Args:
        seconds: how many
        overdue: does it
    """

    def __init__(self, seconds: float, overdue: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._overdue = overdue
        #: In their order.
        self._times: dict[T, float] = {}

    def __contains__(self, thing: T) -> bool:
        return thing in self._times

    def add(self, thing: T) -> None:
        """Begin to wait."""
        self._times[thing] = time.monotonic() + self._seconds

    def discard(self, thing: T) -> None:
        """Wait no longer, if that was waited for."""
        self._times.pop(thing, None)

    def first(self) -> float | None:
        """Return when the first is due."""
        return next(iter(self._times.values()), None)

    def expire(self, now: float) -> None:
        """Do what is overdue."""
        while self._times:
            thing, due = next(iter(self._times.items()))
            if due > now:
                break
            del self._times[thing]
            self._overdue(thing)
