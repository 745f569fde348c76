"""The start-up hook: puts our settings and our arbiter into Gunicorn while Gunicorn is being imported.

Gunicorn builds its command line from ``gunicorn.config.KNOWN_SETTINGS`` before it imports any plugin, and
``gunicorn.app.base`` decides which arbiter runs before it resolves ``-k``. So both modules are completed right after
their own code has run. This file is loaded at the start of every Python program: it imports nothing but ``sys``.

Every Gunicorn of the environment gets here, with any worker class. So what is not sticky gets what it would have got
without us; and where Gunicorn is not as we know it, it is left as it is, with one line in its log.
"""

import sys

from .shared import current
from .shared.post_import import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any


def install() -> None:
    """Make Gunicorn know our settings and our arbiter."""
    current.loaded_late = "gunicorn.app.base" in sys.modules
    when_imported("gunicorn.config", _unless_unknown(_add_settings))
    when_imported("gunicorn.app.base", _unless_unknown(_replace_arbiter))


def _unless_unknown(complete: "Callable[[ModuleType], None]") -> "Callable[[ModuleType], None]":
    """Return a function that completes a module of Gunicorn, or leaves Gunicorn alone from now on if that fails."""

    def callback(module: "ModuleType") -> None:
        if current.hook_failure is None:
            try:
                complete(module)
            except Exception as error:
                current.hook_failure = current.refusal(error)
                _warn(f"gunicorn_sticky leaves Gunicorn as it is, as {module.__name__} is not what it knows: %r", error)

    return callback


def _warn(text: str, *args: object) -> None:
    import logging

    logging.getLogger("gunicorn.error").warning(text, *args)


def _add_settings(config: "ModuleType") -> None:
    known = list(config.KNOWN_SETTINGS)
    try:
        from . import settings  # noqa: F401  (Gunicorn's Setting classes register themselves)
    except BaseException:
        config.KNOWN_SETTINGS[:] = known
        raise


def _replace_arbiter(base: "ModuleType") -> None:
    stock = base.Arbiter

    class Arbiter(stock):  # type: ignore[misc,valid-type]
        # A class, for whoever extends it, which gives them Gunicorn's own, or uses what it has.
        def __new__(cls, app: "Any" = None, *args: "Any", **kwargs: "Any") -> "Any":
            if cls is not Arbiter:
                return super().__new__(cls)
            is_sticky = _is_sticky(app)
            current.arbiter_is_ours = True  # before Gunicorn sets the worker class up, which asks for it
            if not is_sticky:
                return _with_warning(stock(app, *args, **kwargs), app)
            if args or kwargs:
                raise RuntimeError(current.refusal(TypeError("Arbiter takes more than an application")))
            from .arbiter.factory import new_arbiter

            return new_arbiter(app, stock)

    base.Arbiter = Arbiter  # type: ignore[attr-defined]


def _is_sticky(app: "Any") -> bool:
    """Tell whether an application's worker class is one of ours.

    This only loads it. To set it up, and to say why it cannot be loaded, is left to Gunicorn, which does so once.
    """
    try:
        from gunicorn.util import load_class

        worker_class = load_class(app.cfg.settings["worker_class"].get())
    except Exception as error:
        current.hook_failure = current.refusal(error)
        return False
    core = sys.modules.get(f"{__package__}.workers.core")  # there already, if the class is one of ours
    return core is not None and isinstance(worker_class, type) and issubclass(worker_class, core.StickyWorker)


def _with_warning(arbiter: "Any", app: "Any") -> "Any":
    """Say if settings of ours are given to a worker class that does not know them."""
    try:
        from .settings import given

        if names := given(app.cfg):
            arbiter.log.warning(
                "No effect of %s: worker class %s is not sticky (use -k gunicorn_sticky.GeventStickyWorker)",
                ", ".join(names),
                app.cfg.worker_class_str,
            )
    except Exception as error:
        _warn("gunicorn_sticky cannot tell whether its settings are given: %r", error)
    return arbiter
