"""Import this first to do without optional packages that are here for other tests, and cost each worker 0.2 s of CPU.

python-socketio and python-engineio import them if they can, for clients and for brokers.
"""

import sys

for name in ("aiohttp", "redis", "requests", "websocket"):
    sys.modules[name] = None  # type: ignore[assignment]
