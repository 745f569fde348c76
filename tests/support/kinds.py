"""All kinds of workers: a new kind is a line in a list, and every test of the suite runs for it, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from gunicorn import version_info


@dataclass(frozen=True)
class Kind:
    """A kind of worker, and how a test starts servers of it."""

    name: str
    worker_class: str
    #: Gunicorn's, or whose else it is, without us.
    stock: str
    #: "wsgi" or "asgi".
    interface: str
    options: tuple[str, ...] = ()
    #: The option that says how many requests make a worker full.
    room: str = "--worker-connections"
    #: Whether it speaks HTTP/2.
    http2: bool = True
    #: Whether an application sees the peer's address as it is, whatever X-Forwarded-For says.
    shows_peer: bool = True
    #: Whether it has Gunicorn's hooks for requests, access log and PROXY headers.
    has_all: bool = True
    #: Where it is said how long a worker of this kind waits.
    limits: str = "gunicorn_sticky.workers.limits"

    @property
    def args(self) -> tuple[str, ...]:
        """The command line up to what differs in tests."""
        return "-k", f"gunicorn_sticky.{self.worker_class}", *self.options

    def limit(self, requests: int) -> tuple[str, ...]:
        """Return the options of workers that are full with some requests."""
        return self.room, str(requests)

    def app(self, module: str) -> str:
        """Return how the command line names an application of tests/apps, which are written for WSGI."""
        return f"{module}:app" if self.interface == "wsgi" else f"as_asgi:{module}"

    def __str__(self) -> str:
        return self.name


KINDS = (
    Kind("gevent", "GeventStickyWorker", "gevent", "wsgi"),
    Kind("threads", "ThreadStickyWorker", "gthread", "wsgi", ("--threads", "100"), room="--threads"),
    *([Kind("asgi", "ASGIStickyWorker", "asgi", "asgi")] if version_info >= (27, 0, 1) else []),
    Kind(
        "uvicorn",
        "UvicornStickyWorker",
        "uvicorn_worker.UvicornWorker",
        "asgi",
        http2=False,
        shows_peer=False,
        has_all=False,
    ),
)


def each_kind(kinds: Sequence[Kind] = KINDS, group: str = "") -> pytest.MarkDecorator:
    """Run a test for each of some kinds, which it gets as `kind`.

    Args:
        kinds: which ones
        group: the name of tests that share a server of each kind: one process runs all of them, and the fixture that
            starts the server can be the module's
    """
    cases = [pytest.param(kind, id=str(kind), marks=in_group(group, kind)) for kind in kinds]
    return pytest.mark.parametrize("kind", cases, scope="module" if group else None)


def one_each(
    cases: Sequence[tuple[Any, ...]],
    few: Sequence[tuple[Any, ...]],
    kinds: Sequence[Kind] = KINDS,
    group: str = "",
) -> list[Any]:
    """Return all cases with the first kind, and few with each other, for `pytest.mark.parametrize`.

    For `kinds` and `group`, see `each_kind`.
    """
    first, *others = kinds
    pairs = [*((first, case) for case in cases), *((kind, case) for kind in others for case in few)]
    return [
        pytest.param(kind, *case, id="-".join(map(str, [kind, *case])), marks=in_group(group, kind))
        for kind, case in pairs
    ]


def in_group(group: str, kind: Kind) -> Sequence[pytest.MarkDecorator]:
    """Return the mark of what one process runs for a kind, if it is to."""
    return [pytest.mark.xdist_group(f"{group} {kind}")] if group else []
