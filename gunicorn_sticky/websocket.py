"""WebSocket for Engine.IO through simple-websocket, whatever else is installed.

python-engineio uses gevent-websocket as soon as it can be imported, but that only works under gevent-websocket's own
Gunicorn worker; under any other, each WebSocket is a 500. simple-websocket needs no support from the server.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ._startup import when_imported


def use_simple_websocket() -> None:
    """Make python-engineio's gevent mode use simple-websocket in this process, imported already or later."""
    when_imported("engineio.async_drivers.gevent", _patch)


def _patch(driver: ModuleType) -> None:
    if driver.SimpleWebSocketWSGI is not None:
        return  # gevent-websocket is not installed
    import gevent.event
    import gevent.selectors
    from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI

    class WebSocketWSGI(SimpleWebSocketWSGI):  # type: ignore[misc]
        def __init__(self, handler: Any, server: Any) -> None:
            super().__init__(
                handler,
                server,
                thread_class=driver.Thread,
                event_class=gevent.event.Event,
                selector_class=gevent.selectors.DefaultSelector,
            )

    driver._async["websocket"] = WebSocketWSGI
