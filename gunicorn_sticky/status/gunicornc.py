"""What `gunicornc` is told by the control socket (`gunicorn.ctl`): Gunicorn's answers, with slots and dispatcher.

`gunicornc` prints columns of its own; with -j it prints all that is here.
"""

from __future__ import annotations

from typing import Any

from gunicorn.ctl.handlers import CommandHandlers

from .snapshot import DRAINING, Server


class Commands(CommandHandlers):  # type: ignore[misc]
    """The commands that show something. Called in the control socket's own thread, so these only look.

    Args:
        arbiter: the master
        server: how to see what it and the others count
    """

    def __init__(self, arbiter: Any, server: Server) -> None:
        super().__init__(arbiter)
        self._server = server

    def show_workers(self) -> dict[str, Any]:
        """Return the workers, each with its slot."""
        shown: dict[str, Any] = super().show_workers()
        self._add_slots(shown["workers"], self._server.status())
        return shown

    def show_all(self) -> dict[str, Any]:
        """Return all processes, with the dispatcher."""
        shown: dict[str, Any] = super().show_all()
        status = self._server.status()
        self._add_slots(shown["web_workers"], status)
        return shown | {"dispatcher": status["dispatcher"]}

    def show_stats(self) -> dict[str, Any]:
        """Return what is counted, with all of the server's status."""
        return {**super().show_stats(), "sticky": self._server.status()}

    def _add_slots(self, workers: list[dict[str, Any]], status: dict[str, Any]) -> None:
        found = {
            worker["pid"]: {"slot": slot["slot"], **worker} for slot in status["slots"] for worker in slot["workers"]
        }
        for worker in workers:
            seen = found.get(worker["pid"], {"slot": None, "state": DRAINING})  # its slot is no more
            # Gunicorn's first: its age is the order in which workers were made.
            worker.update(seen | worker)
