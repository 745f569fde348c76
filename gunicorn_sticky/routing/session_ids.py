"""Session ids that carry their owner: the worker that minted them.

Pure. An id is any text, followed by a tag of 8 characters of ``A-Za-z0-9_-``: the owner's number, encrypted, and a
check of both. So whoever knows the secret can read the owner in the id, without a table, and nobody else can: the tag
tells neither the owner nor how many there are, it cannot be made up or moved to another id, and the text in front of it
keeps all its entropy.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

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
