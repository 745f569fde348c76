"""Hearing other processes, and letting other programs join, in greenlets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.server import StreamServer
from gevent.socket import wait_read

from .cluster import Cluster, Listener
from .join_socket import JoinSocket

#: Seconds after which hearing lets the rest of the process run.
TURN = 0.005
#: Seconds after which it looks again for what could not be read yet.
AGAIN = 0.001


def messages(cluster: Cluster, log: Any) -> Iterator[bytes]:
    """Return all messages that are told from now on, for ever."""
    return _messages(cluster.listener(log))


def _messages(listener: Listener) -> Iterator[bytes]:
    while True:
        turn = time.monotonic() + TURN
        for message in listener.hear():
            yield message
            if time.monotonic() > turn:
                gevent.sleep(0)
                turn = time.monotonic() + TURN
        if listener.is_behind:
            gevent.sleep(AGAIN)
        else:
            wait_read(listener.fileno())


def serve(entrance: JoinSocket, cluster: Cluster) -> StreamServer:
    """Let programs join, for as long as this process lives, and return the server that does."""

    def admit(client: Any, address: Any) -> None:
        client.setblocking(True)
        entrance.admit(client, cluster)

    server = StreamServer(entrance.socket, admit)
    server.start()
    return server
