"""Clients of MCP servers without sessions (2026-07-28): python mcp_tokens.py URL CLIENTS TOOL

Each has a token of its own, and calls the tool "note" or "slot" six times, over new connections. Prints a line of JSON:
what each call of each client has been answered.
"""

import asyncio
import json
import sys
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

CALLS = 6

url, clients, tool = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def texts(result: Any) -> Any:
    return [content.text for content in result.content]


async def run(number: int) -> list[Any]:
    headers = {"Authorization": f"Bearer {number}", "Connection": "close"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        assert client.protocol_version >= "2026-07-28"
        arguments = [{"text": f"note {call}"} if tool == "note" else {} for call in range(CALLS)]
        return [texts(await client.call_tool(tool, given)) for given in arguments]


async def main() -> None:
    print(json.dumps([await run(number) for number in range(clients)]))


asyncio.run(main())
