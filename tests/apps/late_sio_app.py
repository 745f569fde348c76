"""python-socketio, imported when the first request comes."""

import functools


@functools.cache
def load():
    import lean  # noqa: F401
    import socketio

    return socketio.WSGIApp(socketio.Server(async_mode="gevent"))


def app(environ, start_response):
    return load()(environ, start_response)
