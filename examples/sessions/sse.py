"""Server-sent events, with the messages of each stream in this worker's memory.

    gunicorn -k gunicorn_sticky.GeventStickyWorker --sticky-by session --sticky-session-keys query:session_id \\
        -w 4 sse:app

GET /stream opens a stream and tells its id; POST /send?session_id=ID sends it a line, from any connection.
"""

from urllib.parse import parse_qs

from gevent.queue import Queue

from gunicorn_sticky import session_id

streams: dict[str, Queue] = {}


def app(environ, start_response):
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")])
        return events()
    queue = streams.get(parse_qs(environ["QUERY_STRING"]).get("session_id", [""])[0])
    if queue is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    queue.put(environ["wsgi.input"].read().decode())
    start_response("204 No Content", [])
    return []


def events():
    session = session_id()  # names this worker, so that /send finds it
    queue = streams[session] = Queue()
    try:
        yield f"event: session\ndata: {session}\n\n".encode()
        for line in queue:
            yield f"data: {line}\n\n".encode()
    finally:
        del streams[session]
