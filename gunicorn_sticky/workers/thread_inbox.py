"""The inbox of a worker with threads."""

from __future__ import annotations

from .drain import Intake
from .inbox import Inbox


class ThreadInbox(Inbox):
    """An inbox, and what the loop has to do with it."""

    intake: Intake
    is_watched = False
