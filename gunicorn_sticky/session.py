"""Session ids that carry their owner: the worker that minted them.

Pure, but for the minter of this process. An id is any text, followed by a tag of 8 characters of ``A-Za-z0-9_-``: the
owner's number, encrypted, and a check of both. So whoever knows the secret can read the owner in the id, without a
table, and nobody else can: the tag tells neither the owner nor how many there are, it cannot be made up or moved to
another id, and the text in front of it keeps all its entropy.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b

from .figures import MINTED, Row

#: Characters that an id grows by.
TAG = 8
#: Owners are numbered from 1, modulo this.
OWNERS = 1 << 24

_TAG = re.compile(rb"[A-Za-z0-9_-]{8}")


class Ids:
    """Tags and reads ids.

    Args:
        secret: that of the master, see `slots.SECRET_SIZE`
    """

    def __init__(self, secret: bytes) -> None:
        self._mask = blake2b(key=secret, person=b"sticky-mask", digest_size=3)
        self._check = blake2b(key=secret, person=b"sticky-check", digest_size=3)

    def _masked(self, text: bytes, owner: bytes) -> bytes:
        mask = self._mask.copy()
        mask.update(text)
        return bytes(a ^ b for a, b in zip(mask.digest(), owner, strict=True))

    def _checked(self, text: bytes, owner: bytes) -> bytes:
        check = self._check.copy()
        check.update(owner + text)
        return check.digest()

    def tag(self, text: str, owner: int) -> str:
        """Return `text` with a tag that says it belongs to `owner`."""
        raw, number = text.encode(), owner.to_bytes(3, "big")
        return text + urlsafe_b64encode(self._masked(raw, number) + self._checked(raw, number)).decode()

    def owner(self, value: bytes) -> int | None:
        """Return the owner of an id, or None if the id is not one of ours."""
        text, encoded = value[:-TAG], value[-TAG:]
        if not text or not _TAG.fullmatch(encoded):
            return None
        tag = urlsafe_b64decode(encoded)
        owner = self._masked(text, tag[:3])
        if self._checked(text, owner) != tag[3:]:
            return None
        return int.from_bytes(owner, "big")


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
