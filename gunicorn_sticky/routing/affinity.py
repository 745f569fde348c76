"""What makes two requests belong to the same client: from the bytes of a connection to its affinity key.

Pure. The dispatcher asks this of each connection, and the worker of each later request on it, so both always agree.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, TypeVar

from . import key as keys
from . import proxy_protocol as proxy
from .head import MAX_VALUES, Cookie, Fields, Head, Incomplete, Query
from .key import COOKIE, HEADER, IP, PROXY, SESSION, Key
from .session_ids import Ids

T = TypeVar("T")


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
    #: Bytes of a request line that Gunicorn accepts; 0 for any number.
    request_line: int = 0

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


def _remembered(function: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Cache a function: clients come again and again. Long values would fill the memory."""
    cached = functools.lru_cache(maxsize=4096)(function)
    return lambda value: cached(value) if len(value) <= keys.MAX_KEY else function(value)


def _never(data: bytes) -> bool:
    return False


class Reader:
    """Reads keys, by address or by header.

    Args:
        affinity: the settings
        refuses: tells whether the worker's parser refuses a request by the part of it that has arrived: then its key
            does not matter, and nobody has to wait for it
    """

    def __init__(self, affinity: Affinity, refuses: Callable[[bytes], bool] = _never) -> None:
        self.affinity = affinity
        #: What a connection has to show.
        self.wanted = f"request header {affinity.header}" if affinity.header else "PROXY header"
        self._refuses = refuses
        self._fields = Fields(affinity.header) if affinity.header else None
        self._nodes = keys.forwarded_nodes if affinity.header == "forwarded" else keys.list_nodes
        self._trusts_all = "*" in affinity.trusted
        self._known = _remembered(self._left_most)
        self._is_trusted = _membership(affinity.trusted)
        self._may_proxy = _membership(affinity.proxies) if affinity.proxies else None
        #: What gave the last key.
        self.source = IP

    def needs_bytes(self, address: Any) -> bool:
        """Tell whether the key of a connection from `address` is in its bytes."""
        return self._fields is not None or self._proxied(address)

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
        text = "PROXY header" if source == PROXY else source
        if self.affinity.header is None:
            return text
        why = "missing" if self._trusts(address) else "not trusted"
        return f"{text}, as the header {self.affinity.header} is {why}"

    def first(self, data: bytes | bytearray, size: int, address: Any, head: Head | None = None) -> Key:
        """Return the key of a connection, by the first `size` bytes that it sent.

        Args:
            data: those bytes, and maybe more
            address: its peer, as ``accept()`` gave it
            head: what earlier looks have found, if there were any

        Raises:
            head.Incomplete: more bytes are needed
            head.BareLineFeed: the head is refused
            Missing: the head lacks the header
            proxy.Malformed: the PROXY header is broken
        """
        head = head or Head()
        if self._may_proxy is not None and not head.start and self._proxied(address):
            head.start, head.source = proxy.parse(data, size)
        return self.later(data, size, address, head.source, head)

    def later(
        self,
        data: bytes | bytearray,
        size: int,
        address: Any,
        source: tuple[Any, ...] | None = None,
        head: Head | None = None,
    ) -> Key:
        """Return the key of a request, by the bytes of its head; see `first`.

        Args:
            source: the address that the connection's PROXY header gave
        """
        head = head or Head()
        try:
            key = self._find(data, size, address, head)
        except Incomplete:
            if not self._is_refused(data, size, head):
                head.wait(data, size)
                raise
            key = None
        if key is None:
            self.source = PROXY if source else IP
            return keys.peer_key(source or address, self.affinity.ipv6_prefix)
        return key

    def _is_refused(self, data: bytes | bytearray, size: int, head: Head) -> bool:
        """Tell whether the worker refuses a request already: asked once, if its first line has ended or is too long."""
        limit = self.affinity.request_line
        if head.is_judged or not (head.position or (limit and size - (head.line or head.start) > limit + 2)):
            return False
        head.is_judged = True
        return self._refuses(bytes(data[head.start : size]))

    def _find(self, data: bytes | bytearray, size: int, address: Any, head: Head) -> Key | None:
        """Return the key that the head names, or None if the peer's address counts.

        Raises:
            head.Incomplete, head.BareLineFeed, Missing: as in `first`
        """
        if self._fields is None or not (self._trusts_all or self._trusts(address)):
            return None
        if not head.position:
            head.find_line(data, size)
        elif not head.has_news(data, size):
            raise Incomplete
        if self._trusts_all:
            while field := self._fields.next(data, size, head):
                found, count = self._known(field[1])
                if found is not None:
                    self.source = HEADER
                    return found
                head.spent += count or 1
                if head.spent >= MAX_VALUES:
                    break
        elif (found := self._by_right(self._fields, data, size, head)) is not None:
            self.source = HEADER
            return found
        if not self.affinity.ignore_missing:
            if head.spent >= MAX_VALUES:
                raise Missing(
                    f"the header {self.affinity.header} names nobody, or too many: at most {MAX_VALUES} count"
                )
            raise Missing(f"the request lacks the header {self.affinity.header}")
        return None

    def _by_right(self, fields: Fields, data: bytes | bytearray, size: int, head: Head) -> str | None:
        """Return the key of the last client in the header that is not one of our own proxies, or of the first one.

        A header of too many clients counts for nothing: who has put them there could move the last ones out of sight.
        """
        if head.values is None:
            head.values = []
        while field := fields.next(data, size, head):
            head.values.append(field[1])
            if len(head.values) >= MAX_VALUES:
                head.spent = MAX_VALUES
                return None
        nodes = list(itertools.islice(self._nodes(head.values), MAX_VALUES))
        head.spent = len(nodes)
        return self._right_most(nodes) if len(nodes) < MAX_VALUES else None

    def _left_most(self, value: bytes) -> tuple[str | None, int]:
        """Return the key of the first client in a line of the header, and how many have been looked at."""
        count = 0
        for node in itertools.islice(self._nodes([value]), MAX_VALUES):
            count += 1
            if (key := keys.node_key(node, self.affinity.ipv6_prefix)) is not None:
                return key, count
        return None, count

    def _right_most(self, nodes: Sequence[str]) -> str | None:
        """Return the key of the last client in a list that is not one of our own proxies, or of the first one."""
        found = None
        for node in reversed(nodes):
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
        refuses: see `Reader`
    """

    def __init__(self, affinity: Affinity, secret: bytes, refuses: Callable[[bytes], bool] = _never) -> None:
        super().__init__(affinity, refuses)
        self.wanted = "head of the request"
        self._owner = _remembered(Ids(secret).owner)
        self._session = COOKIE if affinity.by == "cookie" else SESSION
        #: Where ids are, by their rank: the order in which they count.
        self._queries: list[tuple[int, Query]] = []
        self._in_fields: dict[bytes, list[tuple[int, Callable[[bytes], list[bytes]]]]] = {}
        for rank, where in enumerate(affinity.session_keys):
            kind, name = where.split(":", 1)
            if kind == "query":
                self._queries.append((rank, Query(name)))
            elif kind == "cookie":
                self._in_fields.setdefault(b"cookie", []).append((rank, Cookie(name).values))
            else:
                self._in_fields.setdefault(name.lower().encode(), []).append((rank, lambda value: [value.strip()]))
        self._fields = Fields(*(name.decode() for name in self._in_fields)) if self._in_fields else None
        self._best_field = min((rank for found in self._in_fields.values() for rank, _ in found), default=math.inf)

    def needs_bytes(self, address: Any) -> bool:
        """Return True."""
        return True

    def _find(self, data: bytes | bytearray, size: int, address: Any, head: Head) -> Key | None:
        """Return the number of the worker that owns the session, or None for a new one."""
        if not head.position:
            head.find_line(data, size)
            if self._queries and (query := head.query(data)):
                for rank, parameter in self._queries:
                    if head.owner is not None:
                        break
                    self._try(rank, parameter.values(query), head)
        elif not head.has_news(data, size):
            raise Incomplete
        if self._fields and head.rank > self._best_field and head.spent < MAX_VALUES:
            while field := self._fields.next(data, size, head):
                for rank, values in self._in_fields[field[0].lower()]:
                    self._try(rank, values(field[1]), head)
                if head.rank <= self._best_field or head.spent >= MAX_VALUES:
                    break
        if self._fields and head.spent >= MAX_VALUES:
            # A head that is made to cost time should not cost it the worker, before it is known to have an end.
            head.find_end(data, size)
        if head.owner is not None:
            self.source = self._session
            return head.owner
        return None

    def _try(self, rank: int, values: list[bytes], head: Head) -> None:
        """Note the first owner of an id among some values, unless one of a better rank has been found."""
        if rank >= head.rank:
            return
        if not values:
            head.spent += 1  # as a field has been looked at
        for value in values:
            if (owner := self._owner(value)) is not None:
                head.rank, head.owner = rank, owner
                return
            head.spent += 1
            if head.spent >= MAX_VALUES:
                return


def reader(affinity: Affinity, secret: bytes, refuses: Callable[[bytes], bool] = _never) -> Reader:
    """Return what reads keys according to the settings; see `Reader`."""
    return SessionReader(affinity, secret, refuses) if affinity.by_session else Reader(affinity, refuses)
