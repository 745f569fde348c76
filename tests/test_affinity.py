"""From the bytes of a connection to its key, by every combination of settings that reads any."""

from __future__ import annotations

from typing import Any

import pytest

from gunicorn_sticky.routing import key as keys
from gunicorn_sticky.routing.affinity import Affinity, Missing, Reader, SessionReader, reader
from gunicorn_sticky.routing.head import Head, Incomplete
from gunicorn_sticky.routing.proxy_protocol import Malformed
from gunicorn_sticky.routing.session_ids import Ids

PEER = ("127.0.0.1", 5)
SECRET = bytes(range(16))
IDS = Ids(SECRET)
#: Ids of the workers 7 and 8, and one of another master.
SEVEN, EIGHT = IDS.tag("seven", 7).encode(), IDS.tag("eight", 8).encode()
FOREIGN = Ids(bytes(16)).tag("seven", 7).encode()


def head(*lines: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *lines, b"", b""])


def by_header(header: str = "x-forwarded-for", **settings: Any) -> Reader:
    return Reader(Affinity(by="header", header=header, **settings))


def by_session(*where: str, **settings: Any) -> Reader:
    return reader(Affinity(by="session", session_keys=where or ("query:sid",), **settings), SECRET)


def key(of: Reader, data: bytes, address: Any = PEER) -> keys.Key:
    """Return the key, after making sure that a part of the bytes gives the same or none."""
    whole = of.first(data, len(data), address)
    early = []
    for size in range(len(data)):
        try:
            early.append(of.first(data, size, address))
        except Incomplete:
            assert not early
    assert set(early) <= {whole}
    return whole


# --- by header ---


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"1.2.3.4", "1.2.3.4"),
        (b"1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (b" , 1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (b"[2001:db8::1]:443, 5.6.7.8", "2001:db8::/64"),
        (b"unknown, 5.6.7.8", "5.6.7.8"),
        (b"-, (null), unix:, 64:ff9b::5.6.7.8", "5.6.7.8"),
        (b"tenant-7", "tenant-7"),
    ],
)
def test_the_left_most_counts(value: bytes, found: str):
    assert key(by_header(), head(b"X-Forwarded-For: " + value)) == found


def test_lines_of_one_header_are_one_list():
    assert key(by_header(), head(b"X-Forwarded-For: ,", b"A: b", b"x-forwarded-for: 1.2.3.4")) == "1.2.3.4"


def test_forwarded():
    lines = b'Forwarded: by=9.9.9.9;FOR="[2001:db8::1]:80", for=5.6.7.8'
    assert key(by_header("forwarded"), head(lines)) == "2001:db8::/64"
    assert key(by_header("forwarded"), head(b"Forwarded: for=_hidden", b"Forwarded: for=5.6.7.8")) == "5.6.7.8"
    assert key(by_header("x-real-ip"), head(b"X-Real-IP: for=1.2.3.4")) == "for=1.2.3.4"  # only there has it pairs


def test_the_answer_comes_with_the_line_after_the_first_value():
    data = head(b"X-Forwarded-For: 1.2.3.4", b"A: b")
    enough = data.index(b"A: b") + 1
    assert by_header().first(data, enough, PEER) == "1.2.3.4"
    with pytest.raises(Incomplete):
        by_header().first(data, enough - 1, PEER)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"X-Forwarded-For:",),
        (b"X-Forwarded-For: , ",),
        (b"X-Forwarded: 1.2.3.4",),
        (b"X-Forwarded-For: unknown", b"X-Forwarded-For: -, (null)"),
    ],
)
def test_missing(lines: tuple[bytes, ...]):
    data = head(*lines)
    with pytest.raises(Missing):
        by_header().first(data, len(data), PEER)
    assert key(by_header(ignore_missing=True), data) == "127.0.0.1"
    for size in range(len(data)):
        with pytest.raises(Incomplete):  # the header may still come
            by_header().first(data, size, PEER)


def test_the_ipv6_prefix():
    assert key(by_header(ipv6_prefix=48), head(b"X-Forwarded-For: 2001:db8:1:2::3")) == "2001:db8:1::/48"
    assert key(by_header(ipv6_prefix=128), head(b"X-Forwarded-For: 2001:db8:1:2::3")) == "2001:db8:1:2::3/128"


