"""Coverage-guided fuzzing of what reads bytes that come from outside: python fuzz.py TARGET [libFuzzer's options]

Input that breaks a promise is printed and written to a file, `crash-...`, which `python fuzz.py TARGET crash-...` runs
again. The inputs to begin with are in seeds/, and the words that they are made of in words.dict.
"""

from __future__ import annotations

import os
import sys
import tempfile
from ipaddress import IPv4Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["gunicorn_sticky", "gunicorn.http"]):
    from gunicorn.config import Config
    from gunicorn.http import RequestParser
    from gunicorn.http.errors import NoMoreData, ParseException

    from gunicorn_sticky.routing import key as keys
    from gunicorn_sticky.routing.affinity import Affinity, Missing, Reader, reader
    from gunicorn_sticky.routing.head import MAX_HEAD, BareLineFeed, Fields, Head, Incomplete
    from gunicorn_sticky.routing.proxy_protocol import Malformed, parse
    from gunicorn_sticky.routing.session_ids import Ids
    from gunicorn_sticky.shared.channel import Channel, ConnectionInfo

HERE = Path(__file__).parent
PEER = ("127.0.0.1", 5)
SECRET = bytes(16)
TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")
SOURCES = ("query:sid", "header:x-sid", "cookie:sid")
#: IPv4-mapped, and of NAT64.
IPV4_PREFIXES = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
NAMES = ("x-forwarded-for", "forwarded", "cookie", "x-sid", "host")

READERS = [
    Reader(Affinity(by="header", header="x-forwarded-for")),
    Reader(Affinity(by="header", header="forwarded")),
    Reader(Affinity(by="header", header="x-forwarded-for", trusted=TRUSTED)),
    Reader(Affinity(by="header", header="forwarded", trusted=TRUSTED, ignore_missing=True)),
    Reader(Affinity(by="header", header="x-forwarded-for", proxies=("*",))),
    Reader(Affinity(proxies=("*",))),
    reader(Affinity(by="session", session_keys=SOURCES), SECRET),
]


def config(**options: Any) -> Config:
    """Return Gunicorn's settings with some of them changed."""
    cfg = Config()
    for name, value in options.items():
        cfg.set(name, value)
    return cfg


DEFAULT = config()
TOLERANT = config(permit_obsolete_folding=True, strip_header_spaces=True, header_map="dangerous")
PROXIED = config(proxy_protocol="auto")


def gunicorns(cfg: Config, data: bytes) -> Any:
    """Return the request as Gunicorn parses it, or None if it does not accept it."""
    try:
        return next(RequestParser(cfg, iter([data]), PEER))
    except (ParseException, NoMoreData, StopIteration):
        return None
    except ValueError:  # from inet_pton(): a zero byte in the address of a PROXY header
        return None


def unfold(value: bytes) -> str:
    """Return a value as Gunicorn has it: without spaces around it, and folded lines joined by one."""
    return " ".join(line.strip(b" \t").decode("latin-1") for line in value.removesuffix(b"\r").split(b"\r\n"))


def values(name: str, data: bytes | bytearray, size: int) -> list[bytes]:
    """Return the values of a field in a head."""
    of = Head()
    of.find_line(data, size)
    fields, found = Fields(name), []
    while field := fields.next(data, size, of):
        found.append(field[1])
    return found


def head(data: bytes) -> None:
    """The fields of a head that Gunicorn accepts have the values that Gunicorn sees."""
    for cfg in (DEFAULT, TOLERANT):
        request = gunicorns(cfg, data)
        if request is None:
            continue
        for name in NAMES:
            seen = [value for other, value in request.headers if other == name.upper()]
            try:
                found = values(name, data, len(data))
            except BareLineFeed:  # which older versions accept in a request line
                assert b"\n" in data.partition(b"\r\n")[0]
                break
            assert [unfold(value) for value in found] == seen, name
    buffer = bytearray(data[:MAX_HEAD].ljust(MAX_HEAD, b"\n"))
    try:
        found = values("x-sid", data, len(data))
    except (BareLineFeed, Incomplete):
        return
    assert values("x-sid", buffer, len(data)) == found  # what lies behind does not count


