"""python-socketio: answers the event "who"."""

import lean  # noqa: F401
import socketio
from seen import watched, who

# The heartbeat is short, for clients to have some while the tests look at them. On a busy machine an upgrade, during
# which there are none, may take longer than the 20 s in which a client expects the next one otherwise.
sio = socketio.Server(async_mode="gevent", ping_interval=1, ping_timeout=60)
app = watched(socketio.WSGIApp(sio))


@sio.on("who")
def on_who(sid):
    return who(sio.get_environ(sid), sio.transport(sid))
