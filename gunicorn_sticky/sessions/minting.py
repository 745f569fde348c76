"""Minting session ids: each worker makes ids that carry its number, see session_ids.py."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

from ..routing.session_ids import Ids
from ..shared import current


@dataclass(frozen=True)
class Minter:
    """Who mints ids in a worker."""

    ids: Ids
    #: The worker's number.
    owner: int
    #: Counts one more.
    count: Callable[[], None]

    def mint(self, text: str) -> str:
        """Return `text` as an id of a new session of this worker."""
        self.count()
        return self.ids.tag(text, self.owner)

    def mint_uuid(self, uuid: UUID) -> UUID:
        """Return `uuid` as an id of a new session of this worker."""
        self.count()
        return self.ids.tag_uuid(uuid, self.owner)

    def is_own(self, text: str) -> bool:
        """Tell whether `text` is an id of this worker already."""
        return self.ids.owner(text.encode()) == self.owner


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
    return text if current.minter is None else current.minter.mint(text)


def own_id(text: str) -> str:
    """Return an id for a session of this worker: `text` as it is, if it is one already."""
    if current.minter is not None and current.minter.is_own(text):
        return text
    return session_id(text)


def own_uuid(uuid: UUID) -> UUID:
    """Return an id for a session of this worker that is a UUID as well."""
    return uuid if current.minter is None else current.minter.mint_uuid(uuid)


def new_uuid() -> UUID:
    """Do in the place of `uuid.uuid4`: return a random id for a session of this worker."""
    return own_uuid(uuid4())
