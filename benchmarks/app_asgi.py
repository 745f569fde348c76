"""The application of all Gunicorns with ASGI: the empty one, Engine.IO whose messages are echoed, and MCP.

MCP's streamable HTTP (revision 2025-06-18) is spoken as far as its tool's calls need it, with sessions: an initialized
session's calls reach only the process that has it. Its SDK takes a hundred times as long for that as what is measured.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import engineio
from empty import asgi

from gunicorn_sticky import session_id

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

eio = engineio.AsyncServer(async_mode="asgi")
engine = engineio.ASGIApp(eio)
sessions: set[str] = set()


@eio.on("message")
async def echo(sid: str, data: str | bytes) -> None:
    await eio.send(sid, data)


def result(request: dict[str, Any]) -> dict[str, Any]:
    if request["method"] == "initialize":
        info = {"name": "benchmark", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
    return {"content": [{"type": "text", "text": request["params"]["arguments"]["text"]}]}


def answer(method: str, session: str, body: bytes) -> tuple[int, str, dict[str, Any] | None]:
    """Return status, session and what is sent as JSON."""
    request = json.loads(body) if body else {}
    if request.get("method") == "initialize":
        session = session_id()
        sessions.add(session)
    if session not in sessions:
        return 404, session, {"error": "Session not found"}
    if method == "DELETE":
        sessions.remove(session)
        return 200, session, None
    if "id" not in request:
        return 202, session, None
    return 200, session, {"jsonrpc": "2.0", "id": request["id"], "result": result(request)}


async def mcp(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    session = dict(scope["headers"]).get(b"mcp-session-id", b"").decode()
    status, session, sent = answer(scope["method"], session, body)
    data = json.dumps(sent).encode() if sent else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers.append((b"mcp-session-id", session.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    path = scope.get("path")
    await (asgi if path == "/" else mcp if path == "/mcp" else engine)(scope, receive, send)
