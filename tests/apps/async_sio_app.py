"""python-socketio's AsyncServer: answers the event "who"."""

import lean  # noqa: F401
import socketio
from seen import who

# The heartbeat is short for clients to have some while the tests look at them.
sio = socketio.AsyncServer(async_mode="asgi", ping_interval=1, ping_timeout=60)
app = socketio.ASGIApp(sio)


@sio.on("who")
async def on_who(sid):
    environ = sio.get_environ(sid)
    affinity = environ["asgi.scope"]["extensions"]["gunicorn_sticky"]
    return who(environ | {f"gunicorn_sticky.{name}": value for name, value in affinity.items()}, sio.transport(sid))
