"""The start-up hook: puts our settings and our arbiter into Gunicorn while Gunicorn is being imported.

Gunicorn builds its command line from ``gunicorn.config.KNOWN_SETTINGS`` before it imports any plugin, and
``gunicorn.app.base`` decides which arbiter runs before it resolves ``-k``. So both modules are completed right after
their own code has run. This file is loaded at the start of every Python program: it imports nothing but ``sys``.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

#: Whether the application's arbiter was made by `_replace_arbiter`; without that, our worker has nobody to feed it.
in_charge = False
#: Whether Gunicorn had been imported before us, so that no start-up hook can have run.
late = False

_callbacks: "dict[str, Callable[[ModuleType], None]]" = {}
#: Modules that `_PostImport` is asking the other finders for.
_sought: "set[str]" = set()


class _PostImport:
    """A meta path finder that calls back once a module of `_callbacks` has been executed (PEP 451)."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        # Other programs' finders may ask all finders too, and so this one, again.
        if name not in _callbacks or name in _sought:
            return None
        _sought.add(name)
        try:
            for finder in sys.meta_path:
                spec = None if finder is self else finder.find_spec(name, path, target)
                if spec is not None and spec.loader is not None:
                    spec.loader.exec_module = _then_call_back(spec.loader.exec_module)  # type: ignore
                    return spec
            return None
        finally:
            _sought.discard(name)


def _then_call_back(exec_module: "Callable[[ModuleType], None]") -> "Callable[[ModuleType], None]":
    def wrapper(module: "ModuleType") -> None:
        exec_module(module)
        if callback := _callbacks.pop(module.__name__, None):  # a zip file's loader is shared by all its modules
            callback(module)

    return wrapper


def when_imported(name: str, callback: "Callable[[ModuleType], None]") -> None:
    """Call ``callback(module)`` as soon as the module `name` has been imported: now, or later."""
    if name in sys.modules:
        callback(sys.modules[name])
        return
    _callbacks[name] = callback
    if not any(isinstance(finder, _PostImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImport())


def install() -> None:
    """Make Gunicorn know our settings and our arbiter."""
    global late
    late = "gunicorn.app.base" in sys.modules
    when_imported("gunicorn.config", _add_settings)
    when_imported("gunicorn.app.base", _replace_arbiter)


def _add_settings(config: "ModuleType") -> None:
    from . import settings  # noqa: F401  (Gunicorn's Setting classes register themselves)


def _replace_arbiter(base: "ModuleType") -> None:
    stock = base.Arbiter

    class Arbiter(stock):  # type: ignore[misc,valid-type]
        # A class, for whoever extends it, which gives them Gunicorn's own, or uses what it has.
        def __new__(cls, app: "Any" = None, *args: "Any", **kwargs: "Any") -> "Any":
            if cls is not Arbiter:
                return super().__new__(cls)
            global in_charge
            in_charge = True
            from .arbiter import new_arbiter

            return new_arbiter(app, stock)

    base.Arbiter = Arbiter  # type: ignore[attr-defined]
