"""Two masters at once (SIGUSR2)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .harness import Server, wait_for

#: Lets a new master take the old one for one of another version.
ANOTHER_VERSION = """
def pre_exec(server):
    from gunicorn_sticky import __version__
    environ = server.cfg.env_orig
    environ["GUNICORN_STICKY_MASTER"] = environ["GUNICORN_STICKY_MASTER"].replace(__version__, "0.0", 1)
"""


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def pid_in(file: Path) -> int:
    """Return the pid in a master's file, or 0: between two masters there is none for a moment."""
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return 0


class Master:
    """A new master, started by SIGUSR2 and in charge."""

    def __init__(self, server: Server, old: int | None = None) -> None:
        known, count = set(server.booted("worker")), server.log.count("Master.2 accepts")
        os.kill(old or server.pid, signal.SIGUSR2)
        server.wait_for_log(r"Master\.2 accepts connections now", count=count + 1)
        self.server = server
        self.pid = int((server.folder / "pid.2").read_text())
        self.workers = set(server.booted("worker")) - known

    def end(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)
        wait_for(lambda: not is_running(self.pid), "the new master to end")

    def be_promoted(self) -> None:
        """Wait until the new master knows that it is the only one."""
        pidfile = self.server.folder / "pid"
        wait_for(lambda: pid_in(pidfile) == self.pid, "the new master's promotion")
        assert not (self.server.folder / "pid.2").exists()
