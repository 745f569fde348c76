"""What the Socket.IO applications know about their clients."""

import os
import sys
from collections import Counter
from typing import Any
from urllib.parse import parse_qs
from weakref import WeakSet

sockets: WeakSet[Any] = WeakSet()
connections: Counter[str | None] = Counter()


def watched(app):
    """Count the TCP connections of each affinity key. Not by port: the kernel may give one out again."""

    def wsgi(environ, start_response):
        if environ["gunicorn.socket"] not in sockets:
            sockets.add(environ["gunicorn.socket"])
            connections[environ.get("gunicorn_sticky.key")] += 1
        return app(environ, start_response)

    return wsgi


def who(environ, transport):
    """Tell who answers, and how the client has come here; `environ` is of its first request."""
    key = environ.get("gunicorn_sticky.key")
    return {
        "pid": os.getpid(),
        "slot": environ.get("gunicorn_sticky.slot"),
        "key": key,
        "started": parse_qs(environ["QUERY_STRING"])["transport"][0],
        "transport": transport,
        "connections": connections[key],
        "gevent_websocket": "geventwebsocket" in sys.modules,
    }
