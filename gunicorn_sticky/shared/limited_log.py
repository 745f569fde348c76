"""Lines in Gunicorn's log, of which clients may not cause as many as they like."""

from __future__ import annotations

import time
from typing import Any

#: Seconds between two lines about one setting.
INTERVAL = 1.0


class LimitedLog:
    """Writes to the log, at most one line a second for each setting that would have to be changed.

    Args:
        log: Gunicorn's logger
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        #: By setting: when the next line may be written, and how many have been left out.
        self._next: dict[str, tuple[float, int]] = {}

    def warn(self, setting: str, text: str, *args: Any) -> None:
        """Log what has gone wrong, and the setting to change."""
        now = time.monotonic()
        due, left_out = self._next.get(setting, (0.0, 0))
        if now < due:
            self._next[setting] = due, left_out + 1
            return
        self._next[setting] = now + INTERVAL, 0
        more = f", and {left_out} more like it" if left_out else ""
        self._log.warning(f"{text} (setting: {setting}){more}", *args)
