"""What Engine.IO (python-socketio, Flask-SocketIO) needs from its server, so that applications need no change.

- WebSocket through simple-websocket, whatever else is installed. python-engineio uses gevent-websocket as soon as it
  can be imported, but that only works under gevent-websocket's own Gunicorn worker; under any other, each WebSocket is
  a 500. simple-websocket needs no support from the server.
- Session ids that carry their worker, see session.py.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from ._startup import when_imported
from .session import session_id


def use_simple_websocket() -> None:
    """Make python-engineio's gevent mode use simple-websocket in this process, imported already or later."""
    when_imported("engineio.async_drivers.gevent", _patch)


def own_engineio_ids() -> None:
    """Make Engine.IO mint ids of this worker in this process, imported already or later."""
    when_imported("engineio.base_server", _patch_ids)


def _patch_ids(module: ModuleType) -> None:
    generate_id = module.BaseServer.generate_id

    @functools.wraps(generate_id)
    def own_id(self: Any) -> str:
        return session_id(generate_id(self))

    module.BaseServer.generate_id = own_id


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
