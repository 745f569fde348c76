"""Sticky sessions for Gunicorn: every request of a client reaches the same worker.

This module is imported at the start of every Python program of the environment (see ``startup.pth``),
so it imports nothing but the hook; the rest loads when Gunicorn asks for the worker class.
"""

from . import _startup
from ._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .broadcast.asyncio_manager import AsyncClusterManager as AsyncClusterManager
    from .broadcast.manager import ClusterManager as ClusterManager
    from .sessions.minting import session_id as session_id
    from .workers.asgi_worker import ASGIStickyWorker as ASGIStickyWorker
    from .workers.connection import Connection as Connection
    from .workers.gevent_worker import GeventStickyWorker as GeventStickyWorker
    from .workers.kinds import sticky as sticky
    from .workers.thread_worker import ThreadStickyWorker as ThreadStickyWorker
    from .workers.uvicorn_worker import UvicornStickyWorker as UvicornStickyWorker

__all__ = [
    "ASGIStickyWorker",
    "AsyncClusterManager",
    "ClusterManager",
    "Connection",
    "GeventStickyWorker",
    "ThreadStickyWorker",
    "UvicornStickyWorker",
    "__version__",
    "session_id",
    "sticky",
]

_HOMES = {
    "ASGIStickyWorker": "workers.asgi_worker",
    "AsyncClusterManager": "broadcast.asyncio_manager",
    "ClusterManager": "broadcast.manager",
    "Connection": "workers.connection",
    "GeventStickyWorker": "workers.gevent_worker",
    "ThreadStickyWorker": "workers.thread_worker",
    "UvicornStickyWorker": "workers.uvicorn_worker",
    "session_id": "sessions.minting",
    "sticky": "workers.kinds",
}

#: The extras that bring what a worker class needs, by the package that is missing otherwise.
_EXTRAS = {"uvicorn": "uvicorn", "uvicorn_worker": "uvicorn", "h11": "uvicorn"}

_startup.install()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except Exception as error:
        if isinstance(error, RuntimeError) or not _HOMES[name].startswith("workers."):
            raise
        package = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else None
        if package in _EXTRAS:
            remedy = f'pip install "gunicorn-sticky[{_EXTRAS[package]}]"'
            raise RuntimeError(f"{name} needs {package}: {remedy}") from None
        from .shared.current import refusal

        raise RuntimeError(refusal(error)) from error  # which Gunicorn prints as one line
