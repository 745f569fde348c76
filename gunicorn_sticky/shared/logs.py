"""Reopening log files, on SIGUSR1: where privileges have been given up, that may fail.

`gunicorn.glogging.Logger.reopen_files` closes a file before it opens the new one. If that fails, it raises an
exception, and so does whatever is logged later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any

from gunicorn.glogging import loggers


def _files(those: Iterable[logging.Logger]) -> Iterator[tuple[logging.FileHandler, IO[str]]]:
    """Return what loggers write files by, and those files that are open."""
    for logger in those:
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream:
                yield handler, handler.stream


def reopen(log: Any) -> None:
    """Reopen all log files, or go on with those that are open, if one cannot be opened.

    Args:
        log: Gunicorn's logger
    """
    try:
        for handler, _ in _files(loggers()):
            handler._open().close()
    except OSError as error:
        log.error("User %d still writes to the old log files: %s (setting: user)", os.geteuid(), error)
        return
    log.reopen_files()


def give(uid: int) -> None:
    """Let a user open Gunicorn's log files that this process has made, as Gunicorn does at start.

    See `gunicorn.glogging.Logger._set_handler`.
    """
    for _, file in _files(map(logging.getLogger, ("gunicorn.error", "gunicorn.access"))):
        fd = file.fileno()
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() != uid:
            with contextlib.suppress(OSError):
                os.fchown(fd, uid, -1)
