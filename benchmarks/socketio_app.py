"""python-socketio, with or without Redis: broadcasts what it is told to, without Redis to the clients of one worker."""

import os

import socketio

url = os.environ.get("REDIS_URL")
sio = socketio.Server(
    async_mode="gevent",
    ping_interval=int(os.environ["PING_INTERVAL"]),
    client_manager=socketio.RedisManager(url) if url else None,
)
app = socketio.WSGIApp(sio)


@sio.on("broadcast")
def on_broadcast(sid: str, count: int, size: int) -> None:
    for _ in range(count):
        sio.emit("said", "x" * size)
