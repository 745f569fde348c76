"""Hearing other processes, and letting other programs join, in an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from .cluster import Cluster, Listener
from .join_socket import JoinSocket

#: Seconds after which hearing lets the rest of the loop run.
TURN = 0.005
#: Seconds after which it looks again for what could not be read yet.
AGAIN = 0.001


def messages(cluster: Cluster, log: Any) -> AsyncIterator[bytes]:
    """Return all messages that are told from now on, for ever."""
    return _messages(cluster.listener(log))


async def _messages(listener: Listener) -> AsyncIterator[bytes]:
    while True:
        turn = time.monotonic() + TURN
        for message in listener.hear():
            yield message
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN
        if listener.is_behind:
            await asyncio.sleep(AGAIN)
        else:
            await _readable(listener.fileno())


async def _readable(fd: int) -> None:
    """Wait until there is something to read. In between nobody watches, so that the loop has nothing to do."""
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(fd, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(fd)


def serve(entrance: JoinSocket, cluster: Cluster) -> None:
    """Let programs join, for as long as the loop runs."""
    loop = asyncio.get_running_loop()

    def accept() -> None:
        try:
            client, _address = entrance.socket.accept()
        except OSError:  # another worker was faster
            return
        client.setblocking(False)
        loop.add_reader(client.fileno(), leave, client)
        with contextlib.suppress(OSError):
            entrance.greet(client, cluster)

    def leave(client: Any) -> None:
        loop.remove_reader(client.fileno())
        client.close()

    loop.add_reader(entrance.fileno(), accept)
