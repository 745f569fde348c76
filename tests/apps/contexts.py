"""Answers with its process, what its greenlet has served so far, and what that has left in the context."""

import os
from contextvars import ContextVar

import gevent

left = ContextVar("left", default="nothing")


def app(environ, start_response):
    greenlet = gevent.getcurrent()
    greenlet.served = getattr(greenlet, "served", 0) + 1
    body = f"{os.getpid()} {greenlet.served} {left.get()}".encode()
    left.set("something")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
