"""The application of the fault harness: requests that take long, block the worker, upload something, listen to events
(SSE), start a child or open a WebSocket; and sessions.

Each answer tells who gave it. With a file named "crash" in the working directory, the workers of the slots that it
lists die while they boot; with "broken", they cannot import the application.
"""

import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import simple_websocket
from waiting import wait_until

from gunicorn_sticky import session_id
from gunicorn_sticky.shared.unpatched import sleep as block

# Under gevent, `block` sleeps so that the whole worker does.
SLOT = os.environ.get("GUNICORN_STICKY_SLOT", "")

for name, end in (("crash", lambda: os._exit(1)), ("broken", lambda: exec("import no_such_module"))):
    if os.path.exists(name) and SLOT in Path(name).read_text().split():
        end()

sessions: set[str] = set()


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def hold(_seconds):
    wait_until(lambda: os.path.exists("release"))


def child(_seconds):
    """Start a child, as an application does that works with several processors, and end it."""
    started = multiprocessing.get_context("fork").Process(target=block, args=[1])
    started.start()
    started.terminate()
    started.join()


def digest(body):
    found, size = hashlib.sha256(), 0
    while chunk := body.read(65536):
        found.update(chunk)
        size += len(chunk)
    return {"size": size, "sha256": found.hexdigest()}


def events(seconds, who):
    """Send an event ten times a second, and at the end the answer."""
    for _ in range(int(seconds * 10)):
        yield b"data: {}\n\n"
        time.sleep(0.1)
    yield b"data: %s\n\n" % json.dumps(who).encode()


DO = {"/slow": time.sleep, "/block": block, "/spin": spin, "/hold": hold, "/child": child}


def app(environ, start_response):
    path = environ["PATH_INFO"]
    query = dict(part.split("=", 1) for part in environ["QUERY_STRING"].split("&") if part)
    began = time.monotonic()
    session = query.get("session")
    status = "200 OK"
    if session == "new":
        session = session_id()
        sessions.add(session)
    elif session and session not in sessions:
        status = "404 Not Found"
    who = {"pid": os.getpid(), "slot": environ["gunicorn_sticky.slot"], "session": session, "began": began}
    if path == "/socket" and status == "200 OK":
        try:
            echo(environ, json.dumps({"pid": who["pid"], "slot": who["slot"]}))
        finally:
            raise StopIteration  # there is no answer to send, nor another request to read
    seconds = float(query.get("seconds", 0))
    if path == "/events":
        start_response(status, [("Content-Type", "text/event-stream")])
        return events(seconds, who)
    if path == "/upload":
        who |= digest(environ["wsgi.input"])
    else:
        DO.get(path, lambda _seconds: None)(seconds)
    body = json.dumps(who).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def echo(environ, answer):
    """Answer whatever comes over a WebSocket."""
    socket = simple_websocket.Server(environ)
    try:
        while True:
            socket.receive()
            socket.send(answer)
    except simple_websocket.ConnectionClosed:
        pass


async def web_socket(scope, receive, send):
    """Do the same as an ASGI application."""
    answer = json.dumps({"pid": os.getpid(), "slot": scope["extensions"]["gunicorn_sticky"]["slot"]})
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": answer})
