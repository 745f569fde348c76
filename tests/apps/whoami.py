"""Answers every request with JSON that tells who served it. A request for /hold waits for the file "release"."""

import hashlib
import json
import os
import sys

from waiting import wait_until


def app(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        print("held", file=sys.stderr, flush=True)
        wait_until(lambda: os.path.exists("release"))
    digest, size = hashlib.sha256(), 0
    while chunk := environ["wsgi.input"].read(65536):
        digest.update(chunk)
        size += len(chunk)
    names = (
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "SERVER_NAME",
        "SERVER_PORT",
        "PATH_INFO",
        "REQUEST_METHOD",
        "wsgi.url_scheme",
    )
    body = json.dumps(
        {name: environ.get(name) for name in names}
        | {
            "pid": os.getpid(),
            "slot": environ.get("gunicorn_sticky.slot"),
            "key": environ.get("gunicorn_sticky.key"),
            "environment_slot": os.environ.get("GUNICORN_STICKY_SLOT"),
            "size": size,
            "sha256": digest.hexdigest(),
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
