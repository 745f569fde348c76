"""The PROXY header: what is read, what is awaited, what is refused, and whether Gunicorn reads the same."""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6, inet_pton

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser

from gunicorn_sticky.routing.head import MAX_HEAD, Incomplete
from gunicorn_sticky.routing.proxy_protocol import Malformed, parse

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(family: int, body: bytes, version_command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack(">BBH", version_command, family, len(body) if length is None else length) + body


def addresses(family: int, source: str, destination: str, port: int) -> bytes:
    return inet_pton(family, source) + inet_pton(family, destination) + struct.pack(">HH", port, 443)


IPV4 = addresses(AF_INET, "192.0.2.1", "192.0.2.2", 56324)
IPV6 = addresses(AF_INET6, "2001:db8::1", "2001:db8::2", 4711)
TLV = b"\x04\0\3abc" + b"\x20\0\1x"

#: Headers that Gunicorn reads too.
VALID = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", ("192.0.2.1", 56324)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535)),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ("0.0.0.0", 0)),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", ("2001:db8::1", 4711)),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("::ffff:192.0.2.1", 1)),
    (b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n", (":".join(["ffff"] * 8), 65535)),
    (v2(0x11, IPV4), ("192.0.2.1", 56324)),
    (v2(0x11, IPV4 + TLV), ("192.0.2.1", 56324)),
    (v2(0x21, IPV6), ("2001:db8::1", 4711)),
    (v2(0x21, IPV6 + TLV), ("2001:db8::1", 4711)),
    (v2(0x00, b"", 0x20), None),
    (v2(0x11, IPV4, 0x20), None),  # LOCAL, whatever follows
    (v2(0x21, IPV6 + TLV, 0x20), None),
    (v2(0x01, b""), None),
    (v2(0x01, TLV), None),
]
#: Those that Gunicorn refuses in the worker, with 400: no client is routed by them, but none is refused here either.
NAMELESS: list[tuple[bytes, tuple[str, int] | None]] = [
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    (v2(0x00, b""), None),
    (v2(0x00, TLV), None),
]


@pytest.mark.parametrize(("header", "address"), VALID + NAMELESS)
@pytest.mark.parametrize("rest", [b"", REQUEST, SIGNATURE + REQUEST])
def test_valid(header: bytes, address: tuple[str, int] | None, rest: bytes):
    data = bytearray(MAX_HEAD)  # as the dispatcher has it, with a rest of earlier connections behind
    data[: len(header + rest)] = header + rest
    assert parse(data, len(header + rest)) == (len(header), address)


@pytest.mark.parametrize(("header", "address"), VALID + NAMELESS)
def test_every_prefix_is_incomplete(header: bytes, address: tuple[str, int] | None):
    for size in range(len(header)):
        with pytest.raises(Incomplete):
            parse(header, size)


def test_the_longest_headers():
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert parse(line, len(line)) == (107, None)
    fill = bytes(MAX_HEAD - 16 - len(IPV4))
    assert parse(v2(0x11, IPV4 + fill), MAX_HEAD) == (MAX_HEAD, ("192.0.2.1", 56324))


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 1\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY tcp4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.256 56324 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\t 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1\0 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 443 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 \xb2 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2  443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n" + REQUEST,
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY " + b"x" * 200,
        v2(0x11, IPV4, 0x11),
        v2(0x11, IPV4, 0x31),
        v2(0x11, IPV4, 0x22),
        v2(0x11, IPV4, 0x2F),
        v2(0x11, IPV4[:-1]),
        v2(0x11, b""),
        v2(0x21, IPV6[:-1]),
        v2(0x21, IPV4),
        v2(0x12, IPV4),
        v2(0x22, IPV6),
        v2(0x31, bytes(216)),
        v2(0x41, IPV4),
        v2(0xFF, IPV4),
    ],
)
def test_malformed(header: bytes):
    data = header.ljust(MAX_HEAD, b"\0")
    with pytest.raises(Malformed):
        parse(data, max(len(header), 107))


def test_more_than_there_is_room_for_is_malformed_at_once():
    header = v2(0x11, IPV4, length=MAX_HEAD - 16 + 1)
    with pytest.raises(Malformed):
        parse(bytearray(header.ljust(MAX_HEAD, b"\0")), len(header))


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"POST / HTTP/1.1\r\n",
        b"PROPFIND / HTTP/1.1\r\n",
        b"PROXYED / HTTP/1.1\r\n",
        b"PROXY\t",
        b"proxy TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b" PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"\r\n" + REQUEST,
        b"\r\n\r\n" + REQUEST,
        SIGNATURE[:-1] + b"\r",
        b"\x16\x03\x01\x02\x00",
        b"\0",
    ],
)
def test_no_header(data: bytes):
    assert parse(data, len(data)) == (0, None)


@pytest.mark.parametrize(("header", "address"), [*VALID, (b"", None)])
def test_gunicorn_reads_the_same(header: bytes, address: tuple[str, int] | None):
    cfg = Config()
    cfg.set("proxy_protocol", "auto")
    (request,) = RequestParser(cfg, iter([header + REQUEST]), ("127.0.0.1", 5))
    assert (request.method, request.headers) == ("GET", [("HOST", "a")])  # so the header's length is the same too
    info = request.proxy_protocol_info or {"client_addr": None}
    length, found = parse(header + REQUEST, len(header + REQUEST))
    assert length == len(header)
    assert found == address
    assert (found or (None,))[0] == info["client_addr"]
    assert (found or (None, None))[1] == info.get("client_port")
