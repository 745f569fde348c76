"""Session ids that carry their owner: the worker that minted them.

Pure. An id is any text, followed by a tag of 8 characters of ``A-Za-z0-9_-``: the owner's number, encrypted, and a
check of both. So whoever knows the secret can read the owner in the id, without a table, and nobody else can: the tag
tells neither the owner nor how many there are, it cannot be made up or moved to another id, and the text in front of it
keeps all its entropy.

An id that has to be a UUID (RFC 9562) has the tag in the place of its node, the last 48 bits, which are as many.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from uuid import UUID

from .key import Owner

#: Characters that an id grows by.
TAG = 8
#: Owners are numbered from 1, modulo this.
OWNERS = 1 << 24

#: Characters of a UUID in front of its node, and what it may be written in: with hyphens or without.
_BEFORE_NODE = 20
_UUIDS = (32, 36)

_TAG = re.compile(rb"[A-Za-z0-9_-]{8}")
_DIGITS = re.compile(rb"[0-9a-f]{32}")


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
        return (int.from_bytes(mask.digest(), "big") ^ int.from_bytes(owner, "big")).to_bytes(3, "big")

    def _checked(self, text: bytes, owner: bytes) -> bytes:
        check = self._check.copy()
        check.update(owner + text)
        return check.digest()

    def _tag(self, text: bytes, owner: int) -> bytes:
        number = owner.to_bytes(3, "big")
        return self._masked(text, number) + self._checked(text, number)

    def _read(self, text: bytes, tag: bytes) -> Owner | None:
        owner = self._masked(text, tag[:3])
        return Owner(int.from_bytes(owner, "big")) if self._checked(text, owner) == tag[3:] else None

    def tag(self, text: str, owner: int) -> str:
        """Return `text` with a tag that says it belongs to `owner`."""
        return text + urlsafe_b64encode(self._tag(text.encode(), owner)).decode()

    def tag_uuid(self, uuid: UUID, owner: int) -> UUID:
        """Return `uuid` with a tag in the place of its node."""
        text = uuid.hex[:_BEFORE_NODE]
        return UUID(text + self._tag(text.encode(), owner).hex())

    def owner(self, value: bytes) -> Owner | None:
        """Return the owner of an id, or None if the id is not one of ours."""
        text, encoded = value[:-TAG], value[-TAG:]
        owner = self._read(text, urlsafe_b64decode(encoded)) if text and _TAG.fullmatch(encoded) else None
        if owner is None and len(value) in _UUIDS and _DIGITS.fullmatch(digits := value.replace(b"-", b"").lower()):
            text, encoded = digits[:_BEFORE_NODE], digits[_BEFORE_NODE:]
            owner = self._read(text, bytes.fromhex(encoded.decode()))
        return owner
