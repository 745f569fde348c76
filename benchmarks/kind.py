"""The kinds of workers that are compared: a new one is a line in a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gunicorn import version_info


class Named(Protocol):
    @property
    def name(self) -> str: ...


Some = TypeVar("Some", bound=Named)


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
    #: As many WebSockets as one worker has room for, as nobody shares them out among stock workers, and no more than it
    #: takes to tell what one needs.
    sockets: int = 500

    @property
    def empty(self) -> str:
        """What is served where the application is to cost nothing."""
        return f"empty:{self.interface}"

    def args(self, *, sticky: bool) -> tuple[str, ...]:
        """Return the command line up to the number of workers and the application."""
        return "-k", f"gunicorn_sticky.{self.sticky}" if sticky else self.stock, *self.options


KINDS = (
    Kind("gevent", "gevent", "GeventStickyWorker", "app:create('gevent')", "wsgi"),
    Kind("threads", "gthread", "ThreadStickyWorker", "app:create('threading')", "wsgi", ("--threads", "100"), 75),
    *([Kind("asgi", "asgi", "ASGIStickyWorker", "app_asgi:app", "asgi")] if version_info >= (27, 0, 1) else []),
    Kind("uvicorn", "uvicorn_worker.UvicornWorker", "UvicornStickyWorker", "app_asgi:app", "asgi"),
)


def some(names: str | None, of: Sequence[Some]) -> list[Some]:
    """Return those whose names are in a list with commas, or all if there is no list."""
    known = [one.name for one in of]
    wanted = names.split(",") if names else known
    if unknown := set(wanted).difference(known):
        raise SystemExit(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return [one for one in of if one.name in wanted]
