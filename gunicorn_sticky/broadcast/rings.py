"""Rings in shared memory, by which processes tell all others something and wait for none of them.

Each process that writes has a ring of its own, whose oldest records it overwrites. Each that reads keeps to itself how
far it is in all of them. So there is nothing to lock, and whoever is slow, stopped or killed in the middle of it harms
only itself: a record counts once the ring's cell names it, and a reader notices by sequence number what it has missed.

Each of them could also write anything anywhere. That costs messages, until the writers of the rings that it has written
into write again, but it stops nobody: a cell that cannot be right is only looked at.
"""

from __future__ import annotations

import fcntl
import heapq
import mmap
import os
import resource
import struct
import time
from collections.abc import Iterator
from zlib import crc32

from ..shared import memory
from ..shared.unpatched import allocate_lock

#: Bytes of a ring. Memory is only used for what has been written.
SIZE = 8 << 20
#: Bytes of the longest message. A writer that dies while it writes one has not destroyed the one before.
MAX_MESSAGE = SIZE // 4
#: How many processes can write at the same time, unless `ulimit -f` allows fewer.
RINGS = 4096

# A byte for each ring is 1 if there has been a writer, and a cell says where its last record is. Positions count all
# bytes that have ever been written; 0 is none.
_START = 8
#: Beyond this nobody has written.
_MOST = 1 << 62
_CELLS = RINGS
_DATA = RINGS * (1 + 8) + -(RINGS * 9) % mmap.ALLOCATIONGRANULARITY
# Of what follows: the check; then the length of the message, its number in this ring, and when it was written, in
# nanoseconds of the monotonic clock, which all processes share.
_CHECK = struct.Struct("<I")
_HEAD = struct.Struct("<IQQ")
_OVERHEAD = _CHECK.size + _HEAD.size
#: struct flock of fcntl(2).
_LOCK = struct.Struct("hhqqi")


class Rings:
    """The memory of all rings.

    Args:
        fd: of rings that are there already; else new ones are made
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = memory.create("gunicorn-sticky-rings", _DATA + _room() * SIZE)
        self.fd = fd
        #: How many there are.
        self.count = (os.fstat(fd).st_size - _DATA) // SIZE
        table = memoryview(mmap.mmap(fd, _DATA))
        self._used = table[:RINGS]
        self._last = table[_CELLS : _CELLS + RINGS * 8].cast("Q")
        self._mapped: dict[int, memoryview] = {}

    def take(self) -> tuple[int, int]:
        """Return a ring that nobody writes to, and the descriptor that keeps it so as long as it is open.

        Raises:
            OSError: no ring is free, or /proc is not mounted
        """
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        for ring in range(self.count):
            try:
                # The lock is that of what has been opened here, see "Open file description locks" in fcntl_locking(2).
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, ring, 1, 0))
            except BlockingIOError:
                continue
            self._used[ring] = 1
            return ring, fd
        os.close(fd)
        raise OSError(f"there are {self.count} writers already" + (" (ulimit -f)" if self.count < RINGS else ""))

    def lasts(self) -> list[int]:
        """Return where the last records are, by ring."""
        return self._last[: bytes(self._used).rfind(1, 0, self.count) + 1].tolist()

    def last(self, ring: int) -> int:
        """Return where a ring's last record is, or 0."""
        return self._last[ring]

    def put(self, ring: int, position: int, record: bytes) -> None:
        """Write a record, and then say that it is there."""
        data, start = self._data(ring), position % SIZE
        fits = min(len(record), SIZE - start)
        data[start : start + fits] = record[:fits]
        data[: len(record) - fits] = record[fits:]
        self._used[ring] = 1  # still
        self._last[ring] = position

    def get(self, ring: int, position: int, size: int) -> bytes:
        """Return what is at a position now."""
        data, start = self._data(ring), position % SIZE
        found = bytes(data[start : start + size])
        return found if len(found) == size else found + bytes(data[: size - len(found)])

    def record(self, ring: int, position: int) -> tuple[int, int, bytes] | None:
        """Return number, time and message of a record, or None if it is not there any more, or not to be seen yet.

        The latter because not all processors show another's writes in their order.
        """
        start = self.get(ring, position, _OVERHEAD)
        length, number, stamp = _HEAD.unpack_from(start, _CHECK.size)
        if length > MAX_MESSAGE:
            return None
        message = self.get(ring, position + _OVERHEAD, length)
        if _CHECK.unpack_from(start)[0] != _check(position, start[_CHECK.size :], message):
            return None
        return number, stamp, message

    def end(self, ring: int, last: int) -> tuple[int, int]:
        """Return where a ring's last record ends, and its number."""
        number, _, message = self.record(ring, last) or (0, 0, bytes(MAX_MESSAGE))  # destroyed, by none of us
        return last + _OVERHEAD + len(message), number

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def _data(self, ring: int) -> memoryview:
        data = self._mapped.get(ring)
        if data is None:
            data = self._mapped[ring] = memoryview(mmap.mmap(self.fd, SIZE, offset=_DATA + ring * SIZE))
        return data


