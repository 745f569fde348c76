"""What makes two requests belong to the same client: from the bytes of a connection to its affinity key.

Pure. The dispatcher asks this of each connection, and the worker of each later request on it, so both always agree.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from . import key as keys
from . import proxy
from .head import Cookie, Field, Query
from .key import COOKIE, HEADER, IP, PROXY, SESSION
from .session import Ids


class Missing(Exception):
    """The head has no such header, and the settings do not allow that."""


@dataclass(frozen=True)
class Affinity:
    """The settings that concern the key."""

    #: What the key is: "ip", "header", "session" or "cookie".
    by: str = "ip"
    #: Lower-case name of the header that carries the key, or None.
    header: str | None = None
    #: Whether a request without the header is routed by its peer's address.
    ignore_missing: bool = False
    #: Leading bits of an IPv6 address that make up a client.
    ipv6_prefix: int = 64
    #: Addresses and networks whose header counts; "*" for all.
    trusted: Sequence[str] = ("*",)
    #: Addresses and networks that may send a PROXY header; empty if nobody may, "*" for all.
    proxies: Sequence[str] = ()
    #: Where the session's id is, such as "query:sid".
    session_keys: Sequence[str] = ()
    #: How a worker is chosen for a new session.
    balance: str = "least-connections"

    @property
    def by_session(self) -> bool:
        """Whether the key is the owner of a session."""
        return self.by in ("session", "cookie")

    def __str__(self) -> str:
        """Return what the log says of it."""
        what = [self.by]
        if self.by == "header":
            otherwise = ", otherwise ip" if self.ignore_missing else ""
            what = [f"header {self.header}{otherwise}", f"trusted proxies: {', '.join(self.trusted) or 'none'}"]
        elif self.by_session:
            what = [f"{self.by} ({', '.join(self.session_keys)})", f"balance: {self.balance}"]
        if self.proxies:
            what.append(f"PROXY header from: {', '.join(self.proxies)}")
        if not self.by_session:
            what.append(f"IPv6 prefix: {self.ipv6_prefix}")
        return "; ".join(what)


def _membership(networks: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tells whether an address, or the IPv4 address in it, is in one of the networks."""
    if "*" in networks:
        return lambda text: True
    parsed = [ip_network(network) for network in networks]

    @functools.lru_cache(maxsize=4096)
    def known(text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        names = [address]
        if address.packed.startswith(keys.IPV4_PREFIXES):
            names.append(IPv4Address(address.packed[12:]))
        return any(name in network for network in parsed for name in names)

    # No address is longer (inet_ntop(3), INET6_ADDRSTRLEN), and the cache is not to fill with what is none.
    return lambda text: len(text := text.partition("%")[0]) < 46 and known(text)


def _remembered(function: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Cache a function: clients come again and again. Long values would fill the memory."""
    cached = functools.lru_cache(maxsize=4096)(function)
    return lambda value: cached(value) if len(value) <= keys.MAX_KEY else function(value)


class Reader:
    """Reads keys, by address or by header.

    Args:
        affinity: the settings
    """

    def __init__(self, affinity: Affinity) -> None:
        self.affinity = affinity
        #: What a connection has to show.
        self.wanted = f"request header {affinity.header}" if affinity.header else "PROXY header"
        self._field = Field(affinity.header) if affinity.header else None
        self._nodes = keys.forwarded_nodes if affinity.header == "forwarded" else keys.list_nodes
        self._trusts_all = "*" in affinity.trusted
        self._known = _remembered(self._left_most)
        self._is_trusted = _membership(affinity.trusted)
        self._may_proxy = _membership(affinity.proxies) if affinity.proxies else None
        #: What gave the last key.
        self.source = IP

    def needs_bytes(self, address: Any) -> bool:
        """Tell whether the key of a connection from `address` is in its bytes."""
        return self._field is not None or self._proxied(address)

    def _proxied(self, address: Any) -> bool:
        # As in Gunicorn, whoever comes by a Unix socket is trusted.
        return self._may_proxy is not None and (not isinstance(address, tuple) or self._may_proxy(address[0]))

    def _trusts(self, address: Any) -> bool:
        return not isinstance(address, tuple) or self._is_trusted(address[0])

    def origin(self, address: Any) -> str:
        """Return, for the log, what gave the last key, that of a request from `address`."""
        source = self.source if self.needs_bytes(address) else IP
        if source == HEADER:
            return f"header {self.affinity.header}"
        text = "PROXY header" if source == PROXY else keys.SOURCES[source]
        if self._field is None:
            return text
        why = "missing" if self._trusts(address) else "not trusted"
        return f"{text}, as the header {self.affinity.header} is {why}"

    def first(self, data: bytes | bytearray, size: int, address: Any) -> str:
        """Return the key of a connection, by the first `size` bytes that it sent.

        Args:
            data: those bytes, and maybe more
            address: its peer, as ``accept()`` gave it

        Raises:
            head.Incomplete: more bytes are needed
            Missing: the head lacks the header
            proxy.Malformed: the PROXY header is broken
        """
        start, source = 0, None
        if self._proxied(address):
            start, source = proxy.parse(data, size)
        return self.later(data, size, address, source, start)

    def later(
        self, data: bytes | bytearray, size: int, address: Any, source: tuple[Any, ...] | None = None, start: int = 0
    ) -> str:
        """Return the key of a request, by the bytes of its head; see `first`.

        Args:
            source: the address that the connection's PROXY header gave
            start: where the head starts
        """
        if self._field is not None and (self._trusts_all or self._trusts(address)):
            values = self._field.values(data, size, start)
            if self._trusts_all:
                for value in values:
                    if (found := self._known(value)) is not None:
                        self.source = HEADER
                        return str(found)
            elif (found := self._right_most(list(self._nodes(values)))) is not None:
                self.source = HEADER
                return found
            if not self.affinity.ignore_missing:
                raise Missing
        return self._peer_key(address, source)

    def _peer_key(self, address: Any, source: tuple[Any, ...] | None) -> str:
        self.source = PROXY if source else IP
        return keys.peer_key(source or address, self.affinity.ipv6_prefix)

    def _left_most(self, value: bytes) -> str | None:
        """Return the key of the first client in a line of the header."""
        nodes = (keys.node_key(node, self.affinity.ipv6_prefix) for node in self._nodes([value]))
        return next(filter(None, itertools.islice(nodes, keys.MAX_NODES)), None)

    def _right_most(self, nodes: list[str]) -> str | None:
        """Return the key of the last client in a list that is not one of our own proxies, or of the first one."""
        found = None
        for node in reversed(nodes[-keys.MAX_NODES :]):
            key = keys.node_key(node, self.affinity.ipv6_prefix)
            if key is not None:
                found = key
                if not self._is_trusted(keys.host(node)):
                    break
        return found


class SessionReader(Reader):
    """Reads the number of the worker that owns a request's session; for a new session, the client's address.

    Args:
        affinity: the settings
        secret: that of the master
    """

    def __init__(self, affinity: Affinity, secret: bytes) -> None:
        super().__init__(affinity)
        self.wanted = "head of the request"
        self._owner = _remembered(Ids(secret).owner)
        self._session = COOKIE if affinity.by == "cookie" else SESSION
        self._sources = [self._source(*where.split(":", 1)) for where in affinity.session_keys]

    def needs_bytes(self, address: Any) -> bool:
        """Return True."""
        return True

    def later(
        self, data: bytes | bytearray, size: int, address: Any, source: tuple[Any, ...] | None = None, start: int = 0
    ) -> str:
        """Return the key of a request; see `Reader.later`."""
        for values in self._sources:
            for value in values(data, size, start):
                if (owner := self._owner(value)) is not None:
                    self.source = self._session
                    return str(owner)
        return self._peer_key(address, source)

    @staticmethod
    def _source(kind: str, name: str) -> Callable[[bytes | bytearray, int, int], Iterator[bytes]]:
        if kind == "query":
            return Query(name).values
        if kind == "header":
            field = Field(name)
            return lambda data, size, start: (value.strip() for value in field.values(data, size, start))
        return Cookie(name).values


def reader(affinity: Affinity, secret: bytes) -> Reader:
    """Return what reads keys according to the settings."""
    return SessionReader(affinity, secret) if affinity.by_session else Reader(affinity)
