"""The search for a header field in a head that may be incomplete."""

from __future__ import annotations

import pytest

from gunicorn_sticky.head import Field, Incomplete

REST = b"GET / HTTP/1.1\r\nHost: a\r\n"


def find(data: bytes, name: str = "x-forwarded-for") -> list[bytes]:
    return [value.strip() for value in Field(name).values(data, len(data))]


@pytest.mark.parametrize(
    ("head", "values"),
    [
        (REST + b"X-Forwarded-For: 1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"x-FORWARDED-for:1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"X-Forwarded-For \t: 1.2.3.4 \r\n\r\n", [b"1.2.3.4"]),
        (REST + b"X-Forwarded-For: a, b\r\nOther: c\r\nX-Forwarded-For: d\r\n\r\n", [b"a, b", b"d"]),
        (REST + b"X-Forwarded-For: \r\n\r\n", [b""]),
        (REST.replace(b"\r\n", b"\n") + b"X-Forwarded-For: 1.2.3.4\n\n", [b"1.2.3.4"]),
        (REST + b"X-Forwarded-For:\r\n 1.2.3.4,\r\n\t5.6.7.8\r\n\r\n", [b"1.2.3.4,\r\n\t5.6.7.8"]),
        (b"\r\n\r\n" + REST + b"X-Forwarded-For: 1.2.3.4\r\n\r\n", [b"1.2.3.4"]),
        (REST + b"\r\n", []),
        # the name elsewhere: request line, start or end of another name, a value, a folded value, the body
        (b"GET /\tx-forwarded-for: 9.9.9.9 HTTP/1.1\r\nHost: a\r\n\r\n", []),
        (b"x-forwarded-for: 9.9.9.9\r\nHost: a\r\n\r\n", []),
        (REST + b"X-Forwarded-Force: 9.9.9.9\r\nAX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: X-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"A: b\r\n X-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n", []),
        (REST + b"\n\nX-Forwarded-For: 9.9.9.9\n\n", []),
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
        field = Field("x-forwarded-for").values(head, size)
        try:
            value = next(field)
        except Incomplete:
            assert not answered  # once there is an answer, more bytes do not take it back
            continue
        assert value == b" 1.2.3.4,\r\n 5.6.7.8\r"
        answered += 1
    assert answered == len(b"B: c\r\n\r\n")  # known with the first byte of the next line


def test_no_end_of_head_is_incomplete_after_the_last_value():
    values = Field("a").values(b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\n", 28)
    assert next(values).strip() == b"1"
    with pytest.raises(Incomplete):
        next(values)


def test_bytes_behind_size_do_not_count():
    data = bytearray(REST + b"\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n")
    with pytest.raises(Incomplete):
        list(Field("x-forwarded-for").values(data, len(REST)))