def keyed(data: bytes) -> None:
    """More bytes do not change a key, and a key can stand in a log."""
    cut, data = sum(data[:2]), data[2:]
    for of in READERS:
        answers = []
        for size in (min(cut, len(data)), len(data)):
            try:
                answers.append(of.first(data, size, PEER))
            except BareLineFeed:
                assert b"\n" in data
            except (Missing, Malformed) as error:
                answers.append(type(error).__name__)
            except Incomplete:
                assert not answers, "taken back"
        assert len(set(answers)) <= 1
        for answer in answers:
            assert len(str(answer)) <= keys.MAX_KEY
            assert str(answer).isprintable()


def nodes(data: bytes) -> None:
    """An address is an address to the standard library too, and each has one key."""
    text = data.decode("latin-1")
    found = keys.address_key(text, 64)
    try:
        address = ip_address(text)
    except ValueError:
        assert found is None or "%" in text
    else:
        assert found is not None
        for node in (text, f'"{text}"', f"[{text}]:80", f" {text} "):
            assert keys.node_key(node, 64) == found
        if address.version == 6 and any(address in prefix for prefix in IPV4_PREFIXES):
            assert found == str(IPv4Address(int(address) % (1 << 32)))
    for of in (keys.list_nodes, keys.forwarded_nodes):
        for node in of([data]):
            key = keys.node_key(node, 64)
            assert key is None or (0 < len(key) <= keys.MAX_KEY and key.isprintable())


def proxy(data: bytes) -> None:
    """A PROXY header names the client that Gunicorn sees, is refused by both, or is not there for both."""
    answers: list[Any] = []
    for size in (*range(min(len(data), 250)), len(data)):
        try:
            answers.append(parse(data, size))
        except Malformed:
            answers.append(Malformed)
        except Incomplete:
            assert not answers, "taken back"
    assert all(answer == answers[0] for answer in answers)
    request = gunicorns(PROXIED, data)
    if request is not None:
        assert answers
        if answers[0] is Malformed:  # Gunicorn takes whatever `int` takes for a port
            ports = data.partition(b"\r\n")[0].split(b" ")[4:]
            assert not all(port.isdigit() for port in ports)
            return
        length, address = answers[0]
        info = request.proxy_protocol_info or {}
        assert (address or (None, None)) == (info.get("client_addr"), info.get("client_port"))
        assert gunicorns(DEFAULT, data[length:]) is not None


def session(data: bytes) -> None:
    """An id leads to its owner, and any other one to nobody."""
    ids = Ids(SECRET)
    assert ids.owner(data) is None
    owner, text = int.from_bytes(data[:3], "big"), data[3:].decode("latin-1") or "a"
    tagged = ids.tag(text, owner).encode()
    assert ids.owner(tagged) == owner
    if text.encode() + data[-8:] != tagged:
        assert ids.owner(text.encode() + data[-8:]) is None


CHANNEL = Channel()


def channel(data: bytes) -> None:
    """What is sent arrives, one by one, in order, whatever it says; messages before it leave no trace."""
    source = atheris.FuzzedDataProvider(data)
    sent = []
    for _ in range(source.ConsumeIntInRange(1, 9)):
        address = source.PickValueInList(["", (source.ConsumeUnicode(50), 80), ("::1", 80, 0, source.ConsumeUInt(4))])
        proxy_info = source.PickValueInList([None, {}, {"client_addr": source.ConsumeUnicode(50), "client_port": 1}])
        unread = source.ConsumeBytes(100) * source.ConsumeIntInRange(0, MAX_HEAD // 100)
        sent.append(ConnectionInfo(address, address, source.ConsumeUnicode(keys.MAX_KEY), unread, proxy_info))
    for info in sent:
        reading, writing = os.pipe()
        CHANNEL.send(reading, info)
        os.close(reading)
        received = CHANNEL.receive()
        assert received is not None
        assert received[1] == info
        os.write(writing, b"x")
        assert os.read(received[0], 2) == b"x"  # the very descriptor
        os.close(received[0])
        os.close(writing)
    assert CHANNEL.receive() is None


TARGETS = {target.__name__: target for target in (head, keyed, nodes, proxy, session, channel)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--list"]:
        print(*TARGETS)
        sys.exit()
    target, options = TARGETS[sys.argv[1]], sys.argv[2:]
    with tempfile.TemporaryDirectory() as new:
        if all(option.startswith("-") for option in options):
            # What is found goes to the first folder.
            options = [f"-dict={HERE / 'words.dict'}", *options, new, str(HERE / "seeds")]
        atheris.Setup([sys.argv[0], *options], target)
        atheris.Fuzz()
