"""The application of all Gunicorns in the benchmark: says which process answers, and echoes Engine.IO's messages."""

import os

import engineio

eio = engineio.Server(async_mode="gevent")
BODY = f"hello {os.getpid():08}".encode()


@eio.on("message")
def echo(sid, data):
    eio.send(sid, data)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


app = engineio.WSGIApp(eio, hello)
