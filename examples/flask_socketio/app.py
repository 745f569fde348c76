"""``gunicorn -k gunicorn_sticky.GeventStickyWorker -w 4 app:app``"""

import os

from flask import Flask
from flask_socketio import SocketIO

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")


@app.get("/")
def index():
    return "Hello\n"


@socketio.on("hello")
def hello(name):
    return f"Hello {name}, this is slot {os.environ['GUNICORN_STICKY_SLOT']}"
