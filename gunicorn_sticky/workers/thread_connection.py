"""A connection as Gunicorn's threads know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gunicorn.http.body import LengthReader
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from ..shared.refusals import Refusal, is_silent
from .gate import LaterHead
from .served import Served

if TYPE_CHECKING:
    from ..shared.channel import ConnectionInfo


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

    def is_over(self) -> bool:
        """Tell whether no more comes from the client, so that its answer arrives though the socket is closed at once.

        So it is when its last request has asked for that (RFC 9112, section 9.6), and all of it has been read.
        """
        fd, is_plain = self.sock.fileno(), self.sock is self.client_socket and isinstance(self.parser, RequestParser)
        request = self.parser.mesg if is_plain and fd >= 0 else None
        if request is None or request.must_close or not request.should_close():
            return False
        body = request.body.reader
        return isinstance(body, LengthReader) and body.length == 0 and is_silent(fd)

    def close(self, graceful: bool = False) -> None:
        """Close it; Gunicorn's loop calls this."""
        self._worker.let_go(self, graceful)
