"""What Engine.IO (python-socketio, Flask-SocketIO) needs from its server, so that applications need no change.

- Whole frames: simple-websocket takes for granted that ``send()`` sends all that it is given, which gevent's does not,
  if the client is slow. And several greenlets send.
- WebSocket through simple-websocket, whatever else is installed. python-engineio uses gevent-websocket as soon as it
  can be imported, but that only works under gevent-websocket's own Gunicorn worker; under any other, each WebSocket is
  a 500. simple-websocket needs no support from the server.
- Session ids that carry their worker, see minting.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gevent.lock import Semaphore

from ..shared.post_import import when_imported
from .minting import own_id


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


def own_engineio_ids() -> None:
    """Make Engine.IO mint ids of this worker in this process, imported already or later."""
    when_imported("engineio.server", _patch_ids)


class _OwnIds:
    """What a server calls for an id: its ``generate_id``, whoever wrote that, and an owner for what it returns."""

    def __init__(self, generate_id: Callable[[], str]) -> None:
        self._generate_id = generate_id

    def __call__(self) -> str:
        return own_id(self._generate_id())


def _patch_ids(module: ModuleType) -> None:
    handle_connect = module.Server._handle_connect

    # Applications make their own ids by a subclass or an attribute of the server, and may begin to do so at any time.
    # So look just before the server asks for one.
    @functools.wraps(handle_connect)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.generate_id, _OwnIds):
            self.generate_id = _OwnIds(self.generate_id)
        return handle_connect(self, *args, **kwargs)

    module.Server._handle_connect = connect


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
