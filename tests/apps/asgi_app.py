"""An ASGI application that is one: lifespan, background work, event streams and WebSockets."""

import asyncio
import json
import os
import sys

from waiting import wait_until

PARSERS_AND_LOOPS = ("gunicorn_h1c", "httptools", "h11", "uvloop", "wsproto")
done: list[str] = []


def note(text):
    print(f"noted {os.getpid()} {text}", file=sys.stderr, flush=True)


async def app(scope, receive, send):
    await {"lifespan": lifespan, "http": http, "websocket": websocket}[scope["type"]](scope, receive, send)


async def lifespan(scope, receive, send):
    while True:
        kind = (await receive())["type"]
        note(kind)
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def http(scope, receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    path = scope["path"]
    if path == "/events":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while True:
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % os.getpid(), "more_body": True})
            await asyncio.sleep(0.05)
    body = json.dumps(
        {
            "pid": os.getpid(),
            "path": path,
            "size": size,
            "done": done,
            "modules": [
                name for name in ("gunicorn_h1c", "httptools", "h11", "uvloop", "wsproto") if name in sys.modules
            ],
            **scope["extensions"]["gunicorn_sticky"],
        }
    ).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
    if path.startswith("/background/"):
        await asyncio.to_thread(wait_until, lambda: os.path.exists("release"))
        done.append(path)


async def websocket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
