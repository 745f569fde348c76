"""Ways to install and to start: each test starts the real program from an environment that pip has made."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from support.harness import APPS, PATIENCE, STICKY, TESTS, Server, clean_env, wait_for

# One process makes the environments.
pytestmark = pytest.mark.xdist_group("install")

OPTIONS = (
    "--sticky-by",
    "--sticky-proxy",
    "--sticky-header",
    "--sticky-ignore-missing-header",
    "--sticky-sync",
    "--sticky-sync-event",
    "--sticky-sync-timeout",
    "--sticky-header-timeout",
    "--sticky-ipv6-prefix",
    "--sticky-session-keys",
    "--sticky-balance",
    "--sticky-cookie",
    "--sticky-cookie-samesite",
    "--sticky-slot-header",
    "--sticky-cluster-socket",
    "--sticky-status",
    "--sticky-trusted-proxies",
)
#: The programs that need no start-up hook.
OWN_PROGRAMS = ("gunicorn-sticky", "python -m gunicorn_sticky")
CLIENT = "203.0.113.7"
FORWARDED = {"X-Forwarded-For": CLIENT}
#: Whose answer tells that all of the server is up: Gunicorn takes its time to stop a worker that is still booting.
ONE_WORKER = {"WEB_CONCURRENCY": "1"}
NO_HOOK = {"GUNICORN_STICKY_HOOK": "0"}
EMBEDDER = """
from gunicorn.app.base import BaseApplication
from whoami import app

class Embedded(BaseApplication):
    options = {
        "bind": "127.0.0.1:0",
        "control_socket_disable": True,
        "worker_class": "gunicorn_sticky.GeventStickyWorker",
        "sticky_by": "header",
        "workers": 1,
    }

    def load_config(self):
        for name, value in self.options.items():
            self.cfg.set(name, value)

    def load(self):
        return app

if __name__ == "__main__":
    Embedded().run()
"""


@dataclass(frozen=True)
class Install:
    """Where pip has put the programs, and what to add to the environment."""

    python: Path
    bin: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, name: str) -> list[str]:
        """Return how to start "gunicorn", "gunicorn-sticky", "python …"."""
        program, *rest = name.split()
        return [str(self.python if program == "python" else self.bin / program), *rest]

    def environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        env = ONE_WORKER | dict(self.env) | dict(extra or {})
        env["PYTHONPATH"] = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), str(APPS)])
        return env

    def serve(self, name: str, *args: str, env: Mapping[str, str] | None = None, **kwargs: Any) -> Server:
        return Server(*args, command=self.command(name), env=self.environment(env), **kwargs)

    def run(self, name: str, *args: str, env: Mapping[str, str] | None = None) -> str:
        """Run a program to its end and return what it has printed."""
        command = [*self.command(name), *args]
        environment = clean_env(self.environment(env))
        # Not in the checkout, which Python would put on sys.path.
        done = subprocess.run(command, cwd=self.python.parent, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refuses(self, name: str, *args: str, env: Mapping[str, str] | None = None, config: str = "") -> str:
        """Start a server that must not start, and return the only line that it prints."""
        with self.serve(name, *args, env=env, config=config) as server:
            assert server.process.wait(PATIENCE) == 1, server.log
            line = server.log.strip()
        assert line.startswith("Error: ")
        assert "\n" not in line
        return line


def pip(*args: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, args)]
    done = subprocess.run(command, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def make_venv(folder: Path) -> tuple[Path, Path]:
    """Make a virtual environment without pip, which takes seconds; return its Python and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", packages


