"""HTTP/2 in workers for WSGI, whose loop over a connection ends when the worker drains.

A connection that has come just before that would end with its request unread.
"""

from __future__ import annotations

from typing import Any


class Beginning:
    """A worker as Gunicorn's loop over a connection sees it: one that goes on until a request has been served.

    Args:
        worker: the true one
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._has_served = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The worker's class, for `super` in a subclass of a user's."""
        return type(self._worker)

    @property
    def alive(self) -> bool:
        """Whether the loop goes on."""
        return not self._has_served or bool(self._worker.alive)

    def _serve_http2_stream(self, *args: Any) -> None:
        self._serve(self._worker._serve_http2_stream, *args)

    def handle_http2_request(self, *args: Any) -> None:
        """Serve a request; older Gunicorns' loop calls this."""
        self._serve(self._worker.handle_http2_request, *args)

    def _serve(self, serve: Any, *args: Any) -> None:
        try:
            serve(*args)
        finally:
            self._has_served = True
