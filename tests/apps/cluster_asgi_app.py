"""cluster_app.py for asyncio: python-socketio's AsyncServer with a cluster manager."""

import asyncio
import inspect
import itertools
import os

import socketio

from gunicorn_sticky import AsyncClusterManager

sio = socketio.AsyncServer(async_mode="asgi", namespaces=["/", "/other"], client_manager=AsyncClusterManager())
app = socketio.ASGIApp(sio)
numbers = itertools.count(1)


@sio.on("where")
async def on_where(sid):
    """Tell who serves the client."""
    scope = sio.get_environ(sid)["asgi.scope"]
    return {"pid": os.getpid(), "slot": scope["extensions"]["gunicorn_sticky"]["slot"]}


@sio.on("do")
async def on_do(sid, method, args, options):
    """Call a method of the server, such as "emit"."""
    result = getattr(sio, method)(*args, **options)
    return await result if inspect.isawaitable(result) else result


@sio.on("say")
async def on_say(sid, count=1, answer_to=None, size=0, room=None):
    """Emit messages that bear who says them, their number there, and what they answer to."""
    for _ in range(count):
        await sio.emit("said", (os.getpid(), next(numbers), answer_to, "x" * size), to=room)
        if count > 1:
            await asyncio.sleep(0)
