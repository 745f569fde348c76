"""Finding header fields, cookies and query parameters in the head of an HTTP/1 request that may still be arriving.

Pure: bytes in, an answer out. A head is read as Gunicorn's own parser reads it:

- One empty line may stand before the request line (RFC 9112 section 2.2).
- Only CRLF ends a line. Older Gunicorns take a bare LF for a part of the request line, newer ones refuse it, as is done
  here.
- Folded lines (RFC 9112 section 5.2) belong to the field that they continue.

Whatever else is wrong with a head is for the worker's parser to refuse. No byte is searched twice as a head arrives in
pieces: what has been found out is kept in a `Head`.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from .key import Owner

#: Largest head that is searched, in bytes.
MAX_HEAD = 64 * 1024
#: How many clients, parameters or session ids of a head are looked at, in all of it: no honest request has as many.
MAX_VALUES = 100

# To look for a number in bytes is several times faster than to look for a single byte.
_CR, _TAB, _PERCENT, _PLUS = b"\r\t%+"
# The end of a value of several lines. (Joined to its beginning, each byte of it would be tried as the end.)
_END = re.compile(rb"\r\n(?=[^ \t])")
# What urllib.parse.urlsplit, and so Gunicorn, takes out of a request's target; newer versions refuse it.
_IGNORED = b"\t\r"


class Incomplete(Exception):
    """The head has not arrived far enough to tell."""


class BareLineFeed(ValueError):
    """A line of the head ends in LF without CR, which parsers do not agree about."""

    def __str__(self) -> str:
        return "a line of the head ends with a bare line feed"


class Head:
    """What is known of the head of one request, and how far it has been read."""

    # Class attributes are their defaults, as most heads arrive in one piece and change few of them.

    #: Where it begins: behind a PROXY header, and the address that this has given.
    start = 0
    source: tuple[Any, ...] | None = None
    #: How many bytes have been looked at.
    seen = 0
    #: Where the request line begins, if an empty line stands before it.
    line = 0
    #: Where the next search for fields begins, at a CRLF; 0 until the request line has ended.
    position = 0
    #: Name and beginning of the field whose value has not ended; 0 if there is none.
    name = b""
    value = 0

    # What the reader (affinity.py) has made of it.

    #: Whether the worker's parser has been asked about it.
    is_judged = False
    #: How many values have been looked at, of `MAX_VALUES`.
    spent = 0
    #: The lines of the header that names clients, where the last one counts.
    values: list[bytes] | None = None
    #: The owner of the session, and the rank of the place where its id was found.
    owner: Owner | None = None
    rank: float = math.inf

    def find_line(self, data: bytes | bytearray, size: int) -> None:
        """Find the end of the request line among the first `size` bytes of `data`.

        Raises:
            Incomplete: it is not there yet
            BareLineFeed: the line has a line feed in it
        """
        start = self.line or self.start
        end = data.find(b"\n", self.seen or start, size)
        if end == self.start + 1 and data[end - 1] == _CR:  # the empty line
            start = self.line = end + 1
            end = data.find(b"\n", start, size)
        if end < 0:
            raise Incomplete
        if end == start or data[end - 1] != _CR:
            raise BareLineFeed
        self.position = end - 1

    def query(self, data: bytes | bytearray) -> bytes:
        """Return the query string of the request line, which has been found, or nothing."""
        target = bytes(data[self.line or self.start : self.position]).partition(b" ")[2].partition(b" ")[0]
        query = target.partition(b"#")[0].partition(b"?")[2]
        return query.translate(None, _IGNORED) if _TAB in query or _CR in query else query

    def has_news(self, data: bytes | bytearray, size: int) -> bool:
        """Tell whether another line has ended since the last look. Without that nothing new can be found."""
        return data.find(b"\n", max(self.seen - 1, 0), size) >= 0

    def find_end(self, data: bytes | bytearray, size: int) -> None:
        """Find the end of the head among the first `size` bytes of `data`.

        Raises:
            Incomplete: it is not there yet
        """
        if data.find(b"\r\n\r\n", max(self.seen - 3, self.position), size) < 0:
            raise Incomplete

    def wait(self, data: bytes | bytearray, size: int) -> None:
        """Note that the first `size` bytes of `data` belong to the head and are not all of it.

        Raises:
            BareLineFeed: one of its lines has ended in a way that makes Gunicorn refuse it at once or wait for ever
        """
        since = max(self.seen, self.start)
        if data.count(b"\n", since, size) != data.count(b"\r\n", max(since - 1, self.start), size):
            raise BareLineFeed
        self.seen = size


class Fields:
    """Some header fields, by name, in any case.

    Args:
        names: the fields' names
    """

    def __init__(self, *names: str) -> None:
        alternatives = b"|".join(re.escape(name.encode("latin-1")) for name in names)
        # Each match begins at the end of a line, so neither the request line nor a longer name can match, and the
        # first empty line ends the search, so a body cannot either. A value that is one line, as most are, is found at
        # once; its end by the character behind it, which tells whether the next line continues the value.
        line = rb"(?:([^\r\n]*)\r\n(?=[^ \t]))?"
        self._next = re.compile(rb"\r\n(?:\r\n|(%s)[ \t]*:%s)" % (alternatives, line), re.IGNORECASE)

    def next(self, data: bytes | bytearray, size: int, head: Head) -> tuple[bytes, bytes] | None:
        """Return name and value of the next field, as they stand in the first `size` bytes, or None after the last one.

        Args:
            head: whose request line has ended; the next call goes on where this one has stopped

        Raises:
            Incomplete: neither another value nor the head ends among those bytes
        """
        if not head.value:
            match = self._next.search(data, head.position, size)
            if match is None:
                head.position = data.rfind(b"\r\n", head.position, size)
                raise Incomplete
            name, line = match.groups()
            if name is None:
                return None
            if line is not None:
                head.position = match.end(2)
                return name, line
            head.name, head.position = name, match.end()
            head.value = head.position
        end = _END.search(data, head.position, size)
        if end is None:
            head.position = max(head.position, data.rfind(b"\r\n", head.position, size))
            raise Incomplete
        value, head.value, head.position = head.value, 0, end.start()
        return head.name, bytes(data[value : head.position])


def _first(pattern: re.Pattern[bytes], data: bytes) -> list[bytes]:
    return [match.group(1) for match in itertools.islice(pattern.finditer(data), MAX_VALUES)]


class Query:
    """One parameter of a request's query string, as `urllib.parse.parse_qs` reads it.

    Args:
        name: the parameter's name
    """

    def __init__(self, name: str) -> None:
        self._begins = b"&" + name.replace("+", "%2B").encode() + b"="
        letters = (
            b"(?:%s%%(?i:%02x))" % (b"" if letter == b"+" else re.escape(letter) + b"|", ord(letter))
            for letter in (bytes([code]) for code in name.encode())
        )
        self._encoded = re.compile(rb"&%s=([^&]*)" % b"".join(letters))

    def values(self, query: bytes) -> list[bytes]:
        """Return the parameter's first values, at most `MAX_VALUES`, decoded, in a query string."""
        query = b"&" + query
        if _PERCENT in query or _PLUS in query:
            return [unquote_to_bytes(value.replace(b"+", b" ")) for value in _first(self._encoded, query)]
        return [rest.partition(b"&")[0] for rest in query.split(self._begins, MAX_VALUES)[1:]]


class Cookie:
    """One cookie (RFC 6265 section 4.2).

    Args:
        name: the cookie's name
    """

    def __init__(self, name: str) -> None:
        # A set of characters in front is searched for many times faster than "the beginning, or one of them".
        self._next = re.compile(rb"[;\s]%s=\"?([^;\s\"]*)" % re.escape(name.encode()))

    def values(self, field: bytes) -> list[bytes]:
        """Return the cookie's first values, at most `MAX_VALUES`, in a header field `Cookie`."""
        return _first(self._next, b";" + field)
