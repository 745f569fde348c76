"""Real Socket.IO clients, as programs of their own."""

from __future__ import annotations

import sys

from .harness import TESTS

CLIENTS = TESTS / "clients"
PYTHON = [sys.executable, str(CLIENTS / "client.py")]
JAVASCRIPT = ["node", str(CLIENTS / "client.mjs")]
#: How a client begins, and how it goes on.
MODES = {"polling": ["polling"], "upgrade": ["polling", "websocket"], "websocket": ["websocket"]}
