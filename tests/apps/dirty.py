"""An application that has something done by Gunicorn's dirty workers."""

import json
import os

from gunicorn.dirty import DirtyApp, get_dirty_client


class Task(DirtyApp):
    def __init__(self):
        self.count = 0

    def work(self, number):
        self.count += 1
        return {"square": number * number, "dirty": os.getpid(), "count": self.count}


def app(environ, start_response):
    number = int(environ["QUERY_STRING"] or 3)
    # Gunicorn's dirty arbiter never answers what a worker that it ends on a reload had been asked: ask again soon.
    result = get_dirty_client(timeout=2).execute("dirty:Task", "work", number)
    result.update(pid=os.getpid(), slot=environ.get("gunicorn_sticky.slot"))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(result).encode()]
