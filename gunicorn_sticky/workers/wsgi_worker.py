"""What kinds have in common that serve WSGI by Gunicorn's own parser: all but asyncio's."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from gunicorn.http.parser import RequestParser

from ..shared.refusals import HOOK_FAILED, NOT_RELEASED, Refusal
from . import response, wsgi
from .connection import Listener
from .core import StickyWorker
from .http2 import Beginning
from .parser import request_class
from .served import Served

if TYPE_CHECKING:
    from .seat import Seat


#: Any head of a request.
_HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class WSGIStickyWorker(StickyWorker):
    """The base of such kinds."""

    wsgi: Any

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        #: By the client's socket.
        self._served: dict[Any, Served] = {}
        super().__init__(*args, seat=seat, **kwargs)

    def _prepare(self, seat: Seat) -> None:
        super()._prepare(seat)
        with contextlib.suppress(RuntimeError):  # a parser that is missing is the workers' affair
            self.refuser(self.cfg)(_HEAD)  # loads what Gunicorn's parser takes

    def _begin(self, seat: Seat) -> None:
        super()._begin(seat)
        if not self.cfg.is_ssl:  # by address then, and what TLS knows of the connection could not be handed over
            RequestParser.mesg_class = request_class(self._served.get, self._before_request, self._after_request)

    def load_wsgi(self) -> None:
        """Load the application, and let it see slot and key."""
        super().load_wsgi()  # type: ignore[misc]
        if self._seat:
            headers = response.header_fields(self.cfg, self._seat)
            self.wsgi = wsgi.with_affinity(self.wsgi, self._served.get, self.slot, headers)

    def handle_http2(self, *args: Any, **kwargs: Any) -> Any:
        """Serve an HTTP/2 connection, one request of it at least (``handle_http2`` of Gunicorn's workers)."""
        return super().handle_http2.__func__(Beginning(self), *args, **kwargs)  # type: ignore[misc]

    def _before_request(self, served: Served, unreader: Any, number: int) -> int:
        """Prepare Gunicorn's parser for a request; see parser.py.

        Raises:
            StopIteration: the request is not for this process
        """
        if not self.may_serve():
            raise StopIteration
        if number == 1 and served.info.unread:
            unreader.unread(served.info.unread)
        # Only the first request may follow a PROXY header, and a connection that was handed over has none left.
        return number + 1 if served.info.unread else number

    def _after_request(self, served: Served, request: Any) -> None:
        """Count a request, and carry what the PROXY header of the connection said, to here and to the next worker."""
        self.load.requested(served)
        if request.proxy_protocol_info:
            served.proxy = request.proxy_protocol_info
        elif served.proxy:
            request.proxy_protocol_info = served.proxy

    def _call_hook(self, served: Served, listener: Listener) -> Refusal | None:
        """Show a connection to the hook, wait for its release, and return how to refuse it, or None."""
        released = threading.Event()
        seconds = self.cfg.sticky_sync_timeout if self.cfg.sticky_sync else None
        try:
            with self._time_limit(seconds):
                connection = self.connection(served, listener, released)
                self.cfg.sticky_connection(self, connection)
                if not self.cfg.sticky_sync or connection.wait(seconds):
                    return None
        except Exception:
            self.log.exception("Exception in the sticky_connection hook")
            return HOOK_FAILED
        return self._not_released()

    def _not_released(self) -> Refusal:
        cfg = self.cfg
        return NOT_RELEASED.because(event=cfg.sticky_sync_event, seconds=cfg.sticky_sync_timeout)

    def _time_limit(self, seconds: float | None) -> contextlib.AbstractContextManager[object]:
        """Return what ends a block, without an exception, after some seconds: only some kinds can interrupt a hook."""
        return contextlib.nullcontext()
