"""The applications of scaling.py: they begin sessions, and know them; Engine.IO has WebSockets, which are silent."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import engineio

from gunicorn_sticky import session_id

#: No heartbeat is due within a run.
OPTIONS = {"ping_interval": 3600, "ping_timeout": 3600}

_sessions: set[str] = set()


def answer(path: str, query: str) -> bytes:
    """Begin a session, and say who has it and what it is called; or end one, if it is one of this worker's."""
    if path == "/begin":
        sid = session_id()
        _sessions.add(sid)
        return f"{os.getpid()} {sid}".encode()
    sid = parse_qs(query)["sid"][0]
    known = sid in _sessions
    _sessions.discard(sid)
    return b"known" if known else b"not known"


def wsgi(async_mode: str) -> Any:
    engine = engineio.WSGIApp(engineio.Server(async_mode=async_mode, **OPTIONS))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/engine.io/"):
            return engine(environ, start_response)
        body = answer(path, environ["QUERY_STRING"])
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return app


def asgi() -> Any:
    engine = engineio.ASGIApp(engineio.AsyncServer(async_mode="asgi", **OPTIONS))

    async def app(scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path.startswith("/engine.io/"):
            await engine(scope, receive, send)
            return
        body = answer(path, scope["query_string"].decode())
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
