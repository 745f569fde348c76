"""Gunicorn's control socket, asked by gunicornc."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .harness import BIN, PATIENCE, Server, wait_for


def control(server: Server, command: str) -> dict[str, Any]:
    """Let gunicornc send one command, and return the answer; it may be sent more than once."""
    # While the master forks, its control socket is closed for a moment.
    return wait_for(lambda: _send(server, command)[0], f"an answer to {command}")


def order(server: Server, command: str) -> dict[str, Any]:
    """Let gunicornc send one command that changes something, once, and return the answer.

    It is empty if none has come: the master may fork, or end, as it was told to, before it has answered.
    """

    def reached() -> tuple[dict[str, Any] | None, str] | None:
        sent = _send(server, command)
        return None if "Failed to connect" in sent[1] else sent

    answer, error = wait_for(reached, f"the control socket to take {command}")
    assert answer or "Communication error" in error, error
    return answer or {}


def _send(server: Server, command: str) -> tuple[dict[str, Any] | None, str]:
    """Let gunicornc send a command, and return the answer, or None and what it complains about."""
    wait_for((server.folder / "control").exists, "the control socket")
    tool = [str(BIN / "gunicornc"), "-s", str(server.folder / "control"), "-j", "-c", command]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=PATIENCE)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None, done.stderr
