"""Gunicorn's control socket, asked by gunicornc."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .harness import BIN, PATIENCE, Server, wait_for


def control(server: Server, command: str) -> dict[str, Any]:
    """Let gunicornc send one command, and return the answer."""
    wait_for((server.folder / "control").exists, "the control socket")
    tool = [str(BIN / "gunicornc"), "-s", str(server.folder / "control"), "-j", "-c", command]

    def answer() -> dict[str, Any] | None:
        # While the master forks, its control socket is closed for a moment.
        done = subprocess.run(tool, capture_output=True, text=True, timeout=PATIENCE)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else None

    return wait_for(answer, f"an answer to {command}")
