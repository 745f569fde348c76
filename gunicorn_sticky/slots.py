"""From an affinity key to a slot: a keyed, consistent hash.

Pure. Keyed, so that nobody outside can aim at one worker. Slots are numbered and only ever added or taken at the upper
end, which is the case that jump consistent hashing (Lamping and Veach, 2014, arXiv:1406.2294) was made for: no table,
an even spread, and going from N to N+1 slots moves 1/(N+1) of the keys, all of them to the new slot.
"""

from __future__ import annotations

from hashlib import blake2b

SECRET_SIZE = 16

_MASK = (1 << 64) - 1


class Slots:
    """The slots of one master.

    Args:
        secret: `SECRET_SIZE` random bytes
        count: how many slots there are, at least 1
    """

    def __init__(self, secret: bytes, count: int) -> None:
        self._count = count
        self._hash = blake2b(key=secret, digest_size=8)

    def slot_of(self, key: str) -> int:
        """Return the slot, from 0 to count - 1, that serves `key`."""
        keyed = self._hash.copy()
        keyed.update(key.encode("latin-1", "replace"))
        state = int.from_bytes(keyed.digest(), "big")
        slot, jump = 0, 0
        while jump < self._count:
            slot = jump
            state = (state * 2862933555777941757 + 1) & _MASK
            jump = int((slot + 1) * (1 << 31) / ((state >> 33) + 1))
        return slot