def _room() -> int:
    """Return how many rings can be made: the limit on files' sizes (`RLIMIT_FSIZE`) counts for memory, too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return RINGS if limit == resource.RLIM_INFINITY else min(max(limit - _DATA, 0) // SIZE, RINGS)


def _check(position: int, head: bytes, message: bytes) -> int:
    return crc32(message, crc32(head, position & 0xFFFFFFFF))


class Writer:
    """Writes to a ring of its own, in the process that has made it.

    Raises:
        OSError: there is no ring for it
    """

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._ring, self._fd = rings.take()
        self._position, self._number = _START, 0
        if 0 < (last := rings.last(self._ring)) < _MOST:
            self._position, self._number = rings.end(self._ring, last)
        # Not gevent's: a record is written in one go, unless there are real threads.
        self._lock = allocate_lock()

    def write(self, message: bytes) -> None:
        """Let all readers have a message.

        Raises:
            ValueError: the message is too long
        """
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(message)} bytes: at most {MAX_MESSAGE}")
        with self._lock:
            position, number = self._position, self._number + 1
            head = _HEAD.pack(len(message), number, time.monotonic_ns())
            record = _CHECK.pack(_check(position, head, message)) + head + message
            self._rings.put(self._ring, position, record)
            self._position, self._number = position + len(record), number

    def close(self) -> None:
        """Give the ring back."""
        os.close(self._fd)


class _Place:
    """How far a reader is in a ring.

    Args:
        last: what the ring's cell said when it was read last
        position: that of the next record
        number: that of the record before
    """

    __slots__ = ("doubted", "last", "number", "position")

    def __init__(self, last: int = 0, position: int = _START, number: int = 0) -> None:
        self.last = last
        self.position = position
        self.number = number
        #: Whether the record here could not be read last time.
        self.doubted = False


class Reader:
    """Reads what is written from now on."""

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        #: How many messages were gone before they could be read.
        self.dropped = 0
        #: Whether `read` has left something for the next time.
        self.left = False
        self._places = [
            _Place(last, *rings.end(ring, last)) if last else _Place() for ring, last in enumerate(rings.lasts())
        ]

    def read(self) -> Iterator[bytes]:
        """Return what there is, whoever has written it: an answer always after what it answers to.

        Whoever has read a message writes with a later time. So in what is older than the first look at the rings, no
        cause is missing of anything that is there. What is younger is left for the next time.
        """
        until = time.monotonic_ns()
        self.left = False
        lasts = self._rings.lasts()
        while len(self._places) < len(lasts):
            self._places.append(_Place())
        news = [
            self._records(ring, place, last, until)
            for ring, (place, last) in enumerate(zip(self._places, lasts, strict=False))  # fewer: one was overwritten
            if last not in (0, place.last)
        ]
        return (message for _, _, message in (heapq.merge(*news) if len(news) > 1 else news[0] if news else ()))

    def _records(self, ring: int, place: _Place, last: int, until: int) -> Iterator[tuple[int, int, bytes]]:
        """Return time, ring and message of the records up to the last one, and go on from there next time."""
        place.position = min(place.position, last)  # writers never go back: it, or what we went by, was overwritten
        gone_on = False
        while place.position <= last:
            found = self._rings.record(ring, place.position)
            if found is None:
                newest = self._rings.last(ring)
                if gone_on or (not place.doubted and newest - place.position < SIZE):
                    place.doubted = self.left = True
                    return
                # Overwritten. What else this ring has would soon be, too.
                place.doubted, gone_on = False, True
                place.position = newest if newest > place.position else newest + 1
                last = newest
                continue
            number, stamp, message = found
            if until <= stamp <= time.monotonic_ns():  # beyond that it is not true
                self.left = True
                return
            self.dropped += max(number - place.number - 1, 0)
            place.doubted = False
            place.last = place.position
            place.position += _OVERHEAD + len(message)
            place.number = number
            yield stamp, ring, message
        place.last = last