# --- by header of trusted proxies ---

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8:aaaa::/48")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4, 10.1.2.3", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4:99, 10.1.2.3:80, 10.255.0.1", "1.2.3.4"),
        (b"10.6.6.6, 1.2.3.4, 10.1.2.3", "1.2.3.4"),
        (b"6.6.6.6, 11.0.0.1", "11.0.0.1"),
        (b"6.6.6.6, 1.2.3.4, ::ffff:10.1.2.3", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4, [2001:db8:aaaa::5]:80", "1.2.3.4"),
        (b"6.6.6.6, 2001:db8:aaab::5, 2001:db8:aaaa:ffff::5", "2001:db8:aaab::/64"),
        (b"6.6.6.6, 1.2.3.4, unix:", "1.2.3.4"),
        (b"unknown, 10.1.2.3", "10.1.2.3"),
        (b"6.6.6.6, 1.2.3.4, 64:ff9b::10.1.2.3", "1.2.3.4"),
        (b"6.6.6.6, 64:ff9b::1.2.3.4, 10.1.2.3", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4, , 10.1.2.3,", "1.2.3.4"),
        (b"10.1.1.1, 10.2.2.2", "10.1.1.1"),
        (b"10.1.1.1", "10.1.1.1"),
    ],
)
def test_the_right_most_that_is_not_trusted_counts(value: bytes, found: str):
    assert key(by_header(trusted=TRUSTED), head(b"X-Forwarded-For: " + value)) == found


def test_the_right_most_may_stand_in_a_later_line():
    data = head(
        b"X-Forwarded-For: 6.6.6.6", b"A: b", b"X-Forwarded-For: 1.2.3.4, 10.1.1.1", b"X-Forwarded-For: 10.1.1.2"
    )
    assert key(by_header(trusted=TRUSTED), data) == "1.2.3.4"
    for size in range(len(data)):
        with pytest.raises(Incomplete):
            by_header(trusted=TRUSTED).first(data, size, PEER)


def test_forwarded_of_trusted_proxies():
    data = head(b"Forwarded: for=6.6.6.6, for=1.2.3.4;by=10.0.0.1", b'Forwarded: for="10.0.0.1:80"')
    assert key(by_header("forwarded", trusted=TRUSTED), data) == "1.2.3.4"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (("127.0.0.1", 5), "1.2.3.4"),
        (("127.0.0.2", 5), "127.0.0.2"),
        (("10.9.9.9", 5), "1.2.3.4"),
        (("::ffff:10.9.9.9", 5, 0, 0), "1.2.3.4"),
        (("::ffff:11.9.9.9", 5, 0, 0), "11.9.9.9"),
        (("64:ff9b::10.9.9.9", 5, 0, 0), "1.2.3.4"),
        (("64:ff9b::11.9.9.9", 5, 0, 0), "11.9.9.9"),
        (("2001:db8:aaaa::9", 5, 0, 0), "1.2.3.4"),
        (("2001:db8:aaab::9", 5, 0, 0), "2001:db8:aaab::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", "1.2.3.4"),  # a Unix socket
    ],
)
def test_only_the_header_of_a_trusted_peer_counts(address: Any, found: str):
    assert key(by_header(trusted=TRUSTED), head(b"X-Forwarded-For: 6.6.6.6, 1.2.3.4"), address) == found


@pytest.mark.parametrize("network", ["10.9.0.0/16", "64:ff9b::/96", "64:ff9b::10.9.9.9"])
def test_a_network_may_be_written_as_ipv4_or_with_its_ipv6_prefix(network: str):
    of = by_header(trusted=(network,))
    assert key(of, head(b"X-Forwarded-For: 1.2.3.4"), ("64:ff9b::10.9.9.9", 5, 0, 0)) == "1.2.3.4"


def test_others_need_no_header():
    assert key(by_header(trusted=TRUSTED), b"", ("127.0.0.2", 5)) == "127.0.0.2"
    data = head()
    with pytest.raises(Missing):
        by_header(trusted=TRUSTED).first(data, len(data), PEER)
    assert key(by_header(trusted=TRUSTED, ignore_missing=True), data) == "127.0.0.1"


def test_nobody_is_trusted():
    assert key(by_header(trusted=()), head(b"X-Forwarded-For: 6.6.6.6")) == "127.0.0.1"


# --- heads that are made to cost time ---

MANY = 3000


