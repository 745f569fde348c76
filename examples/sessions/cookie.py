"""An application with a session cookie of its own, and a shopping cart in this worker's memory.

    gunicorn -k gunicorn_sticky.GeventStickyWorker --sticky-by session --sticky-session-keys cookie:cart -w 4 cookie:app

(An application without sessions of its own needs no such code: --sticky-by cookie sets a cookie for it.)
"""

from http.cookies import SimpleCookie

from gunicorn_sticky import session_id

carts: dict[str, list[str]] = {}


def app(environ, start_response):
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("cart")
    headers = []
    if cookie is None or cookie.value not in carts:
        session = session_id()  # names this worker
        carts[session] = []
        headers = [("Set-Cookie", f"cart={session}; Path=/; HttpOnly; SameSite=Lax")]
    else:
        session = cookie.value
    carts[session].append(environ["PATH_INFO"].strip("/"))
    body = ", ".join(carts[session]).encode()
    start_response("200 OK", [*headers, ("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
