"""The application of all Gunicorns with WSGI: the empty one, and Engine.IO whose messages are echoed."""

from typing import Any

import engineio
from empty import wsgi


def create(async_mode: str) -> Any:
    eio = engineio.Server(async_mode=async_mode)
    eio.on("message", lambda sid, data: eio.send(sid, data))
    engine = engineio.WSGIApp(eio)
    return lambda environ, start: (wsgi if environ["PATH_INFO"] == "/" else engine)(environ, start)