@pytest.mark.parametrize(
    ("of", "lines"),
    [
        (by_header(), [b"X-Forwarded-For: " + b'"",' * 99] * 140),
        (by_header(), [b"X-Forwarded-For:"] * MANY),
        (by_header(), [b"X-Forwarded-For: " + b" ," * MANY]),
        (by_header("forwarded"), [b"Forwarded: " + b"a=b;" * MANY]),
        (by_header("forwarded"), [b'Forwarded: for=_a, for=""'] * MANY),
        (by_header(trusted=TRUSTED), [b"X-Forwarded-For: " + b"10.0.0.1," * MANY]),
        (by_header(trusted=TRUSTED), [b"X-Forwarded-For: 6.6.6.6"] * MANY),
        (by_header("forwarded", trusted=TRUSTED), [b"Forwarded: " + b"for=6.6.6.6;by=10.0.0.1," * MANY]),
    ],
    ids=range(8),
)
def test_of_too_many_clients_none_counts(monkeypatch: pytest.MonkeyPatch, of: Reader, lines: list[bytes]):
    """Neither those that come last, nor are all of them looked at: as many as the head's limit, in all its lines."""
    looks, node_key = 0, keys.node_key

    def counted(*args: Any) -> str | None:
        nonlocal looks
        looks += 1
        return node_key(*args)

    monkeypatch.setattr(keys, "node_key", counted)
    data = head(*lines, lines[0].partition(b":")[0] + b": for=1.2.3.4")
    progress, missing = Head(), None
    for size in (*range(0, len(data), 100), len(data)):
        try:
            of.first(data, size, PEER, progress)
        except Incomplete:
            continue
        except Missing as error:
            missing = error
            break
    assert "at most 100 count" in str(missing)
    assert looks <= 200


@pytest.mark.parametrize(
    "data",
    [
        head(target=b"/?" + b"sid=" + FOREIGN + b"&sid=" * MANY),
        head(target=b"/?" + b"%73id=%41&" * MANY),
        head(*[b"X-Sid: " + FOREIGN] * MANY),
        head(b"Cookie: " + b"sid=a;" * MANY),
        head(*[b"Cookie: sid=a; sid=b"] * MANY, target=b"/?sid=a&sid=b"),
    ],
    ids=range(5),
)
def test_of_too_many_ids_only_the_first_ones_count(monkeypatch: pytest.MonkeyPatch, data: bytes):
    of = by_session("query:sid", "header:x-sid", "cookie:sid")
    assert isinstance(of, SessionReader)
    read = []
    monkeypatch.setattr(of, "_owner", lambda value: read.append(value))
    assert of.first(data, len(data), PEER) == "127.0.0.1"
    assert len(read) <= 100


# --- behind a PROXY header ---

PROXY = b"PROXY TCP4 203.0.113.9 192.0.2.1 5 80\r\n"


def test_proxy_header():
    by_ip = Reader(Affinity(proxies=("127.0.0.1",)))
    assert key(by_ip, PROXY) == "203.0.113.9"  # without the request
    assert key(by_ip, head()) == "127.0.0.1"  # as in Gunicorn, it may be absent
    assert key(by_ip, b"PROXY UNKNOWN\r\n") == "127.0.0.1"
    with pytest.raises(Malformed):
        by_ip.first(b"PROXY x\r\n", 9, PEER)


@pytest.mark.parametrize(
    ("address", "read"),
    [
        (PEER, True),
        (("::ffff:127.0.0.1", 5, 0, 0), True),
        (("127.0.0.2", 5), False),
        (("::1", 5, 0, 0), False),
        ("", True),
    ],
)
def test_only_allowed_peers_may_send_a_proxy_header(address: Any, read: bool):
    by_ip = Reader(Affinity(proxies=("127.0.0.1",)))
    assert by_ip.needs_bytes(address) == read
    assert (key(by_ip, PROXY, address) == "203.0.113.9") == read


def test_the_request_header_behind_a_proxy_header():
    data = PROXY + head(b"X-Forwarded-For: 1.2.3.4")
    assert key(by_header(proxies=("*",)), data) == "1.2.3.4"
    assert key(by_header(proxies=("*",), ignore_missing=True), PROXY + head()) == "203.0.113.9"
    # the peer is trusted, not the client that it names
    assert key(by_header(proxies=("*",), trusted=TRUSTED), data) == "1.2.3.4"
    assert key(by_header(proxies=("*",), trusted=TRUSTED), data, ("9.9.9.9", 5)) == "203.0.113.9"
    assert key(by_session(proxies=("*",)), PROXY + head(target=b"/?sid=" + SEVEN)) == 7
    assert key(by_session(proxies=("*",)), PROXY + head()) == "203.0.113.9"


