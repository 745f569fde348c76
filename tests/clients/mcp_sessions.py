"""Clients of MCP servers, with the protocol's own SDK: python mcp_sessions.py URL SESSIONS

Each takes six notes, and looks whether the server remembers all of them. Prints a line of JSON: what went wrong, and
which workers have answered.
"""

import asyncio
import json
import sys
from functools import partial
from typing import Any

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

CALLS = 6
#: Sessions at once.
CROWD = 10
#: Seconds that a request may take on a busy machine, where the SDK has a shorter default.
TIMEOUT = 60

url, sessions = sys.argv[1], int(sys.argv[2])
connect: Any = partial(sse_client, timeout=TIMEOUT) if url.endswith("/sse") else streamable_http_client
crowd = asyncio.Semaphore(CROWD)
slots: set[str] = set()


def texts(result: Any) -> list[str]:
    """Return the list that a tool has returned."""
    found = [content.text for content in result.content]
    return json.loads(found[0]) if len(found) == 1 and found[0].startswith("[") else found


async def run(number: int) -> str | None:
    async with crowd:
        try:
            async with connect(url) as (read, write, *_), ClientSession(read, write) as session:
                await session.initialize()
                said: list[str] = []
                for call in range(CALLS):
                    said.append(f"note {call} of {number}")
                    answer = texts(await session.call_tool("note", {"text": said[-1]}))
                    if answer != said:
                        return f"{answer} instead of {said}"
                slots.update(texts(await session.call_tool("slot", {})))
        except Exception as error:
            return repr(error)
        return None


async def main() -> None:
    failed = [found for found in await asyncio.gather(*map(run, range(sessions))) if found]
    print(json.dumps({"failed": failed, "slots": sorted(slots)}))


asyncio.run(main())
