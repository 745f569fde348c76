"""python-socketio with a cluster manager. Its clients tell their worker what to do."""

import itertools
import os

import lean  # noqa: F401
import socketio

from gunicorn_sticky import ClusterManager

mode = os.environ.get("ASYNC_MODE", "gevent")
sio = socketio.Server(async_mode=mode, namespaces=["/", "/other"], client_manager=ClusterManager())
app = socketio.WSGIApp(sio)
numbers = itertools.count(1)


@sio.on("where")
def on_where(sid):
    """Tell who serves the client."""
    return {"pid": os.getpid(), "slot": sio.get_environ(sid).get("gunicorn_sticky.slot")}


@sio.on("do")
def on_do(sid, method, args, options):
    """Call a method of the server, such as "emit"."""
    return getattr(sio, method)(*args, **options)


@sio.on("say")
def on_say(sid, count=1, answer_to=None, size=0, room=None):
    """Emit messages that bear who says them, their number there, and what they answer to."""
    for _ in range(count):
        sio.emit("said", (os.getpid(), next(numbers), answer_to, "x" * size), to=room)
        if count > 1:
            sio.sleep(0)


if __name__ == "__main__":
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), app)
    server.start()
    print(f"Listening at: http://127.0.0.1:{server.server_port} ({os.getpid()})", flush=True)
    server.serve_forever()
