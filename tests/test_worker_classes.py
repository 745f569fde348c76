"""The names that `-k` takes, without a server: what is missing, and what can be made sticky."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from support.harness import APPS, PATIENCE
from uvicorn_worker import UvicornH11Worker

from gunicorn_sticky import ThreadStickyWorker, UvicornStickyWorker, sticky


class Mine(ThreadWorker):
    """A worker class of a user's."""


@pytest.mark.parametrize(("own", "ours"), [(Mine, ThreadStickyWorker), (UvicornH11Worker, UvicornStickyWorker)])
def test_the_sticky_form_of_a_worker_class(own: type, ours: type):
    form = sticky(own)
    assert issubclass(form, ours)
    assert issubclass(form, own)
    assert form.__name__ == f"Sticky{own.__name__}"
    assert sticky(form) is form
    assert vars(own).get("CONFIG_KWARGS") == getattr(form, "CONFIG_KWARGS", None)


@pytest.mark.parametrize("own", [SyncWorker, Worker])
def test_what_cannot_be_sticky(own: type):
    with pytest.raises(RuntimeError, match=rf"^{own.__name__} cannot be sticky: make it a subclass of one of gunicorn"):
        sticky(own)


def refusal(preparation: str, worker_class: str) -> str:
    """Return what Gunicorn says when it cannot start with a worker class, after some preparation."""
    program = f"{preparation}; from gunicorn.app.wsgiapp import run; run()"
    command = [sys.executable, "-c", program, "-k", f"gunicorn_sticky.{worker_class}", "whoami:app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=APPS)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("missing", ["uvicorn", "uvicorn_worker"])
def test_a_package_that_is_missing(missing: str):
    said = refusal(f"import sys; sys.modules[{missing!r}] = None", "UvicornStickyWorker")
    assert f'UvicornStickyWorker needs {missing}: pip install "gunicorn-sticky[uvicorn]"' in said


@pytest.mark.parametrize(
    ("worker_class", "preparation", "line"),
    [
        (
            "ThreadStickyWorker",
            "import gunicorn; gunicorn.version_info, gunicorn.__version__ = (25, 0, 3), '25.0.3'",
            "gunicorn_sticky needs Gunicorn 25.1 or newer, and this is 25.0.3",
        ),
        (
            "ASGIStickyWorker",
            "import gunicorn; gunicorn.version_info, gunicorn.__version__ = (27, 0, 0), '27.0.0'",
            "ASGIStickyWorker needs Gunicorn 27.0.1 or newer, and this is 27.0.0",
        ),
        (
            "UvicornStickyWorker",
            "import uvicorn; uvicorn.__version__ = '0.22.0'",
            "UvicornStickyWorker needs uvicorn 0.23 or newer, and this is 0.22.0",
        ),
        (
            "UvicornStickyWorker",
            "import uvicorn, uvicorn_worker; uvicorn.__version__, uvicorn_worker.__version__ = '0.36.0.post1', '0.3.0'",
            "uvicorn 0.36.0.post1 needs uvicorn-worker 0.4 or newer, and this is 0.3.0: pip install",
        ),
    ],
)
def test_a_version_that_is_too_old(worker_class: str, preparation: str, line: str):
    assert f"Error: {line}" in refusal(preparation, worker_class)
