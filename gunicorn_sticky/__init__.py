"""Sticky sessions for Gunicorn: every request of a client reaches the same worker.

This module is imported at the start of every Python program of the environment (see ``startup.pth``),
so it imports nothing but the hook; the rest loads when Gunicorn asks for the worker class.
"""

from . import _startup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .connection import Connection as Connection
    from .manager import ClusterManager as ClusterManager
    from .session import session_id as session_id
    from .worker import GeventStickyWorker as GeventStickyWorker

__all__ = ["ClusterManager", "Connection", "GeventStickyWorker", "__version__", "session_id"]
__version__ = "0.1.0"

_HOMES = {
    "ClusterManager": "manager",
    "Connection": "connection",
    "GeventStickyWorker": "worker",
    "session_id": "session",
}

_startup.install()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
