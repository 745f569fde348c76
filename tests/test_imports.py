"""Which room of the package may import which: from those above it in this list, and from itself, without a circle."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gunicorn_sticky

#: Each line may import from the lines above it. What stands in one line does not import each other.
ORDER = (
    {"_version", "settings", "routing"},
    {"shared"},
    {"configuration", "sessions", "broadcast"},
    {"status"},
    {"workers", "dispatcher"},
    {"arbiter"},
    {"_startup"},
    {"__init__"},
    {"__main__"},
)
#: What nobody imports but its own adapters, by the beginnings of the adapters' names.
LOOPS = {"gevent": ("gevent_",), "asyncio": ("asyncio_", "asgi_", "uvicorn_"), "uvicorn": ("uvicorn_",)}
#: The beginnings of the names of adapters, one for each kind of worker.
KINDS = ("gevent_", "thread_", "asgi_", "uvicorn_")
#: Whole processes of their own, which may have a loop of their own.
OWN_PROCESSES = {"status.server"}

PACKAGE = Path(gunicorn_sticky.__file__).parent
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


@functools.cache
def parsed(module: str) -> ast.Module:
    """Return what a module says; not every process that collects these tests runs them."""
    return ast.parse(MODULES[module].read_text())


def room(module: str) -> str:
    return module.partition(".")[0]


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports, ours without the package's name, and whether it is ours; also in functions."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from ((name.name, False) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level]
            found = ".".join([*base, *filter(None, [node.module])])
            for name in node.names:
                inner = f"{found}.{name.name}" if found else name.name
                yield (inner if inner in MODULES else found or "__init__"), True


def ours(module: str) -> set[str]:
    return {name for name, is_ours in imports(module) if is_ours and name != module}


def level(module: str) -> int:
    (found,) = (number for number, rooms in enumerate(ORDER) if room(module) in rooms)
    return found


def test_imports_of_each_form_are_found():
    assert ("socketio", False) in imports("broadcast.manager")
    assert {"shared.current", "broadcast.cluster", "broadcast.join_socket"} <= ours("broadcast.manager")
    assert "_version" in ours("__init__")
    for module in ("dispatcher.loop", "workers.core", "arbiter.arbiter"):
        assert {room(name) for name in ours(module)} > {"shared"}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upwards(module: str):
    for imported in ours(module):
        assert room(imported) == room(module) or level(imported) < level(module), f"{module} imports {imported}"


def test_there_are_no_circles():
    tuple(graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_a_loop_is_its_adapters_affair(module: str):
    for imported, is_ours in imports(module):
        for loop, prefixes in LOOPS.items():
            if not is_ours and (imported == loop or imported.startswith(f"{loop}.")) and module not in OWN_PROCESSES:
                assert module.rpartition(".")[2].startswith(prefixes), f"{module} imports {imported}"


def test_adapters_do_not_import_each_other():
    workers = {module: module.rpartition(".")[2] for module in MODULES if room(module) == "workers"}
    adapters = {module for module, name in workers.items() if name.startswith(KINDS)}
    assert adapters
    for module in adapters | {module for module, name in workers.items() if name.startswith("asyncio_")}:
        kind = module.rpartition(".")[2].partition("_")[0]
        others = {name for name in ours(module) & adapters if not name.rpartition(".")[2].startswith(kind)}
        assert not others, module


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) == "routing"])
def test_routing_is_pure(module: str):
    """It holds no socket, no clock and no file."""
    forbidden = {"os", "time", "select", "threading", "mmap", "logging", "gunicorn"}
    assert not {name.partition(".")[0] for name, is_ours in imports(module) if not is_ours} & forbidden


def test_the_tree_in_the_documentation():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    tree = page.partition("\n    gunicorn_sticky/\n")[2].partition("\n\n")[0]
    folder, shown = "", []
    for line in tree.splitlines():
        match = re.fullmatch(r"    ( +)(\S+(?:, \S+)*)  +.+", line)
        assert match, line
        indent, names = match.groups()
        if names.endswith("/"):
            folder = names
            continue
        base = folder if len(indent) > 2 else ""
        shown += [f"{base}{name}".removesuffix(".py").replace("/", ".") for name in names.split(", ") if ".py" in name]
    faces = {module for module in MODULES if module.endswith(".__init__")}
    assert sorted(shown) == sorted(MODULES.keys() - faces)
    order = [room(module) for module in reversed(shown)]  # from the ground
    assert [level(place) for place in order] == sorted(level(place) for place in order)
