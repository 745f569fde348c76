"""A server of the Model Context Protocol, with FastMCP, that remembers a session's notes.

    gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by session -w 4 app:app

Each worker has the state of its own sessions.
"""

import os

from fastmcp import Context, FastMCP

server = FastMCP("Notes")


@server.tool
async def note(text: str, ctx: Context) -> list[str]:
    """Take a note, and return all notes of this session."""
    notes = [*(await ctx.get_state("notes") or []), text]
    await ctx.set_state("notes", notes)
    return notes


@server.tool
def slot() -> str:
    """Tell which worker this is."""
    return os.environ["GUNICORN_STICKY_SLOT"]


app = server.http_app()
