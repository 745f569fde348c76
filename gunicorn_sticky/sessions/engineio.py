"""Session ids of Engine.IO (python-socketio, Flask-SocketIO) that carry their worker, see minting.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..shared.post_import import when_imported
from .minting import own_id


def own_ids() -> None:
    """Make Engine.IO mint ids of this worker in this process, imported already or later."""
    when_imported("engineio.server", lambda module: _patch(module.Server))
    when_imported("engineio.async_server", lambda module: _patch(module.AsyncServer))


class _OwnIds:
    """What a server calls for an id: its ``generate_id``, whoever wrote that, and an owner for what it returns."""

    def __init__(self, generate_id: Callable[[], str]) -> None:
        self._generate_id = generate_id

    def __call__(self) -> str:
        return own_id(self._generate_id())


def _patch(server: Any) -> None:
    handle_connect = server._handle_connect

    # Applications make their own ids by a subclass or an attribute of the server, and may begin to do so at any time.
    # So look just before the server asks for one.
    @functools.wraps(handle_connect)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.generate_id, _OwnIds):
            self.generate_id = _OwnIds(self.generate_id)
        return handle_connect(self, *args, **kwargs)  # AsyncServer's is a coroutine function

    server._handle_connect = connect
