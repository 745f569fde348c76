"""A chat over Socket.IO that runs on several workers: ``gunicorn chat:app``, or with company: ``python demo.py``."""

import json
import os
import time
from pathlib import Path
from typing import Any

import socketio

import gunicorn_sticky

STATIC = Path(__file__).parent / "static"
WORKER = {"slot": int(os.environ.get("GUNICORN_STICKY_SLOT", 0)), "pid": os.getpid()}

# Each worker knows its own clients only. The client manager is what takes a broadcast to the clients of the others.
sio = socketio.Server(async_mode="gevent", client_manager=gunicorn_sticky.ClusterManager())

#: This worker's clients, by session id.
members: dict[str, dict[str, Any]] = {}


@sio.event
def connect(sid, environ, auth):
    auth = auth if isinstance(auth, dict) else {}
    members[sid] = {
        "id": sid,
        "name": str(auth.get("name") or "Guest")[:24],
        "bot": bool(auth.get("bot")),
        "key": environ.get("gunicorn_sticky.key"),
    }
    sio.emit("welcome", WORKER | members[sid], to=sid)
    if not members[sid]["bot"]:
        sio.enter_room(sid, "people")
        greeting = "Welcome, {name}. I am process {pid}, on slot {slot}, and all that you send reaches me.".format_map(
            WORKER | members[sid]
        )
        host = {"id": None, "name": "Worker", "bot": True}
        sio.emit("said", WORKER | host | {"text": greeting, "time": time.time()}, to=sid)
    announce()


@sio.event
def disconnect(sid, reason):
    members.pop(sid, None)
    announce()


@sio.event
def say(sid, text):
    if sid in members:
        sio.emit("said", WORKER | members[sid] | {"text": str(text)[:500], "time": time.time()})


def announce():
    """Tell people who is here; bots do not ask."""
    here = [
        member | {"transport": sio.transport(sid)}
        for sid, member in members.items()
        if sio.manager.is_connected(sid, "/")
    ]
    sio.emit("roster", WORKER | {"members": here}, to="people")


def announce_forever():
    # Repeated, so that who comes later sees all workers at once, and a worker that falls silent is known to be gone.
    while True:
        announce()
        sio.sleep(0.25)


def where(environ, start_response):
    """Tell which worker answers. Each request has a connection of its own, so that each is dispatched anew."""
    found = environ["PATH_INFO"] == "/where"
    start_response(
        "200 OK" if found else "404 Not Found", [("Content-Type", "application/json"), ("Connection", "close")]
    )
    return [json.dumps(WORKER if found else None).encode()]


pages = {"/": "index.html", "/chat.css": "chat.css", "/chat.js": "chat.js", "/socket.io.min.js": "socket.io.min.js"}
app = socketio.WSGIApp(sio, where, static_files={path: str(STATIC / name) for path, name in pages.items()})
sio.start_background_task(announce_forever)
