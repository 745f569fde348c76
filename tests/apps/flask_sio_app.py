"""Flask-SocketIO: answers the event "who"."""

import sys

import lean  # noqa: F401
from flask import Flask, request
from flask_socketio import SocketIO
from seen import watched, who

flask = Flask(__name__)
# The heartbeat is short for clients to have some while the tests look at them.
socketio = SocketIO(
    flask, ping_interval=1, ping_timeout=60, async_mode="gevent" if "gevent" in sys.modules else "threading"
)
app = watched(flask)


@socketio.on("who")
def on_who():
    return who(request.environ, socketio.server.transport(request.sid))  # type: ignore[attr-defined]
