"""What workers share with the arbiter: they find it loaded, and do not make it their own by looking at it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.harness import PATIENCE, Server, clean_env

KINDS = ("gevent", "threads")
CLASSES = {"gevent": "gunicorn_sticky.GeventStickyWorker", "threads": "gunicorn_sticky.ThreadStickyWorker"}
#: Whose modules those are.
LIBRARIES = ("gevent", "gunicorn", "gunicorn_h1c", "gunicorn_sticky")
#: What the master is before it forks its first worker, and what it has loaded.
MASTER = """
import json, os, sys, threading
from os.path import lexists

def pre_fork(server, worker):
    state = {
        "modules": sorted(sys.modules),
        "threads": threading.active_count(),
        "files": [os.readlink(path) for fd in os.listdir("/proc/self/fd") if lexists(path := f"/proc/self/fd/{fd}")],
    }
    if hub_local := sys.modules.get("gevent._hub_local"):
        state["hub"] = hub_local.get_hub_if_exists() is not None
        state["patched"] = sorted(sys.modules["gevent.monkey"].saved)
    print("Master:", json.dumps(state), flush=True)
"""
#: An application whose objects take some 40 MB.
LARGE = """
import gc
from pathlib import Path

KEPT = [[number] for number in range(400_000)]

def app(environ, start_response):
    gc.collect()
    body = Path("/proc/self/smaps_rollup").read_bytes()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def kib(kind: str, rollup: str) -> int:
    match = re.search(rf"^{kind}: *(\d+) kB", rollup, re.MULTILINE)
    assert match
    return int(match[1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_worker_takes_is_loaded_before_the_fork(kind: str):
    with Server("-k", CLASSES[kind], "-w", "1", "modules:app", config=MASTER) as server:
        worker = set(json.loads(server.get().body))
        master = json.loads(server.wait_for_log("^Master: (.*)")[1])
    late = {name for name in worker - set(master["modules"]) if name.partition(".")[0] in LIBRARIES}
    assert {name for name in late if not name.startswith("gevent.monkey._")} == set()
    # And nothing else has come of that.
    assert master["threads"] == 1
    assert not [name for name in master["files"] if "eventpoll" in name]
    if kind == "gevent":
        assert (master["hub"], master["patched"]) == (False, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_preloaded_application_stays_shared(tmp_path: Path, kind: str):
    """gevent looks at each object there is, as a collection of garbage does, and that is as if it wrote to it."""
    (tmp_path / "large.py").write_text(LARGE)
    config = f"pythonpath = {str(tmp_path)!r}"
    with Server("-k", CLASSES[kind], "-w", "2", "--preload", "large:app", config=config) as server:
        rollup = server.get().body.decode()
    assert kib("Rss", rollup) > 40_000
    assert kib("Private_Dirty", rollup) < 25_000


def run(folder: Path, code: str) -> str:
    """Run a program that finds modules in a folder, and return what it has to say."""
    env = clean_env({"PYTHONPATH": str(folder)})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stderr


PATCHES = """
import gc
from gevent import monkey
from gunicorn_sticky.workers.gevent_patching import memory_stays_shared

gc.freeze()
with memory_stays_shared():
    monkey.patch_all()
"""


def test_locks_of_imports_that_are_under_way_are_found(tmp_path: Path):
    """Who runs Gunicorn within an import holds one, and gives it back after the patching, as somebody else by then."""
    (tmp_path / "patches.py").write_text(PATCHES)
    assert run(tmp_path, "import patches") == ""


def test_gevent_warns_of_what_is_loaded_too_early(tmp_path: Path):
    (tmp_path / "early.py").write_text("from ssl import SSLContext")
    shared = run(tmp_path, f"import early\n{PATCHES}")
    assert "early.py" in shared
    plain = PATCHES.replace("gc.freeze()\nwith memory_stays_shared()", "\nwith open('/dev/null')")  # in the same line
    assert shared == run(tmp_path, f"import early\n{plain}")
