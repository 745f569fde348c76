"""uvicorn's protocols with the gate before them: HTTP by h11 or httptools, and what they upgrade to."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from h11 import SEND_BODY
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

from .asyncio_protocol import Stage, StickyProtocol, Worker
from .served import Served


class _UvicornProtocol(StickyProtocol):
    """What both have in common."""

    headers: list[tuple[bytes, bytes]]
    cycle: Any
    ws_protocol_class: Any

    def __init__(self, worker: Worker, served: Served, /, **kwargs: Any) -> None:
        super().__init__(worker, served, **kwargs)
        self.app = worker.application(served)
        if self.ws_protocol_class is not None:
            self.ws_protocol_class = functools.partial(web_socket(self.ws_protocol_class), worker, served)

    def _parse(self, data: bytes) -> None:
        super(StickyProtocol, self).data_received(data)

    def _body_length(self) -> int | None:
        length = None
        for name, value in self.headers:
            if name == b"transfer-encoding":
                return None
            if name == b"content-length":
                length = int(value)
        return length

    def _stop_idle_timer(self) -> None:
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]

    def _head_is_complete(self) -> None:
        super()._head_is_complete()
        self._sticky_worker.count_request()
        if not self._sticky_worker.alive:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """A response has been sent (`uvicorn.protocols.http.h11_impl.H11Protocol.on_response_complete`)."""
        super().on_response_complete()  # type: ignore[misc]
        if not self.transport.is_closing():
            self._response_is_complete()

    def handle_websocket_upgrade(self, *args: Any) -> None:
        """Let another protocol go on (`uvicorn.protocols.http.h11_impl.H11Protocol.handle_websocket_upgrade`)."""
        self._sticky_worker.load.requested(self._served)
        super().handle_websocket_upgrade(*args)  # type: ignore[misc]
        self._pass_the_rest()


class _ByH11(_UvicornProtocol):
    conn: Any

    def handle_events(self) -> None:
        """Look at what the parser has found (`uvicorn.protocols.http.h11_impl.H11Protocol.handle_events`)."""
        cycle = self.cycle
        super().handle_events()  # type: ignore[misc]
        if self._stage is not Stage.RECEIVING:
            return
        if self.cycle is not cycle:
            self._head_is_complete()
        if self._has_head and self.conn.their_state is not SEND_BODY:
            self._message_is_complete()

    def _has_more(self) -> bool:
        return bool(self.conn.trailing_data[0])

    def _head_is_complete(self) -> None:
        super()._head_is_complete()
        if not self.cycle.keep_alive:  # which it closes for, and says nothing
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]


class _ByHttpTools(_UvicornProtocol):
    #: Whether another message has begun before the end of the last one was known here.
    _overrun = False

    def on_message_begin(self) -> None:
        """A request begins (`httptools.HttpRequestParser`)."""
        self._overrun = self._stage is Stage.ANSWERING
        super().on_message_begin()  # type: ignore[misc]

    def _has_more(self) -> bool:
        return self._overrun

    def on_headers_complete(self) -> None:
        """The head of a request has ended (`httptools.HttpRequestParser`)."""
        cycle = self.cycle
        super().on_headers_complete()  # type: ignore[misc]
        if self.cycle is not cycle:
            self._head_is_complete()

    def on_message_complete(self) -> None:
        """A request has ended (`httptools.HttpRequestParser`)."""
        super().on_message_complete()  # type: ignore[misc]
        self._message_is_complete()


class _WebSocket(asyncio.Protocol):
    def __init__(self, worker: Worker, served: Served, /, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sticky_worker = worker
        self._served = served
        self.app = worker.application(served)

    def connection_lost(self, exc: Exception | None) -> None:
        self._sticky_worker.disconnected(self._served)
        super().connection_lost(exc)


@functools.cache
def web_socket(base: type) -> type:
    """Return the sticky form of a class of WebSocket protocols."""
    return type(f"Sticky{base.__name__}", (_WebSocket, base), {})


def http(base: type) -> type:
    """Return the sticky form of a class of HTTP protocols.

    Raises:
        RuntimeError: it is neither h11's nor httptools'
    """
    if issubclass(base, H11Protocol):
        return type(f"Sticky{base.__name__}", (_ByH11, base), {})
    if HttpToolsProtocol is not None and issubclass(base, HttpToolsProtocol):
        return type(f"Sticky{base.__name__}", (_ByHttpTools, base), {})
    raise RuntimeError(f"uvicorn's {base.__name__} cannot be sticky: set http to 'h11' or 'httptools' in CONFIG_KWARGS")
