"""The listening sockets that a master has beside Gunicorn's: for the status, and for programs that join the cluster."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from ..broadcast.join_socket import JoinSocket
from ..status.listener import StatusSocket


class Sockets:
    """Both of them, as far as the configuration asks for them.

    Args:
        join: inherited from another master
        status: inherited from another master
    """

    def __init__(self, join: JoinSocket | None, status: StatusSocket | None) -> None:
        self.join = join
        self.status = status

    def open(self, cfg: Any, log: Any, fail: Callable[..., None]) -> None:
        """Have the sockets that a configuration asks for.

        Args:
            fail: called with a message if one of them cannot be had; then all stays as it is
        """
        try:
            self._open_join(cfg)
        except OSError as error:
            fail("Invalid %s: %s", "sticky_cluster_socket", error)
        try:
            self.open_status(cfg, log)
        except OSError as error:
            fail("Invalid %s: %s", "sticky_status", error)

    def open_status(self, cfg: Any, log: Any) -> None:
        """Have the socket for the status.

        Raises:
            OSError: it cannot be had
        """
        address, before = cfg.sticky_status, self.status
        if address == (before and before.address):
            return
        try:
            self.status = StatusSocket(address) if address else None
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_upgrade():
                raise OSError(f"{address}: {error.strerror}") from None
            log.warning("No status while the old master has %s", address)
            return
        if before:
            before.close()

    def _open_join(self, cfg: Any) -> None:
        path, before = cfg.sticky_cluster_socket, self.join
        path = path and os.path.abspath(path)
        if path == (before and before.path):
            return
        # In an upgrade from another version it is in use, or it would have been inherited.
        self.join = JoinSocket(path, uid=cfg.uid, gid=cfg.gid, replace=_is_upgrade()) if path else None
        if before:
            before.remove()


def _is_upgrade() -> bool:
    """Tell whether another master has started this one (`gunicorn.arbiter.Arbiter.reexec`)."""
    return "GUNICORN_PID" in os.environ
