"""A Gunicorn that is newer than what we know: it runs as if we were not there, and our worker class says why not.

Each test starts the real program from a copy of Gunicorn in which one of the names that we rely on is gone or has
another shape. That they are what we know in the Gunicorn that is installed is what test_upstream.py tests.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gunicorn
import pytest
from support.harness import APPS, PATIENCE, STICKY, Server

pytestmark = pytest.mark.features

Edit = Callable[[Path], object]
#: What the refusal begins with.
UNKNOWN = "Error: gunicorn_sticky does not know this version of Gunicorn: "
#: What the hook's only line begins with.
LEAVES = "gunicorn_sticky leaves Gunicorn as it is"


def write(file: Path, text: str) -> None:
    file.unlink()  # it is one with the copy that all cases share
    file.write_text(text)


def without(name: str) -> Edit:
    """Let all of Gunicorn call something by another name."""

    def edit(package: Path) -> None:
        found = 0
        for file in package.rglob("*.py"):
            text, count = re.subn(rf"(?<!\w){name}(?!\w)", "renamed", file.read_text())
            if count:
                write(file, text)
                found += count
        assert found

    return edit


def without_file(name: str) -> Edit:
    return lambda package: (package / name).unlink()


def with_text(name: str, *replacements: tuple[str, str], end: str = "") -> Edit:
    """Replace text in a file, and add something at its end."""

    def edit(package: Path) -> None:
        text = (package / name).read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        write(package / name, f"{text}\n{end}\n")

    return edit


def in_order(*edits: Edit) -> Edit:
    def edit(package: Path) -> None:
        for part in edits:
            part(package)

    return edit


def with_arbiter(definition: str) -> Edit:
    """Let Gunicorn make its arbiter by another name than the one that we know, which is something else."""
    return with_text(
        "app/base.py",
        ("import Arbiter\n", f"import Arbiter as Master\n\n{definition}\n\n"),
        ("Arbiter(self).run()", "Master(self).run()"),
    )


#: What the start-up hook and the settings rely on. That it is missing is noticed when Gunicorn is imported.
NOTICED: dict[str, tuple[Edit, str]] = {
    "no Setting": (without("Setting"), "ImportError: cannot import name 'Setting'"),
    "no Workers": (without("Workers"), "ImportError: cannot import name 'Workers'"),
    **{
        f"no {name}": (without(name), f"ImportError: cannot import name '{name}'")
        for name in (
            "validate_bool",
            "validate_callable",
            "validate_pos_int",
            "validate_string",
            "validate_string_to_addr_list",
            "validate_string_to_list",
        )
    },
    "no KNOWN_SETTINGS": (without("KNOWN_SETTINGS"), "KNOWN_SETTINGS"),
    "settings that do not register themselves": (
        with_text(
            "config.py", ("KNOWN_SETTINGS.append(", "attrs['__module__'] == __name__ and KNOWN_SETTINGS.append(")
        ),
        "TypeError: settings do not register themselves",
    ),
    "validators that take more": (
        with_text(
            "config.py",
            (
                "self.value = self.validator(val)",
                "own = type(self).__module__ == __name__\n"
                "        self.value = self.validator(val) if own else self.validator(self, val)",
            ),
        ),
        "TypeError: .* argument",
    ),
    "workers that are no number": (
        with_text("config.py", end="Workers.default, Workers.validator = 'auto', staticmethod(lambda val: 1)"),
        "ValueError: invalid literal",
    ),
    "no Arbiter": (with_arbiter(""), "no attribute 'Arbiter'"),
    "an Arbiter that is None": (with_arbiter("Arbiter = None"), "TypeError: .*NoneType"),
    "an Arbiter that is a function": (
        with_arbiter("def Arbiter(app):\n    return Master(app)"),
        "TypeError: .*function",
    ),
    "an Arbiter that has no subclasses": (
        with_text(
            "arbiter.py",
            ("class Arbiter:\n", "class Arbiter:\n    def __init_subclass__(cls): raise TypeError('no')\n"),
        ),
        "TypeError: no",
    ),
}
#: What the hook meets when an arbiter is made. Only who wants to be sticky learns of it.
MET: dict[str, tuple[Edit, str]] = {
    "an Arbiter that takes more": (
        in_order(
            with_text("app/base.py", ("Arbiter(self).run()", "Arbiter(self, self.cfg).run()")),
            with_text("arbiter.py", ("def __init__(self, app):", "def __init__(self, app, cfg):")),
        ),
        "TypeError: Arbiter takes more",
    ),
    "no load_class": (without("load_class"), "ImportError: cannot import name 'load_class'"),
    "no worker_class": (without("worker_class"), "KeyError: 'worker_class'"),
}
#: What the hook meets when it looks for settings of ours that have no effect.
UNTOLD: dict[str, tuple[Edit, str]] = {
    "no cfg": (without("cfg"), "AttributeError: .* no attribute 'cfg'"),
    "no Config.settings": (without("settings"), "AttributeError: .*settings"),
    "no Setting.get": (without(r"get(?=\((self)?\))"), "AttributeError: .* no attribute 'get'"),
    "no worker_class_str": (without("worker_class_str"), ""),
}
#: What is only loaded with our worker class and our arbiter.
LOADED: dict[str, tuple[Edit, str]] = {
    **{
        f"no {name}": (without(name), f"ImportError: cannot import name '{name}'")
        for name in (
            "ConfigError",
            "HaltServer",
            "GeventWorker",
            "IterUnreader",
            "NoMoreData",
            "ParseException",
            "Pidfile",
            "Request",
            "RequestParser",
            "WorkerTmp",
            "COUNTER_TYPE",
            "GAUGE_TYPE",
        )
    },
    "no loggers": (without(r"loggers(?=\()"), "ImportError: cannot import name 'loggers'"),
    "no gunicorn.workers.ggevent": (
        without_file("workers/ggevent.py"),
        "ModuleNotFoundError: .*'gunicorn.workers.ggevent'",
    ),
    "no gunicorn.http.parser": (
        in_order(
            with_text("http/__init__.py", ("from gunicorn.http.parser", "from gunicorn.http.parsing")),
            lambda package: (package / "http/parser.py").rename(package / "http/parsing.py"),
        ),
        "ModuleNotFoundError: .*'gunicorn.http.parser'",
    ),
    "a GeventWorker that is a function": (
        with_text("workers/ggevent.py", end="def GeventWorker(*args): ..."),
        "TypeError: ",
    ),
    "no _get_num_workers": (without("_get_num_workers"), "AttributeError: .*_get_num_workers"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Gunicorn under test."""
    package = tmp_path_factory.mktemp("original") / "gunicorn"
    # Without what another process is about to rename when it has compiled a module.
    shutil.copytree(Path(gunicorn.__file__).parent, package, ignore=shutil.ignore_patterns("*.pyc.*"))
    return package


