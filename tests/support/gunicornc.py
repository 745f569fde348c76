"""Gunicorn's control socket, asked by gunicornc."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .harness import BIN, PATIENCE, Server, wait_for


def gunicornc(server: Server, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run gunicornc until it has reached the control socket, which a master closes for a moment when it forks.

    Args:
        server: whose control socket is meant
        arguments: what follows the path of the socket on its command line
        how: more of subprocess.run's keyword arguments
    """
    tool = [str(BIN / "gunicornc"), "-s", str(server.folder / "control"), *arguments]

    def reached() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(tool, capture_output=True, text=True, timeout=PATIENCE, **how)
        return None if "Failed to connect" in done.stderr else done

    return wait_for(reached, f"the control socket to take {arguments}")


def control(server: Server, command: str) -> dict[str, Any]:
    """Let gunicornc send one command, and return the answer; it may be sent more than once."""

    def answer() -> dict[str, Any] | None:
        done = gunicornc(server, "-j", "-c", command)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else None

    return wait_for(answer, f"an answer to {command}")


def order(server: Server, command: str) -> dict[str, Any]:
    """Let gunicornc send one command that changes something, once, and return the answer.

    It is empty if none has come: the master may fork, or end, as it was told to, before it has answered.
    """
    done = gunicornc(server, "-j", "-c", command)
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    assert "Communication error" in done.stderr, done.stderr
    return {}
