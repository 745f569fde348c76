"""From an affinity key to a slot: a keyed, consistent and even hash.

Pure. A key falls into one of `BUCKETS` buckets, and a table gives each bucket a slot.

- Keyed, so that nobody outside can aim at one worker.
- Consistent: slots only ever come and go at the upper end, and the table for N+1 slots is that for N, of which the new
  slot takes its share, 1/(N+1), from all the others alike. Nothing moves between the slots that stay.
- Even, also for the few addresses of one office: the 256 neighbours of an IPv4 /24 fall into 256 different parts of
  the table, and any run of them far apart. Plain hashing of so few keys gave the busiest of 8 workers 1.25 times its
  share in the median, and up to 1.66.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

SECRET_SIZE = 16
#: Many more than slots, and a multiple of `_NEIGHBOURS`.
BUCKETS = 4096

_NEIGHBOURS = 256
_PART = BUCKETS // _NEIGHBOURS
#: Odd, so that multiplying permutes, and by the golden ratio, which keeps any run of consecutive numbers apart.
_STEP = 159


def _assign(count: int) -> array[int]:
    """Return the slot of each bucket."""
    buckets_of = [array("H", range(BUCKETS))]  # each worker has one: a list would take 20 times as much
    for slot in range(1, count):
        share, rest = divmod(BUCKETS, slot + 1)
        taken = array("H")
        for other, buckets in enumerate(buckets_of):
            keep = share + (other < rest)
            taken += buckets[keep:]
            del buckets[keep:]
        buckets_of.append(taken)
    table = array("H", bytes(2 * BUCKETS))
    for slot, buckets in enumerate(buckets_of):
        for bucket in buckets:
            table[bucket] = slot
    return table


class Slots:
    """The slots of one master.

    Args:
        secret: `SECRET_SIZE` random bytes
        count: how many slots there are, from 1 to `BUCKETS`
    """

    def __init__(self, secret: bytes, count: int) -> None:
        self._table = _assign(count)
        self._hash = blake2b(key=secret, digest_size=8)

    def slot_of(self, key: str) -> int:
        """Return the slot, from 0 to count - 1, that serves `key`."""
        network, _, host = key.rpartition(".")
        neighbour = len(host) <= 3 and host.isdecimal()
        keyed = self._hash.copy()
        keyed.update((network if neighbour else key).encode("latin-1", "replace"))
        number = int.from_bytes(keyed.digest(), "big")
        if neighbour:
            return self._table[((int(host) * _STEP + number) % _NEIGHBOURS) * _PART + (number >> 8) % _PART]
        return self._table[number % BUCKETS]
