"""Minting session ids: each worker makes ids that carry its number, see session_ids.py."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from .figures import MINTED, Row
from .session_ids import Ids


@dataclass(frozen=True)
class Minter:
    """Who mints ids in a worker."""

    ids: Ids
    #: The worker's number.
    owner: int
    #: The worker's row, see figures.py.
    figures: Row


#: That of this process. Set in workers that are sticky by session.
minter: Minter | None = None


def session_id(text: str | None = None) -> str:
    """Return an id for a session of this worker, for applications with ids of their own.

    With the setting ``sticky_by = "session"`` (or ``"cookie"``), requests that carry the id, where the setting
    ``sticky_session_keys`` says, reach this worker as long as it lives. Otherwise the id is returned as it is.

    Args:
        text: the application's own id; by default 128 random bits

    Returns:
        the id, followed by 8 characters of ``A-Za-z0-9_-``
    """
    if text is None:
        text = secrets.token_urlsafe(16)
    if minter is None:
        return text
    minter.figures[MINTED] += 1
    return minter.ids.tag(text, minter.owner)


def own_id(text: str) -> str:
    """Return an id for a session of this worker: `text` as it is, if it is one already."""
    if minter is not None and minter.ids.owner(text.encode()) == minter.owner:
        return text
    return session_id(text)
