"""An application with sessions in memory, whose ids ride where the query says: an SSE stream, a header, a cookie."""

import json
import os
import sys

from waiting import wait_until

from gunicorn_sticky import session_id

SESSIONS: dict[str, int] = {}


def app(environ, start_response):
    cookies = dict(part.strip().split("=", 1) for part in environ.get("HTTP_COOKIE", "").split(";") if "=" in part)
    query = dict(part.split("=", 1) for part in environ.get("QUERY_STRING", "").split("&") if "=" in part)
    given = query.get("session_id") or environ.get("HTTP_MCP_SESSION_ID") or cookies.get("session")
    if environ["PATH_INFO"] == "/hold":
        print("holding", file=sys.stderr, flush=True)
        wait_until(lambda: os.path.exists("release"))
    headers = []
    status = "200 OK"
    if environ["PATH_INFO"] == "/new":
        given = session_id()
        SESSIONS[given] = 0
        headers = [("Mcp-Session-Id", given), ("Set-Cookie", f"session={given}")]
    elif given in SESSIONS:
        SESSIONS[given] += 1
    elif environ["PATH_INFO"] != "/":
        status = "404 Not Found"
    body = json.dumps(
        {
            "id": given,
            "count": SESSIONS.get(given or ""),
            "pid": os.getpid(),
            "slot": environ["gunicorn_sticky.slot"],
            "key": environ["gunicorn_sticky.key"],
        }
    ).encode()
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]
