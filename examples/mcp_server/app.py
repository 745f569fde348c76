"""A server of the Model Context Protocol, with the Python SDK, that remembers notes.

    gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by session -w 4 app:app

Over SSE it is ``app:sse``. Clients of the protocol's version 2026-07-28 have no session: for them it is

    gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by header --sticky-header authorization -w 4 app:app
"""

import os

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("Notes")
notes: dict[str, list[str]] = {}


def client(ctx: Context) -> str:
    """Return what tells a client from others: its session, or its token, which is not looked at any further."""
    request = ctx.request_context.request
    session = request.headers.get("mcp-session-id") or request.query_params.get("session_id")
    return str(session or request.headers["authorization"])


@server.tool()
def note(text: str, ctx: Context) -> list[str]:
    """Take a note, and return all notes of this client."""
    mine = notes.setdefault(client(ctx), [])
    mine.append(text)
    return mine


@server.tool()
def slot() -> str:
    """Tell which worker this is."""
    return os.environ["GUNICORN_STICKY_SLOT"]


app = server.streamable_http_app()
sse = server.sse_app()
