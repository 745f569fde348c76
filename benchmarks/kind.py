"""The kinds of workers that are compared: a new one is a line in a list."""

from __future__ import annotations

from dataclasses import dataclass

from gunicorn import version_info


@dataclass(frozen=True)
class Kind:
    name: str
    #: Worker classes: the one that is not sticky, and ours of the same kind.
    stock: str
    sticky: str
    #: What is served.
    app: str
    #: "wsgi" or "asgi".
    interface: str
    options: tuple[str, ...] = ()

    def args(self, *, sticky: bool) -> tuple[str, ...]:
        """Return the command line up to the number of workers and the application."""
        return "-k", f"gunicorn_sticky.{self.sticky}" if sticky else self.stock, *self.options


KINDS = (
    Kind("gevent", "gevent", "GeventStickyWorker", "app:create('gevent')", "wsgi"),
    Kind("threads", "gthread", "ThreadStickyWorker", "app:create('threading')", "wsgi", ("--threads", "100")),
    *([Kind("asgi", "asgi", "ASGIStickyWorker", "app_asgi:app", "asgi")] if version_info >= (27, 0, 1) else []),
    Kind("uvicorn", "uvicorn_worker.UvicornWorker", "UvicornStickyWorker", "app_asgi:app", "asgi"),
)
