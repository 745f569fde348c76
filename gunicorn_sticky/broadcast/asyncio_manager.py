"""The client manager for `socketio.AsyncServer`: workers hear each other without a broker."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

from socketio import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from ..shared import current
from . import asyncio_driver
from .manager import Peers


def _at_home(name: str) -> Callable[..., Any]:
    """Return a method of python-socketio's managers: that of the default one where there is nobody to talk to."""
    shared, alone = getattr(AsyncPubSubManager, name), getattr(AsyncManager, name)

    @functools.wraps(shared)
    async def method(self: AsyncClusterManager, *args: Any, **kwargs: Any) -> Any:
        return await (alone if self._peers is None else shared)(self, *args, **kwargs)

    return method


class AsyncClusterManager(Peers, AsyncPubSubManager):  # type: ignore[misc]
    """Lets the Socket.IO servers of all workers of a Gunicorn act as one, on one machine: `ClusterManager` for asyncio.

    It does what `socketio.AsyncRedisManager` does, without Redis. In a process that is no worker of ours it is like
    `socketio.AsyncManager`, python-socketio's default.

    Args:
        path: of the socket that the setting ``sticky_cluster_socket`` names, for `write_only`
        channel: a name; only managers with the same one hear each other
        write_only: only emit, from another program of the same user
        logger: instead of that of the Socket.IO server
        json: instead of the module `json`, for `write_only`

    Raises:
        ValueError: `path` is given without `write_only`
    """

    emit = _at_home("emit")
    can_disconnect = _at_home("can_disconnect")
    disconnect = _at_home("disconnect")
    enter_room = _at_home("enter_room")
    leave_room = _at_home("leave_room")
    close_room = _at_home("close_room")

    _messages: AsyncIterator[bytes] | None = None

    def initialize(self) -> None:
        """Listen; the Socket.IO server calls this before its first client connects."""
        if self._messages is not None:
            return
        if current.cluster is not None:
            cluster, _messages, log = current.cluster
            self._messages = asyncio_driver.messages(cluster, log)
            super().initialize()
        else:
            AsyncManager.initialize(self)
            self._warn_of_nobody()

    async def _publish(self, data: dict[str, Any]) -> None:
        if self.server is not None:
            self.initialize()  # before a client has come: what is published may call for an answer
        message = self._encode(data)
        if self._member is not None:
            await asyncio.to_thread(self._tell, message)  # it may have to join first, and wait for that
        else:
            self._tell(message)

    async def _listen(self) -> AsyncIterator[str]:
        assert self._messages is not None
        decode = self._decoder()
        async for message in self._messages:
            if (text := decode(message)) is not None:
                yield text
