"""The client manager for `socketio.AsyncServer`: workers hear each other without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from socketio import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from ..shared import current
from . import asyncio_driver
from .manager import Peers, alone


@alone(AsyncManager)
class AsyncClusterManager(Peers, AsyncPubSubManager):  # type: ignore[misc]
    """Lets the Socket.IO servers of all workers of a Gunicorn act as one, on one machine: `ClusterManager` for asyncio.

    It does what `socketio.AsyncRedisManager` does, without Redis. In a process that is no worker of ours it is like
    `socketio.AsyncManager`, python-socketio's default. It is made with the same arguments as `ClusterManager`.
    """

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
