"""Answers with the names of all modules that its process has loaded."""

import json
import sys


def app(environ, start_response):
    body = json.dumps(sorted(sys.modules)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
