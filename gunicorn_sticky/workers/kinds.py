"""The sticky forms of worker classes."""

from __future__ import annotations

from importlib import import_module

from .core import StickyWorker

#: For each of the classes that can be sticky, where its sticky form is.
_FORMS = {
    "gunicorn.workers.ggevent.GeventWorker": ("gevent_worker", "GeventStickyWorker"),
    "gunicorn.workers.gthread.ThreadWorker": ("thread_worker", "ThreadStickyWorker"),
    "gunicorn.workers.gasgi.ASGIWorker": ("asgi_worker", "ASGIStickyWorker"),
    "uvicorn_worker._workers.UvicornWorker": ("uvicorn_worker", "UvicornStickyWorker"),
}


def sticky(worker_class: type) -> type:
    """Return the sticky form of a worker class of your own, for ``worker_class`` in gunicorn.conf.py.

    Args:
        worker_class: a subclass of one of Gunicorn's classes for gevent, threads or ASGI, or of uvicorn-worker's

    Raises:
        RuntimeError: it is none of these
    """
    if issubclass(worker_class, StickyWorker):
        return worker_class
    for base in worker_class.__mro__:
        form = _FORMS.get(f"{base.__module__}.{base.__qualname__}")
        if form:
            module, name = form
            ours = getattr(import_module(f"..workers.{module}", __package__), name)
            return type(f"Sticky{worker_class.__name__}", (ours, worker_class), {"__module__": worker_class.__module__})
    raise RuntimeError(
        f"{worker_class.__qualname__} cannot be sticky: make it a subclass of one of {', '.join(_FORMS)}".replace(
            "._workers", ""
        )
    )
