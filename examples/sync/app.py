"""Keeps each client's state in the memory of the worker that serves it."""

import time

#: Filled by the hook in gunicorn.conf.py.
states: dict[str, dict[str, int]] = {}


def load(key):
    """Stand for a query that takes a moment."""
    time.sleep(0.2)
    return {"visits": 0}


def app(environ, start_response):
    key, slot = environ["gunicorn_sticky.key"], environ["gunicorn_sticky.slot"]
    state = states[key]
    state["visits"] += 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"Visit {state['visits']} of {key} on slot {slot}\n".encode()]
