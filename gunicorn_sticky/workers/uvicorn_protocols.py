"""uvicorn's protocols with the gate before them: HTTP by h11 or httptools, and what they upgrade to."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from h11 import SEND_BODY
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

from .asyncio_protocol import ANSWERING, RECEIVING, StickyProtocol, Worker
from .served import Served


class _UvicornProtocol(StickyProtocol):
    """What both have in common."""

    __slots__ = ()

    headers: list[tuple[bytes, bytes]]
    cycle: Any
    ws_protocol_class: Any
    # The server's own, see `http`: to call them so is faster than by `super`.
    _parse: Any
    message_complete: Any
    response_complete: Any

    def __init__(self, worker: Worker, served: Served, /, **kwargs: Any) -> None:
        super().__init__(worker, served, **kwargs)
        self.app = worker.application(served)  # type: ignore[misc]  # kept where the server's class keeps it

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

    def _has_begun(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        """A response has been sent (`uvicorn.protocols.http.h11_impl.H11Protocol.on_response_complete`)."""
        self.response_complete()
        if self._feed is None or not self.transport.is_closing():
            self.response_is_complete()

    def handle_websocket_upgrade(self, *args: Any) -> None:
        """Let another protocol go on (`uvicorn.protocols.http.h11_impl.H11Protocol.handle_websocket_upgrade`)."""
        self.ws_protocol_class = functools.partial(
            web_socket(self.ws_protocol_class), self._sticky_worker, self._served
        )
        super().handle_websocket_upgrade(*args)  # type: ignore[misc]
        self._pass_the_rest()


class _ByH11(_UvicornProtocol):
    __slots__ = ()

    conn: Any

    def handle_events(self) -> None:
        """Look at what the parser has found (`uvicorn.protocols.http.h11_impl.H11Protocol.handle_events`)."""
        super().handle_events()  # type: ignore[misc]
        has_head = self._stage is RECEIVING and (self._has_head or self._has_begun())
        if has_head and self.conn.their_state is not SEND_BODY:
            self._stage = ANSWERING

    def _has_more(self) -> bool:
        return bool(self.conn.trailing_data[0])


class _ByHttpTools(_UvicornProtocol):
    __slots__ = ()

    pipeline: Any
    scope: Any

    def _has_more(self) -> bool:
        # Each message that begins has a scope of its own, and waits in the pipeline when its head has ended.
        return bool(self.pipeline) or self.scope is not self.cycle.scope

    def on_message_complete(self) -> None:
        """A request has ended (`httptools.HttpRequestParser`)."""
        self.message_complete()
        if self._stage is RECEIVING:
            self._stage = ANSWERING


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
        adapter: type = _ByH11
    elif HttpToolsProtocol is not None and issubclass(base, HttpToolsProtocol):
        adapter = _ByHttpTools
    else:
        raise RuntimeError(
            f"uvicorn's {base.__name__} cannot be sticky: set http to 'h11' or 'httptools' in CONFIG_KWARGS"
        )
    own = {
        "_parse": base.data_received,
        "message_complete": getattr(base, "on_message_complete", None),
        "response_complete": base.on_response_complete,
    }
    return type(f"Sticky{base.__name__}", (adapter, base), own)
