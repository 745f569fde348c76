"""The application of both servers in broadcast.py: one worker publishes what it is told to, all note what they hear."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gevent
import socketio
from heard import Heard

import gunicorn_sticky

#: Has a file for each worker, with what it has heard.
FOLDER = Path(os.environ["BROADCAST_FOLDER"])
#: Where Redis is, if that is to carry the messages.
REDIS = os.environ.get("BROADCAST_REDIS")
#: Messages between two looks around.
SLICE = 100
#: Messages that may be on their way.
WINDOW = 2000
#: Seconds to rest for while there are more.
REST = 0.001


_Base: Any = socketio.RedisManager if REDIS else gunicorn_sticky.ClusterManager


class Manager(_Base):
    """Either manager, with an ear where a message is handed to this worker's clients, whoever has published it."""

    def _handle_emit(self, message: dict[str, Any]) -> None:
        number, sent, _padding = message["data"][0].split(" ", 2)
        heard.note(int(number), int(sent), time.monotonic_ns())
        super()._handle_emit(message)


def publish(number: int, size: int) -> None:
    sio.emit("news", f"{number} {time.monotonic_ns()} ".ljust(size, "."))


def steadily(size: int, count: int, pause: float) -> int:
    """Publish one message after the other, with a pause after each."""
    for number in range(count):
        publish(number, size)
        gevent.sleep(pause)
    return count


def flood(size: int, seconds: float) -> int:
    """Publish as much as every worker can hear."""
    everyone = [Heard(path) for path in FOLDER.iterdir()]
    published = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if published - min(heard.next for heard in everyone) > WINDOW:
            gevent.sleep(REST)
            continue
        for number in range(published, published + SLICE):
            publish(number, size)
        published += SLICE
        gevent.sleep(0)
    return published


def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    task = {name: json.loads(value) for name, value in parse_qsl(environ["QUERY_STRING"])}
    start = time.monotonic_ns()
    published = flood(**task) if "seconds" in task else steadily(**task)
    body = json.dumps({"start": start, "published": published}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


heard = Heard(FOLDER / str(os.getpid()))
sio = socketio.Server(async_mode="gevent", client_manager=Manager(REDIS) if REDIS else Manager())
app = socketio.WSGIApp(sio, run)
# As the first client's arrival would: from now on this worker listens.
sio.manager_initialized = True
sio.manager.initialize()