def test_a_later_request_has_no_proxy_header():
    data = head()
    later = Reader(Affinity(proxies=("*",))).later(data, len(data), PEER, ("203.0.113.9", 5))
    assert later == "203.0.113.9"


@pytest.mark.parametrize(
    ("of", "needed"),
    [
        (Reader(Affinity()), False),
        (Reader(Affinity(proxies=("10.0.0.0/8",))), False),
        (Reader(Affinity(proxies=("*",))), True),
        (by_header(), True),
        (by_session(), True),
    ],
)
def test_needs_bytes(of: Reader, needed: bool):
    assert of.needs_bytes(PEER) == needed


# --- by session ---


def test_which_reader():
    assert type(reader(Affinity(), SECRET)) is Reader
    assert type(reader(Affinity(by="header", header="a"), SECRET)) is Reader
    for by in ("session", "cookie"):
        assert type(reader(Affinity(by=by, session_keys=("cookie:a",)), SECRET)) is SessionReader


def percent(value: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte for byte in value)


@pytest.mark.parametrize(
    ("where", "data"),
    [
        ("query:sid", head(target=b"/?sid=" + SEVEN)),
        ("query:sid", head(target=b"/a/b?EIO=4&transport=polling&sid=" + SEVEN + b"&t=x")),
        ("query:sid", head(target=b"http://host/?sid=" + SEVEN)),
        ("query:sid", head(target=b"/?sid=" + SEVEN + b"#part")),
        ("query:sid", head(target=b"/?sid=" + percent(SEVEN))),
        ("query:sid", head(target=b"/?sid=" + percent(SEVEN).upper())),
        ("query:sid", head(target=b"/?sid=garbage&sid=" + FOREIGN + b"&sid=&sid&sid=%&sid=" + SEVEN)),
        ("query:sid", head(target=b"/?sid=" + SEVEN + b"&sid=" + EIGHT)),
        ("query:sid", b"\r\n" + head(target=b"/?sid=" + SEVEN)),
        ("query:sid", b"GET /?sid=" + SEVEN + b"\r\n\r\n"),
        ("query:s.d", head(target=b"/?sxd=" + EIGHT + b"&s.d=" + SEVEN)),
        ("header:mcp-session-id", head(b"Mcp-Session-Id: " + SEVEN)),
        ("header:Mcp-Session-Id", head(b"mcp-session-id:" + SEVEN + b" \t")),
        ("header:x-sid", head(b"X-Sid: garbage", b"X-Sid: ", b"X-Sid: " + FOREIGN, b"X-Sid: " + SEVEN)),
        ("cookie:sid", head(b"Cookie: sid=" + SEVEN)),
        ("cookie:sid", head(b"cookie: a=b; sid=" + SEVEN + b"; c=d")),
        ("cookie:sid", head(b"Cookie: a=b;sid=" + SEVEN + b";c=d")),
        ("cookie:sid", head(b'Cookie: a="b"; sid="' + SEVEN + b'"; c=d')),
        ("cookie:sid", head(b"Cookie: sid=garbage; sid=; sid; sid=" + FOREIGN + b"; sid=" + SEVEN)),
        ("cookie:sid", head(b"Cookie: a=b", b"Cookie: sid=" + SEVEN)),
    ],
)
def test_the_owner_of_the_session(where: str, data: bytes):
    assert key(by_session(where), data) == 7


