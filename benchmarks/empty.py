"""Applications that do nothing but say which process answers."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

BODY = f"hello {os.getpid():08}".encode()
LENGTH = str(len(BODY))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", LENGTH)])
    return [BODY]


async def asgi(scope: dict[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # which says that there is no lifespan
    headers = [(b"content-length", LENGTH.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
