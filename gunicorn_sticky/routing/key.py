"""The affinity key: what a connection is routed by.

Pure. It is the client, as text that can stand in a log, or the owner of the request's session: a worker's number. One
client has one key, however its address was written: ``1.2.3.4``, ``1.2.3.4:5678`` and ``::ffff:1.2.3.4`` are
the same, and so are all the IPv6 addresses of one prefix. What proxies write where they know no client is no key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NewType

#: The number of the worker that a session belongs to. Text is never taken for one.
Owner = NewType("Owner", int)
Key = str | Owner

#: What a key comes from.
IP, PROXY, HEADER, SESSION, COOKIE = "ip", "proxy", "header", "session", "cookie"
#: Longer keys, and those with line breaks and the like, are replaced by a digest: a key travels with every connection
#: and into the logs.
MAX_KEY = 255
#: IPv6 prefixes, all of 96 bits, in front of an IPv4 address: IPv4-mapped (RFC 4291 section 2.5.5.2), and the one that
#: every NAT64 has (RFC 6052 section 2.1). In others, such as 64:ff9b:1::/48, each network chooses where the address is.
IPV4_PREFIXES = (bytes(10) + b"\xff\xff", b"\0\x64\xff\x9b" + bytes(8))

_IPV4_PORT = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}):\d+")
_ELEMENT = re.compile(r"[^,]+")
# In the place of a client: unknown (RFC 7239 section 6.2, and Squid), what logs show for nothing, and nginx's address
# of a client that came by a Unix socket.
_NOBODY = re.compile(r"|-|\(null\)|unix:|unknown(?::\w+)?", re.IGNORECASE)
# A parameter of the Forwarded header (RFC 7239 section 4): a token, "=", and a token or a quoted string. Whatever
# begins like one is consumed as a whole, valid or not, so that no input is scanned twice.
_QUOTED = r"\"(?:[^\"\\]|\\.)*(?:\"|\\?\Z)"
_PARAMETER = re.compile(rf"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*({_QUOTED}|[^\s\",;]*))?|{_QUOTED}", re.DOTALL)


def address_key(text: str, ipv6_prefix: int) -> str | None:
    """Return the key of an IP address without port, or None if `text` is not an address.

    Args:
        ipv6_prefix: leading bits of an IPv6 address that count
    """
    if ":" not in text:
        try:
            inet_pton(AF_INET, text)
        except (OSError, ValueError):
            return None
        return text
    try:
        packed = inet_pton(AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return None
    if packed.startswith(IPV4_PREFIXES):
        return inet_ntop(AF_INET, packed[12:])
    spare = 128 - ipv6_prefix
    masked = (int.from_bytes(packed, "big") >> spare << spare).to_bytes(16, "big")
    return f"{inet_ntop(AF_INET6, masked)}/{ipv6_prefix}"


def peer_key(address: object, ipv6_prefix: int) -> str:
    """Return the key of a peer by the `address` that ``accept()`` gave, or "" for a Unix socket."""
    if not isinstance(address, tuple):
        return ""
    text: str = address[0]
    return text if ":" not in text else address_key(text, ipv6_prefix) or text


def host(node: str) -> str:
    """Return the host of a node as proxies name clients (RFC 7239 section 6), without quotes, brackets and port."""
    node = node.strip()
    if len(node) > 1 and node[0] == node[-1] == '"':
        node = node[1:-1].strip()
    if node.startswith("["):
        return node[1:].partition("]")[0]
    if ":" in node and (match := _IPV4_PORT.fullmatch(node)):
        return match.group(1)
    return node


def node_key(node: str, ipv6_prefix: int) -> str | None:
    """Return the key of one client as a proxy names it, or None if it names nobody."""
    text = host(node)
    if key := address_key(text, ipv6_prefix):
        return key
    if _NOBODY.fullmatch(text):
        return None
    if len(text) > MAX_KEY or not text.isprintable():
        return "blake2b:" + blake2b(text.encode("latin-1"), digest_size=16).hexdigest()
    return text


def list_nodes(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the clients in a header such as X-Forwarded-For, from left to right.

    Args:
        values: the header's lines, which count as one list (RFC 9110 section 5.3)
    """
    for value in values:
        for match in _ELEMENT.finditer(value.decode("latin-1")):
            yield match.group()


def forwarded_nodes(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the clients, ``for=``, in a Forwarded header (RFC 7239), from left to right.

    What names nobody is yielded as "": other parameters, and obfuscated identifiers (section 6.3), of which a proxy's
    clients may all have the same one, or a client another one with each request.
    """
    for value in values:
        for match in _PARAMETER.finditer(value.decode("latin-1")):
            node = match.group(2) or "" if (match.group(1) or "").lower() == "for" else ""
            yield "" if node.startswith(("_", '"_')) else node
