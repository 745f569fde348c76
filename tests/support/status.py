"""A server's status, by the command line and by HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from gunicorn_sticky.status.snapshot import find

from .harness import BIN, STICKY, Response, Server, clean_env, request, wait_for


def status(server: Server) -> dict[str, Any]:
    (found,) = wait_for(lambda: list(find(server.pid)), "the server's metrics")
    return found.status()


def run(*args: str, columns: int = 80) -> tuple[int, str]:
    """Run `gunicorn-sticky status`, and return its exit code and what it has printed."""
    command = [str(BIN / "gunicorn-sticky"), "status", *args]
    done = subprocess.run(command, env=clean_env({"COLUMNS": str(columns)}), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def sigstop(pids: Sequence[int]) -> Iterator[None]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class Site(Server):
    """A server with a status server, on a port that the kernel chooses."""

    def __init__(self, *args: str, address: str = "127.0.0.1:0", **kwargs: Any) -> None:
        super().__init__(*STICKY, "-w", "2", "--sticky-status", address, *args, "whoami:app", **kwargs)

    @property
    def status_port(self) -> int:
        return int(self.wait_for_log(r"Status at: http://.*:(\d+)$").group(1))

    def ask(self, path: str, **kwargs: Any) -> Response:
        return request(self.status_port, path, **kwargs)

    def status(self) -> dict[str, Any]:
        response = self.ask("/status")
        assert response.status == 200, response
        return dict(json.loads(response.body))

    def wait_for_state(self, state: str) -> None:
        wait_for(lambda: self.status()["state"] == state, f"the server to be {state}")


@contextlib.contextmanager
def well(*args: str, **kwargs: Any) -> Iterator[Site]:
    with Site(*args, **kwargs) as site:
        site.wait_for_state("ok")
        yield site
