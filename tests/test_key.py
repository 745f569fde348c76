"""From an address or a header to the affinity key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from gunicorn_sticky.routing.key import MAX_KEY, address_key, forwarded_nodes, host, list_nodes, node_key, peer_key


def first_key(nodes: Iterable[str]) -> str | None:
    return next(filter(None, (node_key(node, 64) for node in nodes)), None)


def list_key(values: list[bytes]) -> str | None:
    return first_key(list_nodes(values))


def forwarded_key(values: list[bytes]) -> str | None:
    return first_key(forwarded_nodes(values))


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (("1.2.3.4", 5), "1.2.3.4"),
        (("2001:db8:0:1:aaaa::1", 5, 0, 0), "2001:db8:0:1::/64"),
        (("2001:db8:0:1:bbbb::2", 5, 0, 0), "2001:db8:0:1::/64"),
        (("::ffff:1.2.3.4", 5, 0, 0), "1.2.3.4"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::1", 5, 0, 0), "::/64"),
        (("64:ff9b::1.2.3.4", 5, 0, 0), "1.2.3.4"),
        (("64:ff9b::102:304", 5, 0, 0), "1.2.3.4"),
        (("64:ff9b:0:0:0:1:102:304", 5, 0, 0), "64:ff9b::/64"),
        (("64:ff9b:1::1.2.3.4", 5, 0, 0), "64:ff9b:1::/64"),
        ("", ""),
        (b"\0abstract", ""),
    ],
)
def test_peer(address: object, key: str):
    assert peer_key(address, 64) == key


@pytest.mark.parametrize(("bits", "key"), [(1, "8000::/1"), (48, "ff02:db8:1::/48"), (128, "ff02:db8:1:2::1/128")])
def test_ipv6_prefix(bits: int, key: str):
    assert address_key("8000::1" if bits == 1 else "ff02:db8:1:2::1", bits) == key


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("1.2.3.4", "1.2.3.4"),
        (" 1.2.3.4:5678 ", "1.2.3.4"),
        ('"1.2.3.4:5678"', "1.2.3.4"),
        ("1.2.3.4, 5.6.7.8", "1.2.3.4"),
        ("1.2.3.4,5.6.7.8,9.9.9.9", "1.2.3.4"),
        (", ,1.2.3.4", "1.2.3.4"),
        ('"[2001:db8::1]:80"', "2001:db8::/64"),
        ("[2001:db8::1]", "2001:db8::/64"),
        ("2001:DB8:0::1", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::ffff:1.2.3.4]:99", "1.2.3.4"),
        ("tenant-7", "tenant-7"),
        ("tenant:80", "tenant:80"),
        ("64:ff9b::1.2.3.4", "1.2.3.4"),
        ("[64:FF9B::0102:0304]:99", "1.2.3.4"),
        ("unknown", None),
        ("Unknown, -, (null), unix:, 1.2.3.4", "1.2.3.4"),
        ('"unknown:4711", 1.2.3.4', "1.2.3.4"),
        ("unknown-tenant", "unknown-tenant"),
        ("--", "--"),
        ("_hidden", "_hidden"),
        ("999.1.1.1", "999.1.1.1"),
        ("1.2.3.4:", "1.2.3.4:"),
        ("", None),
        (" , ", None),
        ('""', None),
    ],
)
def test_list(value: str, key: str | None):
    assert list_key([value.encode()]) == key


def test_lines_are_one_list():
    assert list_key([b" ", b"1.2.3.4, 5.6.7.8", b"9.9.9.9"]) == "1.2.3.4"


def test_folded_value():
    assert list_key([b"\r\n 1.2.3.4\r\n , 5.6.7.8\r"]) == "1.2.3.4"


def test_long_keys_are_digested_and_stay_apart():
    first, second = (list_key([b"a" * 5000 + end]) for end in (b"1", b"2"))
    assert first != second
    assert first is not None
    assert len(first) <= MAX_KEY


def test_any_byte_is_a_key():
    assert list_key([bytes(set(range(256)) - set(b',"'))]) is not None


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("for=1.2.3.4", "1.2.3.4"),
        ("For=1.2.3.4;proto=https;by=9.9.9.9, for=5.6.7.8", "1.2.3.4"),
        ('by=9.9.9.9;for="1.2.3.4:5678"', "1.2.3.4"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::/64"),
        ("for=_gazonk", None),
        ('for=_SEVKISEK, for="_gazonk:_port", for=1.2.3.4', "1.2.3.4"),
        ('for=unknown, for="unknown:80", for=UNKNOWN, for=1.2.3.4', "1.2.3.4"),
        ("for=-, for=1.2.3.4", "1.2.3.4"),
        ("proto=https, for=1.2.3.4", "1.2.3.4"),
        ('by="for=9.9.9.9";for=1.2.3.4', "1.2.3.4"),
        ('host="a;for=9.9.9.9, for=9.9.9.9";for=1.2.3.4', "1.2.3.4"),
        ('host="\\";for=9.9.9.9";for=1.2.3.4', "1.2.3.4"),
        ("xfor=9.9.9.9; for = 1.2.3.4", "1.2.3.4"),
        ("proto=https", None),
        ("for=", None),
        ("", None),
    ],
)
def test_forwarded(value: str, key: str | None):
    assert forwarded_key([value.encode()]) == key


@pytest.mark.parametrize("node", ["a\r\n b", "a\nb", "a\rb", "a\x1b[31mb", "a\0b", "a\x85b"])
def test_what_would_break_a_log_is_replaced_by_a_digest(node: str):
    key = node_key(node, 64)
    assert key is not None
    assert re.fullmatch("blake2b:[0-9a-f]{32}", key)
    assert key != node_key(node + "c", 64)


@pytest.mark.parametrize(
    ("nodes", "values", "found"),
    [
        (list_nodes, [b"a, b", b"c"], ["a", "b", "c"]),
        (list_nodes, [b"a,", b",,b"], ["a", "b"]),
        (forwarded_nodes, [b"for=a;by=b, for=c", b"proto=http", b'FOR="d, e"'], ["a", "c", "d, e"]),
        (forwarded_nodes, [b"by=a"], []),
        (forwarded_nodes, [b'for=_a, for="_b:80";by=a, for=c'], ["c"]),
    ],
)
def test_all_nodes_in_order(nodes: Callable[[list[bytes]], Iterator[str]], values: list[bytes], found: list[str]):
    assert [host(node) for node in nodes(values) if node] == found


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (" 1.2.3.4\t", "1.2.3.4"),
        ("1.2.3.4:80", "1.2.3.4"),
        ('"1.2.3.4:80"', "1.2.3.4"),
        ("[::1]:80", "::1"),
        ('"[::1]"', "::1"),
        ("::1", "::1"),
        ('"', '"'),
        ("[", ""),
        ("", ""),
    ],
)
def test_host(node: str, text: str):
    assert host(node) == text


@pytest.mark.parametrize("part", [b"a", b'\\"', b"a ", b"for=", b",", b'";'])
@pytest.mark.parametrize("nodes", [list_nodes, forwarded_nodes])
def test_a_hostile_value_takes_no_time(nodes: Callable[[list[bytes]], Iterator[str]], part: bytes):
    value = part * (60_000 // len(part)) + b"\\"  # which may not end a search late either
    start = time.process_time()
    first_key(nodes([value]))
    assert time.process_time() - start < 2  # some milliseconds; half a minute if the search were quadratic
