"""Session ids of the Model Context Protocol's Python SDK, and so of FastMCP, that carry their worker, see minting.py.

Over streamable HTTP clients send them as the header ``Mcp-Session-Id``, over SSE as the query parameter ``session_id``,
which has to be a UUID.
"""

from __future__ import annotations

from typing import Any

from ..shared.post_import import when_imported
from .minting import new_uuid


def own_ids() -> None:
    """Make MCP's servers mint ids of this worker in this process, imported already or later."""
    when_imported("mcp.server.streamable_http_manager", _patch)
    when_imported("mcp.server.sse", _patch)


def _patch(module: Any) -> None:
    module.uuid4 = new_uuid
