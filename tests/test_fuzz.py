"""Arbitrary input against plain reference readings of the standards, and Gunicorn's own fixtures against its parser.

The examples are the same in each run. For more of them, and others: HYPOTHESIS_PROFILE=long.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData, ParseException
from hypothesis import given, settings
from hypothesis import strategies as st

from gunicorn_sticky.routing.affinity import Affinity, Missing, Reader, reader
from gunicorn_sticky.routing.head import MAX_HEAD, BareLineFeed, Cookie, Fields, Head, Incomplete, Query
from gunicorn_sticky.routing.key import Key
from gunicorn_sticky.routing.proxy_protocol import Malformed, parse
from gunicorn_sticky.routing.session_ids import Ids
from gunicorn_sticky.workers.parser import refuser

settings.register_profile("suite", derandomize=True, database=None, deadline=None, max_examples=100)
settings.register_profile("long", database=None, deadline=None, max_examples=20_000)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

PEER = ("127.0.0.1", 5)
SECRET = bytes(16)
TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")
SOURCES = ("query:sid", "header:x-sid", "cookie:sid")

XFF = Reader(Affinity(by="header", header="x-forwarded-for"))
FORWARDED = Reader(Affinity(by="header", header="forwarded"))
XFF_TRUSTED = Reader(Affinity(by="header", header="x-forwarded-for", trusted=TRUSTED))
FORWARDED_TRUSTED = Reader(Affinity(by="header", header="forwarded", trusted=TRUSTED, ignore_missing=True))
BY_IP = Reader(Affinity(proxies=("*",)))
XFF_PROXIED = Reader(Affinity(by="header", header="x-forwarded-for", proxies=("*",)))
BY_QUERY = reader(Affinity(by="session", session_keys=("query:sid",)), SECRET)
BY_SESSION = reader(Affinity(by="session", session_keys=SOURCES), SECRET)
READERS = [XFF, FORWARDED, XFF_TRUSTED, FORWARDED_TRUSTED, BY_IP, XFF_PROXIED, BY_SESSION]


def read(of: Reader, data: bytes | bytearray, size: int) -> Key:
    """Return the key, or what there is instead of one, in brackets."""
    try:
        return of.first(data, size, PEER)
    except (BareLineFeed, Incomplete, Malformed, Missing) as error:
        return f"<{type(error).__name__}>"


def values(name: str, data: bytes, size: int, start: int = 0) -> list[bytes]:
    """Return the values of a field in a head."""
    head = Head()
    head.start = start
    head.find_line(data, size)
    fields, found = Fields(name), []
    while field := fields.next(data, size, head):
        found.append(field[1])
    return found


# --- the standards, read plainly ---


def outside_quotes(text: str, separator: str) -> list[str]:
    """Split a text where the separator is not in a quoted string (RFC 9110 section 5.6.4)."""
    parts, quoted, escaped = [""], False, False
    for character in text:
        if character == separator and not quoted:
            parts.append("")
            continue
        parts[-1] += character
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
    return parts


def nodes_of_list(lines: list[str]) -> list[str]:
    """Lines are one list, whose empty elements do not count (RFC 9110 sections 5.3 and 5.6.1)."""
    return [part.strip(" \t") for part in ",".join(lines).split(",") if part.strip(" \t")]


def nodes_of_forwarded(lines: list[str]) -> list[str]:
    """Each element has pairs, whose names have no case (RFC 7239 section 4)."""
    nodes = []
    for element in outside_quotes(",".join(lines), ","):
        for pair in outside_quotes(element, ";"):
            name, _, value = pair.strip(" \t").partition("=")
            if name.lower() == "for":
                nodes.append(value[1:-1] if value.startswith('"') else value)
    return [node for node in nodes if node]


def client(node: str) -> str | IPv4Address | IPv6Address:
    """A node is an address, an IPv6 one in brackets, and maybe a port, or a name (RFC 7239 section 6).

    IPv6 addresses may have an IPv4 address in them (RFC 4291 section 2.5.5.2, RFC 6052 section 2.1).
    """
    text = node
    if node.startswith("["):
        text = node[1 : node.index("]")]
    elif node.count(":") == 1:
        text = node.split(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return node
    for prefix in (ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96")):
        if address in prefix:
            return IPv4Address(int(address) % (1 << 32))
    return address


Named = list[str | IPv4Address | IPv6Address]


def clients(nodes: list[str], nobody: tuple[str, ...]) -> Named:
    """Names that stand for no client do not count."""
    return [client(node) for node in nodes if not node.lower().startswith(nobody)]


def as_key(found: str | IPv4Address | IPv6Address) -> str:
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found)


def left_most(named: Named) -> str:
    return as_key(named[0]) if named else "<Missing>"


def right_most(named: Named, otherwise: str) -> str:
    while len(named) > 1 and any(
        not isinstance(named[-1], str) and named[-1] in ip_network(network) for network in TRUSTED
    ):
        named.pop()
    return as_key(named[-1]) if named else otherwise


# --- what proxies send ---

ADDRESSES_4 = st.one_of(st.ip_addresses(v=4), st.integers(0x0A000000, 0x0AFFFFFF).map(IPv4Address)).map(str)
ADDRESSES_6 = st.one_of(
    st.ip_addresses(v=6),
    st.integers(0x20010DB8 << 96, (0x20010DB9 << 96) - 1).map(IPv6Address),
    st.tuples(st.sampled_from([0xFFFF << 32, 0x64FF9B << 96]), st.integers(0, (1 << 32) - 1)).map(
        lambda parts: IPv6Address(sum(parts))
    ),
    # trusted, as 10.0.0.0/8 is
    st.integers(0x0A000000, 0x0AFFFFFF).map(lambda number: IPv6Address((0x64FF9B << 96) + number)),
).flatmap(lambda address: st.sampled_from([str(address), address.exploded, str(address).upper()]))
PORTS = st.integers(0, 65535).map(lambda port: f":{port}")
NOBODY = st.sampled_from(["unknown", "Unknown", "-", "(null)", "unix:"])
NAMES = st.one_of(st.just("unknown"), st.text("abcXYZ019._-", min_size=1, max_size=9).map(lambda text: "_" + text))
BRACKETED = ADDRESSES_6.map(lambda text: f"[{text}]")
PORTED = st.one_of(ADDRESSES_4, BRACKETED).flatmap(lambda text: PORTS.map(lambda port: text + port))
SPACE = st.text(" \t", max_size=2)

ELEMENTS = st.one_of(st.just(""), ADDRESSES_4, ADDRESSES_6, BRACKETED, PORTED, NAMES, NOBODY)
LISTS = st.lists(st.tuples(SPACE, ELEMENTS, SPACE).map("".join), max_size=5).map(",".join)

QUOTED = st.text('ab,;="\\ \tfor1', max_size=9).map(lambda text: '"' + re.sub(r'(["\\])', r"\\\1", text) + '"')
FOR = st.one_of(
    st.one_of(ADDRESSES_4, NAMES),
    st.one_of(ADDRESSES_4, BRACKETED, PORTED, NAMES).map(lambda text: f'"{text}"'),
).flatmap(lambda value: st.sampled_from([f"for={value}", f"For={value}", f"FOR={value}"]))
OTHER = st.tuples(
    st.sampled_from(["by=", "Proto=", "host=", "xfor=", "forx=", "for-x="]),
    st.one_of(QUOTED, st.sampled_from(["a", "for", "1.2.3.4"])),
).map("".join)
PAIRS = st.tuples(st.lists(OTHER, max_size=2), st.lists(FOR, max_size=1), st.lists(OTHER, max_size=2)).map(
    lambda groups: ";".join([*groups[0], *groups[1], *groups[2]])
)
FORWARDEDS = st.lists(st.tuples(SPACE, PAIRS, SPACE).map("".join), max_size=4).map(",".join)


def head(name: str, lines: list[str]) -> bytes:
    fields = "".join(f"{name}:{line}\r\nAccept: */*\r\n" for line in lines)
    return f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()


@settings(PROFILE)
@given(st.lists(LISTS, max_size=3))
def test_x_forwarded_for_is_read_as_the_standard_says(lines):
    data, named = head("X-Forwarded-For", lines), clients(nodes_of_list(lines), ("unknown", "-", "(null)", "unix:"))
    assert read(XFF, data, len(data)) == left_most(named)
    assert read(XFF_TRUSTED, data, len(data)) == right_most(named, "<Missing>")


@settings(PROFILE)
@given(st.lists(FORWARDEDS, max_size=3))
def test_forwarded_is_read_as_the_standard_says(lines):
    data, named = head("Forwarded", lines), clients(nodes_of_forwarded(lines), ("unknown", "_"))
    assert read(FORWARDED, data, len(data)) == left_most(named)
    assert read(FORWARDED_TRUSTED, data, len(data)) == right_most(named, PEER[0])


# --- heads that arrive in parts, and garbage ---

IDS = st.one_of(
    st.integers(0, 99).map(lambda owner: Ids(SECRET).tag("id", owner)),
    st.text("abc=&;%\"'+-_ ", max_size=12),
)
LINES = st.one_of(
    LISTS.map(lambda value: f"X-Forwarded-For: {value}"),
    FORWARDEDS.map(lambda value: f"Forwarded: {value}"),
    IDS.map(lambda value: f"X-Sid: {value}"),
    IDS.map(lambda value: f"Cookie: a=b; sid={value}"),
    st.text("ab: \t,", max_size=9),
    st.just(""),
)
ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r\n ", "\r"])
PREFIXES = st.sampled_from([b"", b"", b"\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"PROXY UNKNOWN\r\n"])
HEADS = st.tuples(
    PREFIXES,
    IDS.map(lambda value: f"GET /?a=b&sid={value} HTTP/1.1\r\n".encode()),
    st.lists(st.tuples(LINES, ENDS).map("".join), max_size=5).map(lambda lines: "".join(lines).encode()),
    st.just(b"\r\n"),
    st.binary(max_size=9),
).map(b"".join)


@settings(PROFILE)
@given(HEADS, st.data())
def test_more_bytes_do_not_change_an_answer(data, draw):
    """But that a bare line feed is only noticed for as long as there is no answer."""
    for of in READERS:
        answers = [read(of, data, size) for size in range(len(data) + 1)]
        known = [answer for answer in answers if answer != "<Incomplete>"]
        assert len({*known} - {"<BareLineFeed>"}) <= 1
        assert answers[len(answers) - len(known) :] == known  # nor take it back
        assert answers.count("<BareLineFeed>") == 0 or re.search(rb"(?<!\r)\n", data)
        # What has arrived in pieces is read as what has arrived at once.
        head = Head()
        for size in sorted({*draw.draw(st.lists(st.integers(0, len(data)), max_size=4)), len(data)}):
            try:
                answer = of.first(data, size, PEER, head)
            except (BareLineFeed, Incomplete, Malformed, Missing) as error:
                answer = f"<{type(error).__name__}>"
            assert answer == answers[size]
            if answer != "<Incomplete>":
                break


PIECES = [
    *(b"GET / HTTP/1.1\r\n", b"GET /?sid=", b"X-Forwarded-For:", b"Forwarded:", b"Cookie: sid=", b"X-Sid:", b"\r\n"),
    *(b"PROXY ", b"TCP4 ", b"TCP6 ", b"\r\n\r\n\0\r\nQUIT\n", b"1.2.3.4", b"::1", b"for", b"a" * 300),
    *(bytes([character]) for character in b'\n \t,;="\\:[]%\0\x11\x20\x21\xff'),
]
GARBAGE = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))


@settings(PROFILE)
@given(GARBAGE)
def test_garbage_is_read_without_a_crash(data):
    buffer = data.ljust(MAX_HEAD, b"\0")
    for of in READERS:
        for size in {len(data), len(data) // 2}:
            key = read(of, buffer, size)
            assert isinstance(key, str)  # none of it names an owner
            key.encode("latin-1")
    for value in data.split(b"\r\n"):
        assert Ids(SECRET).owner(value) is None


V1 = st.lists(
    st.sampled_from(["PROXY", "TCP4", "TCP6", "UNKNOWN", "1.2.3.4", "::1", "80", "99999", "", "\xb2"]), max_size=8
)
V2 = st.tuples(
    st.just(b"\r\n\r\n\0\r\nQUIT\n"),
    st.sampled_from([b"\x20", b"\x21", b"\x22", b"\x11"]),
    st.sampled_from([b"\0", b"\1", b"\x11", b"\x12", b"\x21", b"\x31", b"\xff"]),
    st.integers(0, 60).map(lambda length: length.to_bytes(2, "big")),
    st.binary(max_size=80),
)


@settings(PROFILE)
@given(
    st.one_of(
        st.binary(max_size=200), V1.map(lambda words: " ".join(words).encode("latin-1") + b"\r\n"), V2.map(b"".join)
    )
)
def test_a_proxy_header_is_parsed_refused_or_awaited(data):
    buffer = data.ljust(MAX_HEAD, b"\0")
    answers: list[Any] = []
    for size in range(len(data) + 1):
        try:
            answers.append(parse(buffer, size))
        except Malformed:
            answers.append(Malformed)
        except Incomplete:
            assert not answers
    assert all(answer == answers[0] for answer in answers)
    if answers and answers[0] is not Malformed:
        length, address = answers[0]
        assert length <= len(data)
        assert address is None or ip_address(address[0])


# --- Gunicorn's own parser ---

TARGETS = st.one_of(
    st.lists(
        st.sampled_from([*"/?&=#%;+sid\t\n\r", "sid=", "%73", "sid=ab", "\nX-Forwarded-For:\t9.9.9.9,"]), max_size=9
    )
    .map("".join)
    .map(lambda text: "/" + text),
    IDS.map(lambda value: f"/?sid={quote(value)}"),
    IDS.map(lambda value: f"/?a=b&s%69d={quote(value)}"),
)
REQUESTS = st.tuples(
    st.sampled_from(["", "", "", "\r\n", "\n", "\r\n\r\n"]),
    TARGETS.map(lambda target: f"GET {target} HTTP/1.1"),
    st.sampled_from(["\r\n", "\r\n", "\n"]),
    st.lists(st.tuples(LINES, ENDS).map("".join), max_size=4).map("".join),
    st.just("\r\n"),
).map(lambda parts: "".join(parts).encode("latin-1"))


def accepted(data: bytes, **options: Any) -> Any:
    """Return the request as Gunicorn parses it, or None if it refuses it or waits for more."""
    cfg = Config()
    for name, value in options.items():
        cfg.set(name, value)
    try:
        return next(RequestParser(cfg, iter([data]), PEER))
    except (ParseException, NoMoreData, StopIteration):
        return None


@settings(PROFILE)
@given(REQUESTS)
def test_the_key_is_that_of_the_request_that_gunicorn_sees(data):
    """Also where older and newer versions disagree about what they accept; a bare line feed may be refused."""
    for options in ({}, {"permit_obsolete_folding": True, "strip_header_spaces": True}):
        request = accepted(data, **options)
        if request is None:
            continue
        lines = [value for name, value in request.headers if name == "X-FORWARDED-FOR"]
        # What this means has tests of its own, so it is read from a head about which there are no two opinions.
        plain = head("X-Forwarded-For", lines)
        assert read(XFF, data, len(data)) in (read(XFF, plain, len(plain)), "<BareLineFeed>")
        ids = parse_qs(request.query, keep_blank_values=True).get("sid", [])
        owners = [owner for owner in (Ids(SECRET).owner(text.encode()) for text in ids) if owner is not None]
        assert read(BY_QUERY, data, len(data)) in (owners[0] if owners else PEER[0], "<BareLineFeed>")


@settings(PROFILE)
@given(REQUESTS, st.data())
def test_what_gunicorn_is_asked_about_is_what_it_refuses(data, draw):
    """Of a head that has not arrived: that it is refused is only said if the whole is refused."""
    refuses = refuser(Config())
    part = data[: draw.draw(st.integers(1, len(data)))]
    if refuses(part):
        assert accepted(data) is None


# --- Gunicorn's own fixtures ---

ESCAPES = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}
#: Everything that makes its parser accept more, as far as we read more than the default.
TOLERANT = {"permit_obsolete_folding": True, "strip_header_spaces": True, "header_map": "dangerous"}


def decode(text: bytes) -> bytes:
    r"""Return the bytes that a fixture stands for: its line breaks do not count, \r, \n, \t, \0 and \xHH do."""
    return re.sub(
        rb"\\(?:x([0-9A-Fa-f]{2})|([rnt0]))",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else ESCAPES[match[2]],
        text.replace(b"\n", b""),
    )


#: Let one process download them, which takes seconds.
downloaded = pytest.mark.xdist_group("fixtures")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the heads in the source distribution of the Gunicorn that is installed, by their path there."""
    folder: Path = tmp_path_factory.mktemp("gunicorn")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary=gunicorn",
        "--dest",
        str(folder),
    ]
    subprocess.run([*command, f"gunicorn=={version('gunicorn')}"], check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        found = {
            member.name.partition("/tests/requests/")[2]: decode(file.read())
            for member in files
            if member.name.endswith(".http") and (file := files.extractfile(member))
        }
    assert len([name for name in found if name.startswith("valid/")]) > 40
    assert len([name for name in found if name.startswith("invalid/")]) > 40
    return found


def unfold(value: bytes) -> str:
    """Return a value as Gunicorn has it: without spaces around it, and folded lines joined by one."""
    return " ".join(line.strip(b" \t").decode("latin-1") for line in value.removesuffix(b"\r").split(b"\r\n"))


@downloaded
@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 30), (TOLERANT, 35), ({"proxy_protocol": "auto"}, 35)],
    ids=["default", "tolerant", "proxy"],
)
def test_the_heads_that_gunicorn_accepts_are_read_as_it_does(fixtures, options, least):
    """Every field has the same values, in the same number and order; those that Gunicorn has not are not there."""
    cfg = Config()
    for name, value in options.items():
        cfg.set(name, value)
    accepted = {}
    for path, data in fixtures.items():
        try:
            accepted[path] = next(RequestParser(cfg, iter([data]), PEER))
        except (ParseException, NoMoreData, StopIteration):
            continue
    assert len([path for path in accepted if path.startswith("valid/")]) >= least
    names = {name for request in accepted.values() for name, _ in request.headers} | {"X-FORWARDED-FOR", "COOKIE"}
    for path, request in accepted.items():
        data = fixtures[path]
        start, client_address = parse(data, len(data)) if "proxy_protocol" in options else (0, None)
        info = request.proxy_protocol_info
        assert (client_address[0] if client_address else None) == (info and info["client_addr"]), path
        for name in names:
            seen = [value for other, value in request.headers if other == name]
            if seen or "_" not in name:  # of these, Gunicorn drops some
                found = values(name.lower(), data, len(data), start)
                assert [unfold(value) for value in found] == seen, (path, name)


@downloaded
def test_no_head_of_gunicorns_fixtures_crashes(fixtures):
    for data in fixtures.values():
        for size in {len(data), len(data) // 2, len(data) - 1}:
            for search in (Query("sid"), Query("foo"), Cookie("sid")):
                assert all(isinstance(value, bytes) for value in search.values(data))
            for of in READERS:
                assert isinstance(read(of, data, size), (str, int))
