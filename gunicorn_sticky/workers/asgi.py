"""What an ASGI application sees of stickiness (ASGI 3.0), and what its responses tell the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .served import Served

#: The messages that bear a response's header fields.
_WITH_HEADERS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_CLOSE = [(b"connection", b"close")]


def with_affinity(
    application: Any,
    served: Served,
    slot: int,
    headers: Callable[[Served, str], Sequence[tuple[str, str]]] | None,
    count: Callable[[Served], bool | None],
) -> Any:
    """Return an application that sees slot and key in its scope, and whose responses have our own header fields.

    Args:
        application: the user's
        served: the connection
        slot: the worker's
        headers: returns our header fields for a response, given the connection and the URL's scheme; None if there are
            none
        count: called for each request; it tells whether the connection has to close
    """

    # No coroutine: that would be one more frame in each of the application's steps.
    def asgi(scope: dict[str, Any], receive: Any, send: Any) -> Any:
        scope.setdefault("extensions", {})["gunicorn_sticky"] = {"slot": slot, "key": str(served.key)}
        if count(served) and scope["type"] == "http":
            send = _with_headers(_CLOSE, send)
        if headers is not None:
            scheme = scope.get("scheme")
            if more := headers(served, "https" if scheme == "wss" else str(scheme)):
                send = _with_headers([(name.encode(), value.encode()) for name, value in more], send)
        return application(scope, receive, send)

    return asgi


def _with_headers(more: Sequence[tuple[bytes, bytes]], send: Any) -> Callable[[Any], Awaitable[None]]:
    """Return a ``send`` that also sends our own headers."""

    async def sticky(message: Any) -> None:
        if message["type"] in _WITH_HEADERS:
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sticky