@pytest.mark.parametrize(
    ("where", "data"),
    [
        ("query:sid", head()),
        ("query:sid", head(target=b"/?sid=" + FOREIGN)),
        ("query:sid", head(target=b"/?sid=" + SEVEN[:-1])),
        ("query:sid", head(target=b"/?sid=" + SEVEN + b"a")),
        ("query:sid", head(target=b"/?sid=7")),
        ("query:sid", head(target=b"/?xsid=" + SEVEN)),
        ("query:sid", head(target=b"/?SID=" + SEVEN)),
        ("query:sid", head(target=b"/?sid[]=" + SEVEN)),
        ("query:sid", head(target=b"/?sids=" + SEVEN)),
        ("query:sid", head(target=b"/?a=sid=" + SEVEN)),
        ("query:sid", head(target=b"/?a=b?sid=" + SEVEN)),
        ("query:sid", head(target=b"/sid=" + SEVEN)),
        ("query:sid", head(target=b"/;sid=" + SEVEN)),
        ("query:sid", head(target=b"/&sid=" + SEVEN)),
        ("query:sid", head(target=b"/?a#sid=" + SEVEN)),
        ("query:sid", head(target=b"/#?sid=" + SEVEN)),
        ("query:sid", head(target=b"/?a#&sid=" + SEVEN)),
        ("query:sid", head(b"Referer: /?sid=" + SEVEN, b"sid: " + SEVEN, b"Cookie: sid=" + SEVEN)),
        ("query:sid", head() + b"/?sid=" + SEVEN + b"&"),
        (
            "header:x-sid",
            head(b"Sid: " + SEVEN, b"XX-Sid: " + SEVEN, b"A: X-Sid: " + SEVEN, target=b"/?x-sid=" + SEVEN),
        ),
        ("header:x-sid", head() + b"X-Sid: " + SEVEN + b"\r\n\r\n"),
        ("header:x-sid", head(b"X-Sid: Bearer " + SEVEN[:-8] + b" " + SEVEN[-8:])),
        ("cookie:sid", head(b"Cookie: xsid=" + SEVEN)),
        ("cookie:sid", head(b"Cookie: a=sid=" + SEVEN)),
        ("cookie:sid", head(b"Cookie: x-sid=" + SEVEN)),
        ("cookie:sid", head(b"Cookie: Sid=" + SEVEN)),
        ("cookie:sid", head(b'Cookie: a="sid=' + SEVEN + b'"')),
        ("cookie:sid", head(b"Set-Cookie: sid=" + SEVEN, b"Cookie2: sid=" + SEVEN, target=b"/?sid=" + SEVEN)),
    ],
)
def test_the_client_of_a_new_session(where: str, data: bytes):
    assert key(by_session(where), data) == "127.0.0.1"


def test_the_client_of_a_new_session_by_unix_socket():
    assert key(by_session(), head(), "") == ""


def test_sources_are_tried_in_their_order():
    data = head(b"X-Sid: " + EIGHT, target=b"/?sid=" + SEVEN)
    assert key(by_session("query:sid", "header:x-sid"), data) == 7
    assert key(by_session("header:x-sid", "query:sid"), data) == 8
    data = head(b"X-Sid: " + EIGHT, b"Cookie: sid=" + SEVEN, target=b"/?sid=garbage")
    assert key(by_session("query:sid", "header:x-sid", "cookie:sid"), data) == 8
    assert key(by_session("query:sid", "cookie:sid", "header:x-sid"), data) == 7


def test_no_more_is_awaited_than_the_source():
    data = head(b"X-Sid: " + SEVEN, b"A: b", target=b"/?sid=" + EIGHT)
    line = data.index(b"\n") + 1
    assert by_session("query:sid").first(data, line, PEER) == 8
    value = data.index(b"A: b") + 1
    assert by_session("header:x-sid").first(data, value, PEER) == 7
    for where, enough in (("query:sid", line), ("header:x-sid", value), ("cookie:sid", len(data))):
        for size in range(enough):
            with pytest.raises(Incomplete):
                by_session(where).first(data, size, PEER)


# --- what the log says of it ---


@pytest.mark.parametrize(
    ("affinity", "text"),
    [
        (Affinity(), "ip; IPv6 prefix: 64"),
        (Affinity(proxies=("10.0.0.1", "::1")), "ip; PROXY header from: 10.0.0.1, ::1; IPv6 prefix: 64"),
        (Affinity(by="header", header="x-a"), "header x-a; trusted proxies: *; IPv6 prefix: 64"),
        (
            Affinity(by="header", header="x-a", ignore_missing=True, trusted=(), ipv6_prefix=48),
            "header x-a, otherwise ip; trusted proxies: none; IPv6 prefix: 48",
        ),
        (
            Affinity(by="session", session_keys=("query:sid", "header:x-sid")),
            "session (query:sid, header:x-sid); balance: least-connections",
        ),
        (Affinity(by="cookie", session_keys=("cookie:w",), balance="hash"), "cookie (cookie:w); balance: hash"),
    ],
)
def test_description(affinity: Affinity, text: str):
    assert str(affinity) == text
