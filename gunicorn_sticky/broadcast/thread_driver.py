"""Hearing other processes, and letting other programs join, in threads."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from typing import Any

from .cluster import Cluster, Listener
from .join_socket import JoinSocket

#: Seconds after which it looks again for what could not be read yet.
AGAIN = 0.001


def messages(cluster: Cluster, log: Any) -> Iterator[bytes]:
    """Return all messages that are told from now on, for ever."""
    return _messages(cluster.listener(log))


def _messages(listener: Listener) -> Iterator[bytes]:
    bell = select.poll()
    bell.register(listener.fileno(), select.POLLIN)
    while True:
        yield from listener.hear()
        if listener.is_behind:
            time.sleep(AGAIN)
        else:
            bell.poll()


def serve(entrance: JoinSocket, cluster: Cluster) -> None:
    """Let programs join, for as long as this process lives."""

    def accept() -> None:
        waiting = select.poll()
        waiting.register(entrance.fileno(), select.POLLIN)
        while True:
            waiting.poll()
            try:
                client, _address = entrance.socket.accept()
            except OSError:  # another worker was faster, or there are no descriptors left
                time.sleep(AGAIN)
                continue
            client.setblocking(True)
            threading.Thread(target=admit, args=(client,), daemon=True).start()

    def admit(client: Any) -> None:
        with client:
            entrance.admit(client, cluster)

    threading.Thread(target=accept, name="gunicorn-sticky-join", daemon=True).start()
