"""``gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by session -w 4 app:app``"""

import os

import socketio
from fastapi import FastAPI

api = FastAPI()
sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(sio, other_asgi_app=api)


@api.get("/")
async def index():
    return "Hello"


@sio.event
async def hello(sid, name):
    return f"Hello {name}, this is slot {os.environ['GUNICORN_STICKY_SLOT']}"
