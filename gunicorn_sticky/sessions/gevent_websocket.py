"""WebSocket of Engine.IO (python-socketio, Flask-SocketIO) under gevent, so that applications need no change.

- Whole frames: simple-websocket takes for granted that ``send()`` sends all that it is given, which gevent's does not,
  if the client is slow. And several greenlets send.
- WebSocket through simple-websocket, whatever else is installed. python-engineio uses gevent-websocket as soon as it
  can be imported, but that only works under gevent-websocket's own Gunicorn worker; under any other, each WebSocket is
  a 500. simple-websocket needs no support from the server.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from gevent.lock import Semaphore

from ..shared.post_import import when_imported


def use_simple_websocket() -> None:
    """Make python-engineio's gevent mode use simple-websocket in this process, imported already or later."""
    when_imported("engineio.async_drivers.gevent", _patch)
    when_imported("simple_websocket.ws", _patch_sends)


class _WholeSends:
    """A client's socket that sends all that it is given, what one greenlet sends after what another does."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = Semaphore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def send(self, data: bytes) -> int:
        """Send all of `data`, and return its length."""
        with self._lock:
            self._client.sendall(data)
        return len(data)


def _patch_sends(module: ModuleType) -> None:
    initialize = module.Base.__init__

    @functools.wraps(initialize)
    def init(self: Any, sock: Any = None, *args: Any, **kwargs: Any) -> None:
        initialize(self, sock and _WholeSends(sock), *args, **kwargs)

    module.Base.__init__ = init


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
