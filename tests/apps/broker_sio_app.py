"""python-socketio on many machines, with a broker between them: tells clients where they are, and all what one says."""

import os

import socketio

WORKER = [os.environ["MACHINE"], os.environ["GUNICORN_STICKY_SLOT"]]

sio = socketio.Server(async_mode="gevent", client_manager=socketio.RedisManager(os.environ["REDIS_URL"]))
app = socketio.WSGIApp(sio)


@sio.on("who")
def on_who(sid):
    return WORKER


@sio.on("say")
def on_say(sid, text):
    sio.emit("said", text)