#: The version under test, not the newest.
GUNICORN = f"gunicorn=={version('gunicorn')}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that nothing is written into the checkout."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TESTS.parent / "gunicorn_sticky", source / "gunicorn_sticky", ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TESTS.parent / file, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` and `pip install gunicorn-sticky` install."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def regular(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """With all that it depends on."""
    folder = tmp_path_factory.mktemp("regular")
    python, _packages = make_venv(folder)
    # Python compiles what is imported, which is less than all.
    pip("--python", python, "install", "--quiet", "--no-compile", wheel, GUNICORN)
    return Install(python, folder / "bin")


def borrow(regular: Install, packages: Path) -> None:
    """Let an environment have what Gunicorn and this project depend on from where they are installed already.

    A path that a .pth file adds comes last, and .pth files there do not count.
    """
    (others,) = regular.bin.parent.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{others}\n")


@pytest.fixture(scope="module")
def editable(regular: Install, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """`pip install -e .`"""
    folder = tmp_path_factory.mktemp("editable")
    python, packages = make_venv(folder)
    pip("--python", python, "install", "--quiet", "--no-compile", "--no-deps", "--editable", source, GUNICORN)
    borrow(regular, packages)
    install = Install(python, folder / "bin")
    assert install.run("python -c", "import gunicorn_sticky; print(gunicorn_sticky.__file__)").startswith(str(source))
    return install


@pytest.fixture(scope="module")
def target(regular: Install, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """`pip install --target DIR .` and PYTHONPATH=DIR: no .pth file is processed there."""
    folder = tmp_path_factory.mktemp("target")
    python, packages = make_venv(folder)
    target = folder / "target"
    pip("--python", python, "install", "--quiet", "--no-compile", "--no-deps", "--target", target, wheel, GUNICORN)
    borrow(regular, packages)
    return Install(python, target / "bin", {"PYTHONPATH": str(target)})


@pytest.fixture(params=[("gunicorn_sticky",), ("gunicorn_sticky", "gunicorn")], ids=" and ".join)
def zipped(request: pytest.FixtureRequest, target: Install, tmp_path: Path) -> Install:
    """Packages in a zip file on PYTHONPATH, what they depend on elsewhere."""
    packages = Path(target.env["PYTHONPATH"])
    others = tmp_path / "others"
    others.mkdir()
    for entry in packages.iterdir():
        if not entry.name.startswith(request.param):
            (others / entry.name).symlink_to(entry)
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for package in request.param:
            for source in (packages / package).rglob("*.py"):
                file.write(source, source.relative_to(packages))
    return Install(target.python, target.bin, {"PYTHONPATH": f"{archive}{os.pathsep}{others}"})


@pytest.fixture(params=["regular", "editable"])
def installed(request: pytest.FixtureRequest) -> Install:
    install = request.getfixturevalue(request.param)
    assert isinstance(install, Install)
    return install


def keyed_by_header(server: Server) -> bool:
    who = server.who(headers=FORWARDED)
    assert who["slot"] is not None  # a worker that isn't sticky has none
    return bool(who["key"] == CLIENT)


# --- with the start-up hook ---


def test_command_word_for_word(installed, tmp_path):
    (tmp_path / "app.py").write_text("from whoami import app\n")
    # sh lets the command stand here as one types it; it ignores the arguments that the harness adds.
    command = ["sh", "-c", "exec gunicorn -k gunicorn_sticky.GeventStickyWorker --sticky-proxy app:app"]
    env = installed.environment({"PYTHONPATH": str(tmp_path)}) | {
        "PATH": f"{installed.bin}{os.pathsep}{os.environ['PATH']}",
        "PORT": "0",
        "GUNICORN_CMD_ARGS": "--no-control-socket",
    }
    with Server(command=command, env=env, bind=None) as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


@pytest.mark.parametrize("name", ["gunicorn", *OWN_PROGRAMS])
def test_help_shows_the_options(installed, name):
    section = installed.run(name, "--help").partition("\nSticky Sessions:\n")[2]
    listed = [line.split()[0] for line in section.splitlines() if line.startswith("  --sticky")]
    assert sorted(listed) == sorted(OPTIONS)


def test_settings_in_the_config_file_and_after_a_reload(installed):
    config = "worker_class = 'gunicorn_sticky.GeventStickyWorker'\nsticky_by = '{}'\n"
    with installed.serve("gunicorn", "whoami:app", config=config.format("ip")) as server:
        assert server.who(headers=FORWARDED, source="127.0.0.9")["key"] == "127.0.0.9"
        server.configure(config.format("header"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: keyed_by_header(server), "the reload")
        server.configure(config.format("ip"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not keyed_by_header(server), "the second reload")
        assert server.stop() == 0


def test_settings_in_the_environment(installed):
    arguments = " ".join([*STICKY, "--sticky-by header --sticky-header X-Client"])
    with installed.serve("gunicorn", "whoami:app", env={"GUNICORN_CMD_ARGS": arguments}) as server:
        assert server.who(headers={"x-client": "someone"})["key"] == "someone"


def test_embedder(installed, tmp_path):
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    with installed.serve(f"python {tmp_path}/embedder.py", bind=None) as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


@pytest.mark.parametrize("module", ["gunicorn.arbiter", "gunicorn.app.base"])
@pytest.mark.parametrize("worker_class", ["sync", "gunicorn_sticky.GeventStickyWorker"])
def test_embedder_with_an_arbiter_of_its_own(regular, tmp_path, module, worker_class):
    """Which no other worker class has to do without."""
    code = EMBEDDER.replace("    def load(self)", "    def run(self):\n        Own(self).run()\n\n    def load(self)")
    code = code.replace("gunicorn_sticky.GeventStickyWorker", worker_class)
    own = f"from {module} import Arbiter\n\nclass Own(Arbiter):\n    pass\n"
    (tmp_path / "embedder.py").write_text(own + code)
    with regular.serve(f"python {tmp_path}/embedder.py", bind=None) as server:
        if worker_class == "sync":
            assert server.who()["slot"] is None
            assert server.stop() == 0
        else:
            assert server.process.wait(PATIENCE) == 1, server.log
            assert "RuntimeError: the application runs an arbiter of its own making" in server.log


# --- without it ---


@pytest.mark.parametrize("name", OWN_PROGRAMS)
@pytest.mark.parametrize("hook", [{}, NO_HOOK], ids=["hook", "no hook"])
def test_own_programs(installed, name, hook):
    with installed.serve(name, "--sticky-proxy", "whoami:app", env=hook) as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


@pytest.mark.parametrize("name", OWN_PROGRAMS)
def test_own_programs_take_another_worker_class(regular, name):
    with regular.serve(name, "-k", "gthread", "whoami:app") as server:
        assert server.who()["slot"] is None


@pytest.mark.parametrize("name", OWN_PROGRAMS)
def test_own_programs_in_a_target_folder(target, name):
    with target.serve(name, "--sticky-proxy", "whoami:app") as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


def test_own_program_in_a_zip_file(zipped):
    assert ".zip" in zipped.run("python -c", "import gunicorn_sticky; print(gunicorn_sticky.__file__)")
    with zipped.serve("python -m gunicorn_sticky", "--sticky-proxy", "whoami:app") as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


@pytest.mark.parametrize("first", ["import gunicorn_sticky", "import gunicorn.app.base, gunicorn_sticky"])
def test_embedder_that_imports_us_before_it_configures(installed, tmp_path, first):
    (tmp_path / "embedder.py").write_text(f"{first}\n{EMBEDDER}")
    with installed.serve(f"python {tmp_path}/embedder.py", bind=None, env=NO_HOOK) as server:
        assert keyed_by_header(server)
        assert server.stop() == 0


def test_refuses_to_start_where_the_hook_is_off(installed):
    line = installed.refuses("gunicorn", *STICKY, "whoami:app", env=NO_HOOK)
    assert "start with `gunicorn-sticky`" in line


def test_refuses_to_start_where_no_pth_file_is_processed(target):
    line = target.refuses("gunicorn", *STICKY, "whoami:app")
    assert "start with `gunicorn-sticky`" in line


@pytest.mark.parametrize(
    "config",
    [
        "import gunicorn_sticky\nworker_class = 'gunicorn_sticky.GeventStickyWorker'\nsticky_by = 'header'\n",
        "from gunicorn_sticky import GeventStickyWorker as worker_class\nsticky_proxy = True\n",
    ],
)
def test_refuses_settings_that_came_too_late(regular, config):
    line = regular.refuses("gunicorn", "whoami:app", env=NO_HOOK, config=config)
    assert "start with `gunicorn-sticky`" in line


def test_import_in_the_config_file_does_not_disturb_another_worker_class(regular):
    with regular.serve("gunicorn", "whoami:app", env=NO_HOOK, config="import gunicorn_sticky\n") as server:
        assert server.who()["slot"] is None
        assert server.stop() == 0


# --- everyone else in the environment ---


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_other_worker_classes_are_untouched(installed, worker_class):
    with Server("-k", worker_class, "whoami:app", command=installed.command("gunicorn")) as server:
        who = server.who(headers=FORWARDED)
        assert (who["slot"], who["key"], who["environment_slot"]) == (None, None, None)
        assert list(server.children()) == [who["pid"]]
        assert server.stop() == 0
        assert "sticky" not in server.log.lower()
        assert "dispatcher" not in server.log
        assert len(server.booted("worker")) == 1


def test_settings_without_a_sticky_worker_class_earn_one_warning(regular):
    with regular.serve("gunicorn", "--sticky-proxy", "--sticky-header", "x-client", "whoami:app") as server:
        assert server.who(headers=FORWARDED)["slot"] is None
        assert server.stop() == 0
        (line,) = (line for line in server.log.splitlines() if "sticky" in line.lower())
    assert "[WARNING]" in line
    assert "sticky_proxy" in line
    assert "sticky_header" in line
    assert "sticky_by" not in line


def test_hook_imports_nothing_else(installed):
    def modules(env: Mapping[str, str]) -> set[str]:
        return set(installed.run("python -c", "import sys; print(*sys.modules)", env=env).split())

    assert modules({}) - modules(NO_HOOK) == {
        f"gunicorn_sticky{name}"
        for name in ("", "._startup", "._version", ".shared", ".shared.current", ".shared.post_import")
    }


def test_hook_beside_another_one_of_its_kind(installed):
    """Both ask all finders for what they wait for, and so each other."""
    code = """
import sys

class Another:
    def find_spec(self, name, path=None, target=None):
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        return next(filter(None, others), None)

sys.meta_path.insert(0, Another())
import gunicorn.config
print("sticky_by" in gunicorn.config.Config().settings)
"""
    done = subprocess.run([installed.python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
