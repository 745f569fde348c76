"""Clients that speak HTTP, Engine.IO, MCP and WebSocket with raw sockets, and check every answer.

    python client.py '{"ports": [8000], "workload": "new", "rate": 1000, "seconds": 2}'

Prints what they have seen, as JSON. With a rate, each request (or Engine.IO session) has its time, and its latency
counts from then on, also if it has to wait for an earlier one; without a rate, the clients never pause.

Every client is a generator. It yields the time to be called again at, or None to wait for its connection.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import heapq
import json
import re
import select
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from typing import Any

#: Seconds that answers may take.
PATIENCE = 5.0
ADDRESSES = 256
#: Seconds at the start of a run at a rate whose latencies do not count: connections are opened, and all at once.
WARM_UP = 0.25
#: Messages of an Engine.IO session.
MESSAGES = 20
#: Calls of an MCP session.
CALLS = 20
#: Linux's; Python has no name for it.
IP_BIND_ADDRESS_NO_PORT = 24

Steps = Generator["float | Connection", None, Any]
now = time.perf_counter


def address(number: int) -> str:
    """Return one of `ADDRESSES` of this machine, no two in one /24, since nginx's ip_hash takes these for one."""
    n = number % ADDRESSES
    return f"127.{100 + n % 16}.{100 + n // 16}.{100 + n % 100}"


class Wrong(Exception):
    """An answer that is not what it should be."""


