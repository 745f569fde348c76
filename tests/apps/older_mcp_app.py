"""examples/mcp_server, with the first version of MCP's SDK."""

import os

from mcp.server.fastmcp import Context, FastMCP

server = FastMCP("Notes")
notes: dict[str, list[str]] = {}


@server.tool()
def note(text: str, ctx: Context) -> list[str]:
    request = ctx.request_context.request
    session = request.headers.get("mcp-session-id") or request.query_params["session_id"]
    notes.setdefault(session, []).append(text)
    return notes[session]


@server.tool()
def slot() -> str:
    return os.environ["GUNICORN_STICKY_SLOT"]


app = server.streamable_http_app()
sse = server.sse_app()
