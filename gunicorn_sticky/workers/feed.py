"""Where the bytes of a connection are cut, so that a parser sees one message at a time.

asyncio's servers push all that arrives into a parser, which may be in the middle of the next request before this one
has been answered. But the next one may be another worker's. So bytes are dealt out in pieces that do not reach beyond
the end of a message (RFC 9112, sections 6 and 7.1): a head, as many bytes of a body as the parser has found in the
head, chunks.

Sans-I/O. It is the parser that says whether a message has ended: what is found here only tells how much it may see. If
the two do not agree, the parser has been given bytes of the next message, which its adapter finds out: then the
connection is ended (request smuggling).
"""

from __future__ import annotations

import re
from enum import Enum

#: A blank line. Who accepts bare line feeds (RFC 9112, section 2.2) sees one there as well.
_BLANK_LINE = re.compile(rb"\n\r?\n")
#: The most bytes of a line with a chunk's size that are remembered.
_MAX_LINE = 16 * 1024


class _Part(Enum):
    """The part of a message that comes next."""

    #: It ends with a blank line.
    HEAD = "head"
    #: A body of a known length.
    BODY = "body"
    #: The line with a chunk's size.
    SIZE = "size"
    #: A chunk.
    CHUNK = "chunk"
    #: What follows the last chunk; it ends with a blank line.
    TRAILER = "trailer"
    #: What the parser is about to refuse.
    MALFORMED = "malformed"


# Up to Python 3.11 it takes a call to look up a member of a class of these.
_HEAD, _BODY, _SIZE, _CHUNK, _TRAILER, _MALFORMED = _Part
#: A chunk's size.
_DIGITS = re.compile(rb"[0-9A-Fa-f]{1,16}")


def is_head(data: bytes | bytearray) -> bool:
    """Tell whether bytes end with a blank line, and have no other one."""
    return data.find(b"\n\r\n") == len(data) - 3 and b"\n\n" not in data


class Feed:
    """What has arrived on a connection, and has not been given to its parser."""

    __slots__ = ("_at", "_held", "_left", "_line", "_part")

    def __init__(self) -> None:
        self._held: bytes | bytearray = b""
        #: From where on it is held.
        self._at = 0
        self._part = _HEAD
        #: How many bytes are left of the body or the chunk.
        self._left = 0
        #: The end of what has been given: of a line with a chunk's size, or where a blank line may begin.
        self._line: bytes = b""

    def __len__(self) -> int:
        return len(self._held) - self._at

    def push(self, data: bytes | bytearray) -> None:
        """Take what has arrived."""
        if self._at < len(self._held):
            data = bytearray(memoryview(self._held)[self._at :]) + data
        self._held, self._at = data, 0

    def take(self) -> bytes:
        """Return all that is held, and hold it no more."""
        data = bytes(memoryview(self._held)[self._at :])
        self._held, self._at = b"", 0
        return data

    def expect(self, length: int | None) -> None:
        """Expect a body, after a head.

        Args:
            length: in bytes; None if it is in chunks
        """
        self._line = b""
        self._part, self._left = (_SIZE, 0) if length is None else (_BODY, length)

    def pull(self) -> bytes:
        """Return the next piece, which is empty only if nothing is held."""
        held, start, part = self._held, self._at, self._part
        if part is _HEAD or part is _TRAILER:
            stop = self._end_of_lines(start)
        elif part is _BODY:
            stop = min(start + self._left, len(held))
            self._left -= stop - start
        else:
            stop = self._end_of_chunks(start)
        if start == 0 and stop == len(held):
            piece = bytes(held)
            self._held = b""
        else:
            piece = bytes(memoryview(held)[start:stop])
            self._at = stop
        return piece

    def _end_of_lines(self, start: int) -> int:
        """Return where the blank line ends, or all that is held."""
        held, line = self._held, self._line
        if line and (found := _BLANK_LINE.search(line + held[start : start + 2])):
            return start + found.end() - len(line)
        if found := _BLANK_LINE.search(held, start):
            return found.end()
        self._line = (line + bytes(held[max(start, len(held) - 2) :]))[-2:]
        return len(held)

    def _end_of_chunks(self, start: int) -> int:
        """Return where the message ends, or all that is held."""
        held, at, end = self._held, start, len(self._held)
        while at < end and self._part is not _MALFORMED:
            if self._part is _CHUNK:
                size = min(self._left, end - at)
                at += size
                self._left -= size
                if not self._left:
                    self._part = _SIZE
                continue
            stop = held.find(b"\n", at)
            if stop < 0:
                self._line += held[at:]
                if len(self._line) > _MAX_LINE:
                    self._part = _MALFORMED
                break
            found = _DIGITS.match(self._line + held[at:stop])
            at = stop + 1
            if not found:
                self._part = _MALFORMED
            elif size := int(found[0], 16):
                self._part, self._left, self._line = _CHUNK, size + 2, b""  # CRLF follows
            else:
                self._part, self._line = _TRAILER, b"\n"
                return self._end_of_lines(at)
        return end