class Connection:
    def __init__(self, load: Load, source: str) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((source, 0))
        code = self.socket.connect_ex(("127.0.0.1", load.ports[sum(source.encode()) % len(load.ports)]))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode[code])
        load.epoll.register(self.socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self.data = b""

    def send(self, data: bytes) -> Steps:
        while True:
            try:
                self.socket.send(data)  # so short that it fits
                return
            except BlockingIOError:
                yield self

    def more(self) -> Generator[Connection, None, bool]:
        """Read what comes next; return whether there was something."""
        while True:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                yield self
                continue
            self.data += data
            return bool(data)

    def until(self, is_complete: Callable[[bytes], object]) -> Steps:
        while not is_complete(self.data):
            if not (yield from self.more()):
                raise Wrong("closed within an answer" if self.data else "closed without an answer")

    def close(self) -> None:
        self.socket.close()


def parse(answer: bytes) -> tuple[bytes, bytes]:
    """Return an answer's head, in lower case, and its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, _, head = head.lower().partition(b"\r\n")
    if b"transfer-encoding: chunked" in head:
        chunks, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks, rest = chunks + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = chunks
    if status not in (b"http/1.1 200 ok", b"http/1.1 202 accepted"):
        raise Wrong(f"{(status or b'no answer').decode('latin-1')} {body[:60].decode('latin-1')}".strip())
    return head, body


def is_complete(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class Load:
    def __init__(
        self,
        ports: list[int],
        workload: str,
        seconds: float,
        rate: float | None = None,
        clients: int = 64,
        sessions: int | None = None,
        offset: int = 0,
    ) -> None:
        self.ports, self.seconds, self.rate = ports, seconds, rate
        self.clients, self.sessions, self.offset = clients, sessions, offset
        self.session = {
            "new": self.new,
            "keep-alive": self.keep_alive,
            "polling": self.polling,
            "mcp": self.mcp,
            "websocket": self.websocket,
        }[workload]
        self.epoll = select.epoll()
        self.readers: dict[int, Steps] = {}
        self.timers: list[tuple[float, int, Steps]] = []
        self.kept: dict[int, Connection] = {}
        self.latencies: list[float] = []
        self.requests = 0
        self.errors: Counter[str] = Counter()
        #: Who has answered each client.
        self.servers: defaultdict[str, set[bytes]] = defaultdict(set)

    def step(self, client: Steps, number: int) -> None:
        with contextlib.suppress(StopIteration):
            waits = next(client)
            if isinstance(waits, Connection):
                self.readers[waits.socket.fileno()] = client
            else:
                heapq.heappush(self.timers, (waits, number, client))

    def run(self) -> dict[str, Any]:
        self.first = now() + 0.01
        self.end = self.first + self.seconds
        for number in range(self.clients):
            self.step(self.client(number), number)
        while self.readers or self.timers:
            wait = min(self.timers[0][0] if self.timers else self.end + PATIENCE, self.end + PATIENCE) - now()
            if now() > self.end + PATIENCE:
                self.errors[f"no answer for {PATIENCE:g} s"] += len(self.readers)
                break
            # epoll itself only knows milliseconds.
            select.select([self.epoll], (), (), max(wait, 0))
            for fd, _events in self.epoll.poll(0):
                if client := self.readers.pop(fd, None):
                    self.step(client, fd)
            while self.timers and self.timers[0][0] <= now():
                _due, number, client = heapq.heappop(self.timers)
                self.step(client, number)
        seconds = now() - self.first
        for connection in self.kept.values():
            connection.close()
        self.epoll.close()
        self.latencies.sort()
        return {
            "requests": self.requests,
            "seconds": seconds,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "errors": dict(self.errors),
            "clients": len(self.servers),
            "servers": len(set().union(*self.servers.values())),
            "moved": sum(len(servers) > 1 for servers in self.servers.values()),
        }

    def quantile(self, share: float) -> float | None:
        return self.latencies[int(share * (len(self.latencies) - 1))] if self.latencies else None

    def client(self, number: int) -> Steps:
        """Begin one session after the other."""
        count = 0
        while self.sessions is None or count < self.sessions:
            due = now()
            if self.rate:
                due = self.first + (count * self.clients + number) / self.rate
            if due >= self.end:
                break
            waits = due > now()
            # Even a client that never pauses lets the others have their turn.
            yield due
            # That the client is called too late is nobody's fault but ours, that it was busy is the server's.
            if waits:
                due = now()
            # In the end each address has been a client's, with as many connections at once as there are clients.
            turn = 0 if self.session == self.keep_alive else count
            source = address(self.offset + turn * self.clients + number)
            try:
                yield from self.session(number, source, due)
            except (OSError, Wrong, ValueError) as error:
                # Ids would make each error one of its own.
                self.errors[re.sub(r"[\w-]{20,}", "…", str(error))] += 1
                self.kept.pop(number, None)
                yield now() + 0.01
            count += 1

    def answered(self, since: float) -> None:
        if since > self.first + WARM_UP:
            self.latencies.append(now() - since)

    def head(self, source: str, path: str = "/", *headers: str, method: str = "GET", end: str = "") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: a", f"X-Forwarded-For: {source}", *headers, "", end]
        return "\r\n".join(lines).encode()

    def hello(self, source: str, body: bytes) -> None:
        if not re.fullmatch(rb"hello \d{8}", body):
            raise Wrong(f"not our application's answer: {body[:60]!r}")
        self.servers[source].add(body)
        self.requests += 1

    def new(self, _number: int, source: str, due: float) -> Steps:
        _head, body = yield from self.request(source)
        self.hello(source, body)
        self.answered(due)

    def keep_alive(self, number: int, source: str, due: float) -> Steps:
        if number not in self.kept:
            self.kept[number] = Connection(self, source)
        head, body = yield from self.exchange(self.kept[number], self.head(source))
        if b"connection: close" in head:
            raise Wrong("does not keep connections alive")
        self.hello(source, body)
        self.answered(due)

    def exchange(self, connection: Connection, request: bytes) -> Generator[Any, None, tuple[bytes, bytes]]:
        """Send a request over a connection that stays open."""
        connection.data = b""
        yield from connection.send(request)
        yield from connection.until(is_complete)
        return parse(connection.data)

    def request(self, source: str, *args: str, **kwargs: str) -> Generator[Any, None, tuple[bytes, bytes]]:
        """Send a request over a connection of its own."""
        connection = Connection(self, source)
        try:
            yield from connection.send(self.head(source, *(args or ("/",)), "Connection: close", **kwargs))
            while (yield from connection.more()):
                pass
            return parse(connection.data)
        finally:
            connection.close()

    def polling(self, _number: int, source: str, due: float) -> Steps:
        path = "/engine.io/?EIO=4&transport=polling"
        _head, body = yield from self.request(source, path)
        path += f"&sid={json.loads(body[1:])['sid']}"
        self.answered(due)
        self.requests += 1
        for n in range(MESSAGES):
            since = now()
            yield from self.post(source, path, f"4message {n}")
            body = b""
            while not body.startswith(b"4"):
                _head, body = yield from self.request(source, path)
                self.requests += 1
            if body != f"4message {n}".encode():
                raise Wrong(f"not our message's echo: {body[:60]!r}")
            self.answered(since)
        yield from self.post(source, path, "1")

    def post(self, source: str, path: str, message: str) -> Steps:
        headers = ("Content-Type: text/plain", f"Content-Length: {len(message)}")
        _head, body = yield from self.request(source, path, *headers, method="POST", end=message)
        if body.lower() != b"ok":
            raise Wrong(f"not ok: {body[:60]!r}")
        self.requests += 1

    def mcp(self, _number: int, source: str, due: float) -> Steps:
        """Call a tool, in turn over two connections that stay open: a client that calls two at once has as many."""
        first, second = Connection(self, source), Connection(self, source)
        try:
            yield from self.rpc(first, source, "", method="initialize", id=0, params={})
            match = re.search(rb"mcp-session-id: *(\S+)", first.data, re.IGNORECASE)
            if not match:
                raise Wrong("no session")
            session = match[1].decode()
            yield from self.rpc(first, source, session, method="notifications/initialized")
            self.answered(due)
            for n in range(CALLS):
                since = now()
                text = f"message {n}"
                call = {"method": "tools/call", "id": n, "params": {"name": "echo", "arguments": {"text": text}}}
                _head, body = yield from self.rpc((first, second)[n % 2], source, session, **call)
                answer = json.loads(body)
                if (answer["id"], answer["result"]["content"][0]["text"]) != (n, text):
                    raise Wrong(f"not our call's answer: {body[:60]!r}")
                self.answered(since)
            yield from self.exchange(first, self.head(source, "/mcp", f"Mcp-Session-Id: {session}", method="DELETE"))
            self.requests += 1
        finally:
            first.close()
            second.close()

    def rpc(self, connection: Connection, source: str, session: str, **message: Any) -> Generator[Any, None, Any]:
        body = json.dumps({"jsonrpc": "2.0", **message})
        headers = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        headers += ["Accept: application/json, text/event-stream", "MCP-Protocol-Version: 2025-06-18"]
        if session:
            headers.append(f"Mcp-Session-Id: {session}")
        answer = yield from self.exchange(connection, self.head(source, "/mcp", *headers, method="POST", end=body))
        self.requests += 1
        return answer

    def websocket(self, _number: int, source: str, due: float) -> Steps:
        connection = Connection(self, source)
        try:
            path = "/engine.io/?EIO=4&transport=websocket"
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            key = "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcy4uLg=="
            yield from connection.send(self.head(source, path, *upgrade, key))
            yield from connection.until(lambda data: b"\r\n\r\n" in data)
            head, _, connection.data = connection.data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                parse(head)
                raise Wrong("no upgrade")
            yield from self.frame(connection)
            self.answered(due)
            for n in range(MESSAGES):
                since = now()
                message = f"4message {n}".encode()
                # Text, masked with zeros.
                yield from connection.send(bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message)
                answer = yield from self.frame(connection)
                if answer != message:
                    raise Wrong(f"not our message's echo: {answer[:60]!r}")
                self.answered(since)
                self.requests += 1
            yield from connection.send(bytes([0x81, 0x81, 0, 0, 0, 0]) + b"1")
        finally:
            connection.close()

    def frame(self, connection: Connection) -> Generator[Any, None, bytes]:
        """Read one unmasked text frame."""
        yield from connection.until(lambda data: len(data) >= 4)
        start, size = 2, connection.data[1]
        if size == 126:
            start, size = 4, int.from_bytes(connection.data[2:4], "big")
        yield from connection.until(lambda data: len(data) >= start + size)
        frame, connection.data = connection.data[: start + size], connection.data[start + size :]
        if frame[0] != 0x81:
            raise Wrong(f"not a text frame: {frame[:60]!r}")
        return frame[start:]


if __name__ == "__main__":
    gc.disable()
    print(json.dumps(Load(**json.loads(sys.argv[1])).run()))