@pytest.fixture
def future(original: Path, tmp_path: Path) -> Callable[..., Server]:
    """Start a Gunicorn that has been edited."""

    def start(edit: Edit, *args: str, **kwargs: Any) -> Server:
        package = tmp_path / "gunicorn"
        shutil.copytree(original, package, copy_function=os.link)
        edit(package)
        env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{APPS}"}
        return Server("-w", "1", *args, "whoami:app", env=env, **kwargs)

    return start


def serves(server: Server) -> list[str]:
    """Let a stock Gunicorn serve, and return what its log says of us."""
    assert server.who()["slot"] is None
    assert server.stop() == 0
    assert "Traceback" not in server.log
    return [line for line in server.log.splitlines() if "sticky" in line]


def refusal(server: Server) -> str:
    """Return the last of the lines in the log of a server that does not start."""
    assert server.process.wait(PATIENCE) == 1, server.log
    *others, line = filter(None, server.log.splitlines())
    assert all(other.startswith(LEAVES) for other in others), server.log
    return line


@pytest.mark.parametrize("name", NOTICED)
def test_stock_gunicorn_with_one_line_about_what_is_unknown(future, name):
    edit, reason = NOTICED[name]
    with future(edit) as server:
        (line,) = serves(server)
    assert line.startswith(LEAVES)
    assert re.search(reason.partition(": ")[2], line)


@pytest.mark.parametrize("name", MET)
def test_stock_gunicorn_without_a_word(future, name):
    with future(MET[name][0]) as server:
        assert serves(server) == []


@pytest.mark.parametrize("name", UNTOLD)
def test_stock_gunicorn_that_is_given_settings_of_ours(future, name):
    with future(UNTOLD[name][0], "--sticky-proxy") as server:
        (line,) = serves(server)
    assert "gunicorn_sticky cannot tell whether its settings are given" in line


@pytest.mark.parametrize(
    "edit",
    [
        with_text(
            "config.py",
            ("def add_option(self, parser):", "def add_option(self, parser, shown):"),
            (".add_option(parser)", ".add_option(parser, True)"),
        ),
        with_text(
            "config.py",
            ("parser = argparse.ArgumentParser(**kwargs)", "parser = Parser(**kwargs)"),
            end="""
class Parser:
    def __init__(self, **kwargs):
        parser = argparse.ArgumentParser(**kwargs)
        self.add_argument, self.parse_args = parser.add_argument, parser.parse_args
""",
        ),
    ],
    ids=["options that take more", "a parser without groups"],
)
@pytest.mark.parametrize("worker_class", ["sync", "gunicorn_sticky.GeventStickyWorker"])
def test_command_line_of_another_kind(future, edit, worker_class):
    """Each of our settings adds its option to it, in every Gunicorn."""
    with future(edit, "-k", worker_class, "--sticky-by", "header", "--sticky-ignore-missing-header") as server:
        assert (server.who()["slot"] is None) == (worker_class == "sync")


def test_numbers_of_workers_of_another_kind(future):
    """The setting that we mark the default of still takes what Gunicorn takes."""
    more = "Workers.type, Workers.validator = str, staticmethod(lambda val: 1 if val == 'auto' else int(val))"
    with future(with_text("config.py", end=more), "-w", "auto") as server:
        assert serves(server) == []


REFUSED = {**NOTICED, **MET, **{name: case for name, case in UNTOLD.items() if case[1]}, **LOADED}


@pytest.mark.parametrize("name", REFUSED)
def test_sticky_worker_class_is_refused(future, name):
    edit, reason = REFUSED[name]
    with future(edit, *STICKY) as server:
        line = refusal(server)
    assert line.startswith(UNKNOWN)
    assert re.search(reason, line)
