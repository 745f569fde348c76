"""Finding one header field in the head of an HTTP/1 request, of which the end may not have arrived yet.

Pure: bytes in, an answer out. The head is read, never judged: whatever is wrong with it is for Gunicorn's own parser in
the worker to refuse. Lines end in CRLF or a bare LF (RFC 9112 section 2.2), and folded lines (section 5.2) belong to
the field that they continue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# They may stand before a request line (RFC 9112 section 2.2).
_EMPTY_LINES = re.compile(rb"[\r\n]*")


class Incomplete(Exception):
    """The head has not arrived far enough to tell."""


class Field:
    """One header field, by name, in any case.

    Args:
        name: the field's name
    """

    def __init__(self, name: str) -> None:
        # Each match begins at a line feed, so neither the request line nor a longer name can match, and the first
        # empty line ends the search, so a body cannot either. The look-ahead waits for the character that tells
        # whether the next line continues the value.
        self._next = re.compile(
            rb"\n(?:\r?\n|%s[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?=\n[^ \t]))" % re.escape(name.encode("latin-1")),
            re.IGNORECASE,
        )

    def values(self, data: bytes | bytearray, size: int) -> Iterator[bytes]:
        """Yield the values of the field in order, as they stand in the first `size` bytes of `data`.

        Raises:
            Incomplete: after the last value, if the end of the head is not among those bytes
        """
        start = _EMPTY_LINES.match(data, 0, size).end()  # type: ignore[union-attr]
        for match in self._next.finditer(data, start, size):
            if match.group(1) is None:
                return
            yield match.group(1)
        raise Incomplete
