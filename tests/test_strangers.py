"""Programs of the environment that want nothing of us meet our start-up hook all the same: it leaves them alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from support.harness import PATIENCE, Server, clean_env

#: What the hook is, and the settings that it adds to Gunicorn's own.
HOOK = {
    f"gunicorn_sticky{name}"
    for name in ("", "._startup", "._version", ".shared", ".shared.current", ".shared.post_import", ".settings")
}
#: Tells in the log what the master has loaded, once all of it runs.
CONFIG = """
import json, sys

def child_exit(arbiter, worker):
    print("Loaded:", json.dumps(sorted(sys.modules)), flush=True)
"""
WORKER = """
from gunicorn.workers.sync import SyncWorker

class Worker(SyncWorker):
    @classmethod
    def setup(cls):
        print("Set up", flush=True)
"""


def ours(modules):
    return {name for name in modules if name.partition(".")[0] == "gunicorn_sticky"}


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_other_workers_load_nothing_of_ours(worker_class):
    with Server("-k", worker_class, "-w", "1", "modules:app", config=CONFIG, control_socket=True) as server:
        worker = json.loads(server.get().body)
        assert server.stop() == 0
        master = json.loads(server.wait_for_log("^Loaded: (.*)").group(1))
    assert ours(worker) == ours(master) == HOOK
    assert "gunicorn.ctl.server" in master
    if worker_class != "gevent":
        assert "gevent" not in [*worker, *master]


def test_a_worker_class_is_set_up_once(tmp_path):
    """As without the hook: that asks for it before Gunicorn does."""
    (tmp_path / "stranger.py").write_text(WORKER)
    config = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    with Server("-k", "stranger.Worker", "-w", "1", "whoami:app", config=config) as server:
        assert server.who()["slot"] is None
        assert server.stop() == 0
        assert server.log.count("Set up") == 1


@pytest.mark.parametrize("worker_class", ["missing.Worker", "whoami.Worker", "missing"])
def test_a_worker_class_that_cannot_be_loaded_fails_as_without_the_hook(worker_class):
    def failure(**env):
        with Server("-k", worker_class, "whoami:app", env=env) as server:
            code = server.process.wait(PATIENCE)
            return code, re.sub(r"\d+", "", server.log)

    assert failure() == failure(GUNICORN_STICKY_HOOK="0")


FINDERS = """
class Finder:
    {}

sys.meta_path.insert(1, Finder())  # ours is first
"""
#: Import hooks of other programs.
OTHERS = {
    "a finder from before PEP 451": "find_module = lambda self, name, path=None: None",
    "a loader that takes no attributes": """
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        if name == "gunicorn.config":
            spec.loader = Loader(spec.loader)
        return spec

class Loader:
    __slots__ = "loader"

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.loader.exec_module(module)
""",
}


@pytest.mark.parametrize("other", OTHERS)
def test_import_hooks_of_others(other):
    code = f"""
import sys, warnings
from importlib.machinery import PathFinder
warnings.simplefilter("ignore")  # Python 3.10 and 3.11 say that they are going to forget old finders
{FINDERS.format(OTHERS[other])}
import gunicorn.app.base
assert "bind" in gunicorn.config.Config().settings
"""
    done = subprocess.run([sys.executable, "-c", code], env=clean_env(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_programs_that_load_parts_of_ours_first():
    code = """
import gunicorn_sticky.configuration
import gunicorn.app.base
from gunicorn_sticky.shared import current
assert current.hook_failure is None
assert "sticky_by" in gunicorn.config.Config().settings
assert gunicorn.app.base.Arbiter is not gunicorn.arbiter.Arbiter
"""
    done = subprocess.run([sys.executable, "-c", code], env=clean_env(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
