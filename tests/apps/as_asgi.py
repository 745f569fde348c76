"""The applications of this folder, which are written for WSGI, as ASGI applications: ``as_asgi:whoami``.

WebSockets are what a module has as `web_socket`.
"""

import asyncio
import importlib
import io
import os
import sys
from urllib.parse import unquote

from gunicorn_sticky.workers.thread_pool import DaemonPool

threads = DaemonPool(100)


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    module = importlib.import_module(name)
    return as_asgi(module.app, getattr(module, "web_socket", None))


def as_asgi(wsgi, web_socket):
    """Return an ASGI application that runs a WSGI application in threads."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await live(receive, send)
        if scope["type"] == "websocket":
            return await web_socket(scope, receive, send)
        assert scope["type"] == "http"
        body, more = io.BytesIO(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body.write(message.get("body", b""))
            more = message.get("more_body", False)
        body.seek(0)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(threads, respond, wsgi, environ_of(scope, body), loop, send)
        return None

    return app


async def live(receive, send):
    while (kind := (await receive())["type"]) != "lifespan.shutdown":
        await send({"type": f"{kind}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def environ_of(scope, body):
    sticky = scope.get("extensions", {}).get("gunicorn_sticky", {})
    client, server = scope["client"] or (None, None), scope["server"] or ("", "")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": unquote(scope["path"]),
        "QUERY_STRING": scope["query_string"].decode(),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        **{f"gunicorn_sticky.{name}": value for name, value in sticky.items()},
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value.decode("latin-1")
    return environ


def respond(wsgi, environ, loop, send):
    pid = os.getpid()

    def end_child():
        if os.getpid() != pid:
            os._exit(0)  # the application has forked, and a child has no loop to go back to

    def tell(message):
        end_child()
        asyncio.run_coroutine_threadsafe(send(message), loop).result()

    def start_response(status, headers, _exc_info=None):
        tell(
            {
                "type": "http.response.start",
                "status": int(status.split()[0]),
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            }
        )

    try:
        response = wsgi(environ, start_response)
    finally:
        end_child()
    for chunk in response:
        tell({"type": "http.response.body", "body": chunk, "more_body": True})
    tell({"type": "http.response.body"})
