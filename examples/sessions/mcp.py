"""Sessions named by a header, as in the streamable HTTP transport of the Model Context Protocol.

    gunicorn -k gunicorn_sticky.GeventStickyWorker --sticky-by session --sticky-session-keys header:mcp-session-id \\
        -w 4 mcp:app

A request that calls "initialize" gets a session; the others bring it along, and each is counted.
"""

import json

from gunicorn_sticky import session_id

sessions: dict[str, int] = {}


def app(environ, start_response):
    call = json.loads(environ["wsgi.input"].read())
    session = environ.get("HTTP_MCP_SESSION_ID")
    if call["method"] == "initialize":
        session = session_id()  # names this worker
        sessions[session] = 0
    elif session not in sessions:
        start_response("404 Not Found", [("Content-Length", "0")])  # the client is to initialize again
        return []
    sessions[session] += 1
    body = json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": {"calls": sessions[session]}}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Mcp-Session-Id", session)]
    start_response("200 OK", headers)
    return [body]
