"""HTTP answers to connections that no application gets to see."""

from __future__ import annotations

from http import HTTPStatus


def answer(status: HTTPStatus, message: str) -> bytes:
    """Return a whole HTTP/1.1 response that says `message` and closes the connection."""
    body = f"{status.value} {status.phrase}: {message}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Connection: close\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
