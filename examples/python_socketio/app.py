"""``gunicorn -k gunicorn_sticky.GeventStickyWorker -w 4 app:app``"""

import os

import socketio

sio = socketio.Server(async_mode="gevent")
app = socketio.WSGIApp(sio)


@sio.event
def hello(sid, name):
    return f"Hello {name}, this is slot {os.environ['GUNICORN_STICKY_SLOT']}"
