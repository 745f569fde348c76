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


@pytest.mark.parametrize("missing", ["uvicorn", "uvicorn_worker"])
def test_a_package_that_is_missing(missing: str):
    program = f"import sys; sys.modules[{missing!r}] = None; from gunicorn.app.wsgiapp import run; run()"
    command = [sys.executable, "-c", program, "-k", "gunicorn_sticky.UvicornStickyWorker", "whoami:app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=APPS)
    assert done.returncode == 1
    assert f'UvicornStickyWorker needs {missing}: pip install "gunicorn-sticky[uvicorn]"' in done.stderr
    assert "Traceback" not in done.stderr
