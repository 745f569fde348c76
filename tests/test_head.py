"""The search for a header field in a head that may be incomplete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from gunicorn_sticky.routing import head as head_module
from gunicorn_sticky.routing.affinity import Affinity, reader
from gunicorn_sticky.routing.head import MAX_VALUES, BareLineFeed, Cookie, Fields, Head, Incomplete, Query
from gunicorn_sticky.routing.session_ids import Ids

REST = b"GET / HTTP/1.1\r\nHost: a\r\n"


def found(data: bytes | bytearray, size: int, *names: str, head: Head | None = None) -> Iterator[bytes]:
    """Yield the values in the first `size` bytes of a head."""
    head = head or Head()
    if not head.position:
        head.find_line(data, size)
    fields = Fields(*names)
    while field := fields.next(data, size, head):
        yield field[1]


def find(data: bytes, name: str = "x-forwarded-for") -> list[bytes]:
    return [value.strip() for value in found(data, len(data), name)]


@pytest.mark.parametrize(
    ("head", "values"),
    [
        (REST + b"X-Forwarded-For: 1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"x-FORWARDED-for:1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"X-Forwarded-For \t: 1.2.3.4 \r\n\r\n", [b"1.2.3.4"]),
        (REST + b"X-Forwarded-For: a, b\r\nOther: c\r\nX-Forwarded-For: d\r\n\r\n", [b"a, b", b"d"]),
        (REST + b"X-Forwarded-For: \r\n\r\n", [b""]),
        (REST + b"X-Forwarded-For: a\rb\r\n\r\n", [b"a\rb"]),
        (
            REST + b"X-Forwarded-For: a\r\n b\r\nX-Forwarded-For: c\r\nX-Forwarded-For: d\r\n\te\r\n\r\n",
            [b"a\r\n b", b"c", b"d\r\n\te"],
        ),
        (REST + b"X-Forwarded-For:\r\n 1.2.3.4,\r\n\t5.6.7.8\r\n\r\n", [b"1.2.3.4,\r\n\t5.6.7.8"]),
        (b"\r\n" + REST + b"X-Forwarded-For: 1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"\r\n", []),
        # the name elsewhere: request line, start or end of another name, a value, a folded value, the body
        (b"GET /\tx-forwarded-for: 9.9.9.9 HTTP/1.1\r\nHost: a\r\n\r\n", []),
        (b"x-forwarded-for: 9.9.9.9\r\nHost: a\r\n\r\n", []),
        (REST + b"X-Forwarded-Force: 9.9.9.9\r\nAX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: X-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: b\r\n X-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: b\nX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: b\rX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
    ],
)
def test_values(head: bytes, values: list[bytes]):
    assert find(head) == values


def test_name_is_not_a_pattern():
    assert find(REST + b"XYB: 1\r\n\r\n", "x.b") == []
    assert find(REST + b"X.B: 1\r\n\r\n", "x.b") == [b"1"]


def test_every_prefix_is_incomplete_or_agrees_with_the_whole():
    head = REST + b"A: b\r\nX-Forwarded-For: 1.2.3.4,\r\n 5.6.7.8\r\nB: c\r\n\r\n"
    answered = 0
    for size in range(len(head) + 1):
        field = found(head, size, "x-forwarded-for")
        try:
            value = next(field)
        except Incomplete:
            assert not answered  # once there is an answer, more bytes do not take it back
            continue
        assert value == b" 1.2.3.4,\r\n 5.6.7.8"
        answered += 1
    assert answered == len(b"B: c\r\n\r\n")  # known with the first byte of the next line


def test_no_end_of_head_is_incomplete_after_the_last_value():
    values = found(b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\n", 28, "a")
    assert next(values).strip() == b"1"
    with pytest.raises(Incomplete):
        next(values)


def test_bytes_behind_size_do_not_count():
    data = bytearray(REST + b"\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n")
    with pytest.raises(Incomplete):
        list(found(data, len(REST), "x-forwarded-for"))


def in_pieces(data: bytes, size: int, fields: Fields) -> list[bytes]:
    """Return the values of a head that arrives `size` bytes at a time."""
    head, values = Head(), []
    buffer = bytearray(len(data))
    for end in range(size, len(data) + size, size):
        end = min(end, len(data))
        buffer[:end] = data[:end]
        try:
            if not head.position:
                head.find_line(buffer, end)
            elif not head.has_news(buffer, end):
                raise Incomplete
            while field := fields.next(buffer, end, head):
                values.append(field[1])
        except Incomplete:
            head.wait(buffer, end)
        else:
            return values
    raise AssertionError("no end")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_give_what_the_whole_gives(size: int):
    data = REST + b"A: 1\r\nB: 2,\r\n 3\r\nAB: 4\r\na:\r\n\t5\r\n\r\nA: 6\r\n\r\n"
    assert in_pieces(data, size, Fields("a", "b")) == list(found(data, len(data), "a", "b"))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n",
        REST + b"X-Forwarded-For: " + b"a" * 60_000 + b"\r\n\r\n",
        REST + b"X-Forwarded-For" + b" " * 60_000 + b": a\r\n\r\n",
        REST + b"X-Forwarded-For: a" + b"\r\n a" * 15_000 + b"\r\n\r\n",
        REST + b"A: b\r\n" * 10_000 + b"\r\n",
    ],
    ids=["target", "value", "spaces", "folded", "lines"],
)
def test_no_byte_is_searched_again_and_again(monkeypatch: pytest.MonkeyPatch, data: bytes):
    """In pieces of 10 bytes a head of 60 KB takes 6 000 looks."""
    searched = 0

    class Counting:
        """A pattern that counts the bytes that it is tried on."""

        def __init__(self, pattern: re.Pattern[bytes]) -> None:
            self._pattern = pattern

        def search(self, data: bytearray, start: int, size: int) -> re.Match[bytes] | None:
            nonlocal searched
            match = self._pattern.search(data, start, size)
            searched += (match.end() if match else size) - start
            return match

    fields = Fields("x-forwarded-for")
    monkeypatch.setattr(fields, "_next", Counting(fields._next))
    monkeypatch.setattr(head_module, "_END", Counting(head_module._END))
    in_pieces(data, 10, fields)
    assert searched < 3 * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"GET / HTTP/1.1\n",
        b"GET /odd?x\nX-Forwarded-For:\t10.9.9.9, HTTP/1.1\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        b"\r\n\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\n",
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_bare_line_feed_is_refused(data: bytes, size: int):
    with pytest.raises(BareLineFeed):
        in_pieces(data, size, Fields("x-forwarded-for"))


@pytest.mark.parametrize(
    ("target", "values"),
    [
        (b"/?sid=a", [b"a"]),
        (b"/?%73id=a&s%69%64=b&%73%69%64=c", [b"a", b"b", b"c"]),
        (b"/?%53id=a&%73ID=b&%2573id=c&%73id%3Dd", []),
        (b"/?a=1&sid=b+c%2Bd&sid=", [b"b c+d", b""]),
        (b"/?a;sid=a", []),
        (b"/?si\td=a&s\rid=b", [b"a", b"b"]),
        (b"/a?b?sid=a&x#&sid=b", []),
        (b"//host/?sid=a", [b"a"]),
    ],
)
def test_a_parameter_is_read_as_the_standard_library_does(target: bytes, values: list[bytes]):
    head, line = Head(), b"GET " + target + b" HTTP/1.1\r\n"
    head.find_line(line, len(line))
    assert list(Query("sid").values(head.query(line))) == values
    query = urlsplit(target.decode()).query
    assert [value.decode() for value in values] == parse_qs(query, keep_blank_values=True).get("sid", [])


def test_a_name_that_needs_encoding():
    assert list(Query("a+b").values(b"a+b=1&a%2Bb=2&a%2bb=3")) == [b"2", b"3"]
    assert list(Query("A|b").values(b"A|b=1&%41%7cb=2&A%7Cb=3&b=4&A=5")) == [b"1", b"2", b"3"]


def test_cookies():
    assert list(Cookie("sid").values(b' sid=a; xsid=b;sid="c"; a="sid=d"; sid')) == [b"a", b"c"]


@pytest.mark.parametrize("line", [b"Cookie: id=none\r\n", b"Cookie: other=1\r\n", b"Cookie: a\r\n", b"X-Id: none\r\n"])
def test_after_so_many_fields_without_a_known_id_the_session_is_a_new_one(line: bytes):
    """But only once the head has ended: until then the worker's parser would be the next one that it costs much."""
    session = Affinity(by="session", session_keys=("cookie:id", "header:x-id"))
    late = b"Cookie: id=" + Ids(bytes(16)).tag("a", 7).encode() + b"\r\n"
    address = "192.0.2.1", 4711
    for lines, key in ((MAX_VALUES - 1, 7), (MAX_VALUES, address[0])):
        data = b"GET / HTTP/1.1\r\n" + line * lines + late + b"\r\n"
        head = Head()
        for size in range(0, len(data), 100):
            with pytest.raises(Incomplete):
                reader(session, bytes(16)).first(data, size, address, head)
        assert reader(session, bytes(16)).first(data, len(data), address, head) == key
