"""Finding a header field, cookie or query parameter in the head of an HTTP/1 request that may still be arriving.

Pure: bytes in, an answer out. The head is read, never judged: whatever is wrong with it is for Gunicorn's own parser in
the worker to refuse. Lines end in CRLF or a bare LF (RFC 9112 section 2.2), and folded lines (section 5.2) belong to
the field that they continue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

#: Largest head that is searched for a header, in bytes.
MAX_HEAD = 64 * 1024

# They may stand before a request line (RFC 9112 section 2.2).
_EMPTY_LINES = re.compile(rb"[\r\n]*")
# The end of a field's value. (In one expression with its beginning, each byte of it would be tried as the end.)
_END = re.compile(rb"\n(?=[^ \t])")


class Incomplete(Exception):
    """The head has not arrived far enough to tell."""


class Field:
    """One header field, by name, in any case.

    Args:
        name: the field's name
    """

    def __init__(self, name: str) -> None:
        # Each match begins at a line feed, so neither the request line nor a longer name can match, and the first
        # empty line ends the search, so a body cannot either.
        self._next = re.compile(rb"\n(?:\r?\n|(%s[ \t]*:))" % re.escape(name.encode("latin-1")), re.IGNORECASE)

    def values(self, data: bytes | bytearray, size: int, start: int = 0) -> Iterator[bytes]:
        """Yield the values of the field in order, as they stand in the first `size` bytes of `data`.

        Args:
            start: where the head starts

        Raises:
            Incomplete: after the last value, if the end of the head is not among those bytes
        """
        start = _EMPTY_LINES.match(data, start, size).end()  # type: ignore[union-attr]
        while match := self._next.search(data, start, size):
            if match.group(1) is None:
                return
            # The character behind a line's end tells whether the next line continues the value.
            end = _END.search(data, match.end(), size)
            if end is None:
                break
            yield bytes(data[match.end() : end.start()])
            start = end.start()
        raise Incomplete


class Query:
    """One parameter of the query string in the request line.

    Args:
        name: the parameter's name
    """

    def __init__(self, name: str) -> None:
        self._next = re.compile(rb"[?&]%s=([^&#\s]*)" % re.escape(name.encode()))

    def values(self, data: bytes | bytearray, size: int, start: int = 0) -> Iterator[bytes]:
        """Yield the parameter's values, decoded; see `Field.values`."""
        start = _EMPTY_LINES.match(data, start, size).end()  # type: ignore[union-attr]
        end = data.find(b"\n", start, size)
        if end < 0:
            raise Incomplete
        query = data.find(b"?", start, end)
        fragment = data.find(b"#", start, end)
        if query < 0:
            return
        for match in self._next.finditer(data, query, end if fragment < 0 else fragment):
            if match.start() == query or data[match.start()] == ord("&"):
                yield unquote_to_bytes(match.group(1))


class Cookie:
    """One cookie (RFC 6265 section 4.2).

    Args:
        name: the cookie's name
    """

    def __init__(self, name: str) -> None:
        self._field = Field("cookie")
        self._next = re.compile(rb"(?:^|[;\s])%s=\"?([^;\s\"]*)" % re.escape(name.encode()))

    def values(self, data: bytes | bytearray, size: int, start: int = 0) -> Iterator[bytes]:
        """Yield the cookie's values; see `Field.values`."""
        for value in self._field.values(data, size, start):
            for match in self._next.finditer(value):
                yield match.group(1)
