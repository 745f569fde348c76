"""What a WSGI application sees of stickiness (PEP 3333), and what its responses tell the client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .served import Served


def with_affinity(
    application: Any,
    find: Callable[[Any], Served | None],
    slot: int,
    headers: Callable[[Served, str], Sequence[tuple[str, str]]] | None,
) -> Any:
    """Return an application that sees slot and key in its environ, and whose responses have our own header fields.

    Args:
        application: the user's
        find: returns what is known of a client's socket, or None if it does not concern us
        slot: the worker's
        headers: returns our header fields for a response, given the connection and the URL's scheme; None if there are
            none
    """

    def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        served = find(environ["gunicorn.socket"])
        if served is not None:
            environ["gunicorn_sticky.slot"] = slot
            environ["gunicorn_sticky.key"] = str(served.key)
            if headers is not None and (more := headers(served, environ["wsgi.url_scheme"])):
                start_response = _with_headers(more, start_response)
        response: Iterable[bytes] = application(environ, start_response)
        return response

    return wsgi


def _with_headers(more: Sequence[tuple[str, str]], start_response: Any) -> Any:
    """Return a start_response that also sends our own headers."""

    def start(status: str, headers: list[tuple[str, str]], *args: Any) -> Any:
        return start_response(status, [*headers, *more], *args)

    return start
