"""Flask-SocketIO with a cluster manager: a request and an event speak to all clients, and rooms are joined."""

import os

import lean  # noqa: F401
from flask import Flask, request
from flask_socketio import SocketIO, emit, join_room

from gunicorn_sticky import ClusterManager

app = Flask(__name__)
socketio = SocketIO(app, client_manager=ClusterManager())


@app.get("/announce")
def announce():
    socketio.emit("news", request.args["text"])
    return "", 204


@socketio.on("where")
def on_where():
    return {"pid": os.getpid(), "slot": request.environ.get("gunicorn_sticky.slot")}


@socketio.on("join")
def on_join(room):
    join_room(room)


@socketio.on("shout")
def on_shout(room, text):
    emit("news", text, to=room, include_self=False)
