"""The application of all Gunicorns in the benchmark: says which process answers, and echoes Engine.IO's messages."""

import os
from collections.abc import Callable
from typing import Any

import engineio

eio = engineio.Server(async_mode="gevent")
BODY = f"hello {os.getpid():08}".encode()


@eio.on("message")
def echo(sid: str, data: str | bytes) -> None:
    eio.send(sid, data)


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


app = engineio.WSGIApp(eio, hello)
