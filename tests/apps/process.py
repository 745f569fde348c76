"""Answers with JSON about the process that serves the request. Some paths do something else, see below."""

import json
import os
import sys

from waiting import wait_until

IMPORTED_BY = os.getpid()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hold":
        wait_until(lambda: os.path.exists("release"))
    elif path == "/spin":
        while not os.path.exists("release"):
            pass  # gevent gets no chance to do anything else
    elif path == "/file":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    elif path == "/print":
        print("printed by the application")
        sys.stdout.flush()
    answer = {
        "pid": os.getpid(),
        "slot": environ.get("gunicorn_sticky.slot"),
        "key": environ.get("gunicorn_sticky.key"),
        "imported_by": IMPORTED_BY,
        "folder": os.getcwd(),
        "path": sys.path,
        "environ": dict(os.environ),
        "wsgi": {name: value for name, value in environ.items() if isinstance(value, str)},
        "modules": sorted(sys.modules),
    }
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
