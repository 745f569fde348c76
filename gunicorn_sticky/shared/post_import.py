"""Calling back when a module has been imported, so that it can be completed before anybody uses it.

This is loaded at the start of every Python program: it imports nothing but ``sys``.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _Finder:
    """A meta path finder that calls back once a module has been executed (PEP 451)."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[ModuleType], None]] = {}
        #: Modules that the other finders are being asked for.
        self._sought: set[str] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in self.callbacks or name in self._sought:
            return None
        from contextlib import suppress
        from importlib.util import find_spec

        self._sought.add(name)
        try:
            spec = find_spec(name)  # asks all finders, as Python does, and so this one again
        finally:
            self._sought.discard(name)
        if spec is not None and spec.loader is not None:
            # Some loaders take no attributes, or have not what PEP 451 asks for: then the module stays as it is.
            with suppress(AttributeError, TypeError):
                spec.loader.exec_module = self._then_call_back(spec.loader.exec_module)  # type: ignore
        return spec

    def _then_call_back(self, exec_module: "Callable[[ModuleType], None]") -> "Callable[[ModuleType], None]":
        def wrapper(module: "ModuleType") -> None:
            exec_module(module)
            if callback := self.callbacks.pop(module.__name__, None):  # a zip file's loader is shared by its modules
                callback(module)

        return wrapper


def when_imported(name: str, callback: "Callable[[ModuleType], None]") -> None:
    """Call ``callback(module)`` as soon as the module `name` has been imported: now, or later."""
    if name in sys.modules:
        callback(sys.modules[name])
        return
    finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    finder = finders[0] if finders else _Finder()
    finder.callbacks[name] = callback
    if not finders:
        sys.meta_path.insert(0, finder)
