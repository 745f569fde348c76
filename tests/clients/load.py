"""The load of the fault harness: a program that sends requests at a steady rate, and prints a line about each.

    python load.py PORT ip|header|session|cookie --rate 300 --clients 240

Half of the clients open a connection for each request. The other half keep connections open: by IP each client its
own, otherwise they share some, as behind a proxy that does so. Every tenth request takes a while. With `--mixed`, one
uploads something, and one listens to events (SSE). Beside them, a few clients poll for long, and a few have a
WebSocket. It ends, with the requests that are under way, when its standard input does. All times are those of
`time.monotonic()`, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.harness import addresses

#: Seconds after which a request counts as hanging.
PATIENCE = 40.0
#: Every n-th request is slow, and takes so many seconds.
SLOW_EVERY, SLOW = 10, 0.4
#: As many upload up to so many bytes, or listen for so many seconds, if the load is mixed.
UPLOAD, EVENTS = 150_000, 0.5
#: By header and by session: every n-th one shows the second half of its head so many seconds later.
SPLIT_EVERY, SPLIT = 29, 0.15
#: How long a long poll takes, and the time between two messages to a WebSocket.
POLL, PING = 0.7, 0.25
#: By session: how many requests a client sends before it begins the next session.
SESSION = 8
#: Connections are not used again after so many idle seconds: less than the server keeps them.
IDLE = 1.0
#: Connections that are kept open for all clients, unless by IP.
SHARED = 40


class Failed(Exception):
    """A request without an answer; says how it ended."""


class Answer(NamedTuple):
    """What has come of a request."""

    status: int
    closes: bool
    #: Its JSON, if there is.
    who: dict[str, Any]
    #: Its Retry-After, or -1.
    retry_after: float
    #: The cookie that it sets, or None.
    cookie: str | None


class Connection:
    """A client's TCP connection."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.idle_since = 0.0
        #: Who answered here last: slot and pid.
        self.last: tuple[int | None, int | None] = (None, None)
        self.kept = False
        self.opened = time.monotonic()
        #: What has arrived of the next frame of a WebSocket.
        self.frame = b""

    async def open(self, port: int) -> None:
        self.socket.bind((self.source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(self.socket, ("127.0.0.1", port))
        except ConnectionRefusedError:
            raise Failed("refused") from None
        except OSError as error:
            raise Failed(f"not connected: {error.strerror}") from None

    def is_usable(self) -> bool:
        """Tell whether the other end has neither closed this nor had too much time for it."""
        if time.monotonic() - self.idle_since > IDLE:
            return False
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)
        except OSError:
            raise Failed("reset") from None

    async def read_until(self, is_complete: Any, received: bytes = b"") -> bytes:
        """Read until `is_complete(bytes)`."""
        loop = asyncio.get_running_loop()
        while not is_complete(received):
            try:
                data = await loop.sock_recv(self.socket, 65536)
            except OSError:
                raise Failed("cut" if received else "reset") from None
            if not data:
                raise Failed("cut" if received else "closed")
            received += data
        return received

    async def answer(self) -> Answer:
        received = await self.read_until(lambda data: b"\r\n\r\n" in data)
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        kind, who = headers.get("content-type"), {}
        if headers.get("transfer-encoding") == "chunked":  # events, each in one piece
            body = await self.read_until(lambda data: data.endswith(b"0\r\n\r\n"), body)
            body = body.rpartition(b"data: ")[2].partition(b"\n")[0]
        else:
            size = int(headers.get("content-length", 0))
            body = await self.read_until(lambda data: len(data) >= size, body)
        if kind in ("application/json", "text/event-stream"):
            who = json.loads(body)
        closes = headers.get("connection", "").lower() == "close"
        cookie = headers.get("set-cookie", "").partition(";")[0] or None
        return Answer(int(lines[0].split()[1]), closes, who, float(headers.get("retry-after", -1)), cookie)

    async def message(self) -> bytes:
        """Return the next message of a WebSocket, of less than 126 bytes, and answer pings meanwhile (RFC 6455)."""
        while True:
            while len(self.frame) < 2 or len(self.frame) < 2 + self.frame[1]:
                self.frame += await self.read_until(bool)
            end = 2 + self.frame[1]
            frame, self.frame = self.frame[:end], self.frame[end:]
            if frame[0] == 0x81:
                return frame[2:]
            if frame[0] != 0x89:
                raise Failed("closed")
            await self.send(b"\x8a%c\0\0\0\0%s" % (0x80 | frame[1], frame[2:]))

    def close(self) -> None:
        self.socket.close()


class Client:
    """One of those who send requests, with one request at a time."""

    def __init__(self, name: str, keeps: bool, requests: int = 0) -> None:
        self.name = name
        self.keeps = keeps
        self.session = "new"
        #: The pid of the worker that minted the session.
        self.owner: int | None = None
        #: Of this session; some begin with more than they have sent, so that not all sessions end at once.
        self.requests = requests
        #: As in the header, and the pid of the worker that set it.
        self.cookie: str | None = None
        self.cookie_owner: int | None = None


class Load:
    def __init__(self, port: int, by: str, rate: float, clients: int, others: int, mixed: bool = False) -> None:
        self.port, self.by, self.rate, self.mixed = port, by, rate, mixed
        names = addresses(clients + 2 * others)
        self.idle = deque(
            Client(name, number % 2 == 1, number // 2 % SESSION) for number, name in enumerate(names[:clients])
        )
        self.pollers = [Client(name, True) for name in names[clients : clients + others]]
        self.sockets = [Client(name, False) for name in names[clients + others :]]
        #: Idle connections by client, or by None if they are shared.
        self.kept: dict[str | None, deque[Connection]] = {}
        self.numbers = itertools.count()
        self.stopping = asyncio.Event()

    def record(self, **values: Any) -> None:
        print(json.dumps(values), flush=True)

    async def connection(self, client: Client) -> Connection:
        """Return a connection for a request, new or not."""
        kept = self.kept.setdefault(client.name if self.by == "ip" else None, deque())
        while client.keeps and kept:
            connection = kept.popleft()
            if connection.is_usable():
                return connection
            connection.close()
        return Connection(client.name if self.by == "ip" else "127.0.0.1")

    def keep(self, client: Client, connection: Connection) -> None:
        kept = self.kept[client.name if self.by == "ip" else None]
        if len(kept) >= SHARED:
            connection.close()
            return
        connection.kept = True
        connection.idle_since = time.monotonic()
        kept.append(connection)

    async def request(
        self, client: Client, kind: str, path: str, seconds: float, split: bool = False, body: bytes | None = None
    ) -> None:
        """Send a request, and record how it went."""
        connection = await self.connection(client)
        session = client.session
        owner = client.cookie_owner if self.by == "cookie" else client.owner
        start = time.monotonic()
        status, closes, who, retry_after, cookie = Answer(0, True, {}, -1.0, None)
        outcome = ""
        last, kept = connection.last, connection.kept

        async def exchange() -> Answer:
            if not connection.kept:
                await connection.open(self.port)
            data = self.head(client, path, seconds, not client.keeps, body=body)
            if split:
                await connection.send(data[: len(data) // 2])
                await asyncio.sleep(SPLIT)
                data = data[len(data) // 2 :]
            await connection.send(data)
            if body:
                await connection.send(body)
            return await connection.answer()

        try:
            status, closes, who, retry_after, cookie = await asyncio.wait_for(exchange(), PATIENCE + seconds)
        except Failed as error:
            outcome = str(error)
        except asyncio.TimeoutError:
            outcome = "timeout"
        end = time.monotonic()
        if body is not None and status == 200 and who["sha256"] != hashlib.sha256(body).hexdigest():
            outcome = "wrong"
        if closes or not client.keeps:
            connection.close()
        else:
            connection.last = who.get("slot"), who.get("pid")
            self.keep(client, connection)
        if cookie and who:
            client.cookie, client.cookie_owner = cookie, who["pid"]
        if self.by in ("session", "cookie") and who:
            client.requests += 1
            if status == 404 or client.requests % SESSION == 0:
                client.session, client.owner = "new", None
                if random.random() < 0.5:  # another browser
                    client.cookie = client.cookie_owner = None
            else:
                client.session, client.owner = who["session"], who["pid"]
        self.record(
            client=client.name,
            kind=kind,
            kept=kept,
            split=split,
            start=start,
            end=end,
            seconds=seconds + SPLIT * split,
            outcome=outcome or str(status),
            slot=who.get("slot"),
            pid=who.get("pid"),
            began=who.get("began"),
            last_slot=last[0],
            last_pid=last[1],
            owner=owner if session != "new" or self.by == "cookie" else None,
            retry_after=retry_after,
            opened=connection.opened,
        )

    def head(
        self,
        client: Client,
        path: str,
        seconds: float,
        closes: bool,
        upgrade: str = "",
        body: bytes | None = None,
    ) -> bytes:
        query = f"seconds={seconds}"
        if self.by in ("session", "cookie"):
            query += f"&session={client.session}"
        forwarded = f"X-Forwarded-For: {client.name}\r\n" if self.by == "header" else ""
        cookie = f"Cookie: {client.cookie}\r\n" if client.cookie else ""
        close = "Connection: close\r\n" if closes and not upgrade else ""
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        method = "GET" if body is None else "POST"
        more = f"{upgrade}{close}{forwarded}{cookie}{length}"
        return f"{method} {path}?{query} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()

    async def steady(self) -> None:
        """Send requests at the given rate, each by whoever has waited longest."""
        tasks: set[asyncio.Task[None]] = set()

        async def one(client: Client, number: int) -> None:
            path, seconds, body = "/", 0.0, None
            if number % SLOW_EVERY == 0:
                path, seconds = "/slow", SLOW
            elif self.mixed and number % SLOW_EVERY == 1:
                path, body = "/upload", random.randbytes(random.randrange(UPLOAD))
            elif self.mixed and number % SLOW_EVERY == 2:
                path, seconds = "/events", EVENTS
            split = self.by != "ip" and number % SPLIT_EVERY == 0
            try:
                await self.request(client, "request", path, seconds, split, body)
            finally:
                self.idle.append(client)

        due = time.monotonic()
        while not self.stopping.is_set():
            due += 1 / self.rate
            now = time.monotonic()
            if due > now:
                await asyncio.sleep(due - now)
                now = time.monotonic()
            if now - due > 0.01:
                self.record(kind="late", start=due, end=now)  # the machine is busy: we did not run in time
            if now - due > 0.5:
                due = now  # what was missed before is not made up for
            if self.idle:
                task = asyncio.create_task(one(self.idle.popleft(), next(self.numbers)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self.record(kind="unsent", start=now)  # all clients wait for the server
        await asyncio.gather(*tasks)

    async def poll(self, client: Client) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            await self.request(client, "poll", "/slow", POLL)
            await asyncio.sleep(max(0.0, began + 0.1 - time.monotonic()))  # no more than ten a second that fail

    async def talk(self, client: Client) -> None:
        """Keep a WebSocket open, and record each exchange of messages; when it ends, open the next one."""
        while not self.stopping.is_set():
            connection = Connection(client.name if self.by == "ip" else "127.0.0.1")
            kept = False
            who: dict[str, Any] = {}
            outcome = ""
            while not outcome and not self.stopping.is_set():
                start = time.monotonic()
                try:
                    if kept:
                        with contextlib.suppress(asyncio.TimeoutError):  # nothing comes unless it ends
                            await asyncio.wait_for(connection.message(), PING)
                    who = await asyncio.wait_for(self.exchange(client, connection, kept), PATIENCE)
                except Failed as error:
                    outcome = str(error)
                except asyncio.TimeoutError:
                    outcome = "timeout"
                self.record(
                    client=client.name,
                    kind="socket",
                    kept=kept,
                    split=False,
                    start=start,
                    end=time.monotonic(),
                    seconds=PING * kept,
                    outcome=outcome or "200",
                    slot=None if outcome else who["slot"],
                    pid=None if outcome else who["pid"],
                    began=None,
                    last_slot=who.get("slot") if kept else None,
                    last_pid=who.get("pid") if kept else None,
                    owner=None,
                    retry_after=-1.0,
                    opened=connection.opened,
                )
                kept = True
            connection.close()
            await asyncio.sleep(PING)

    async def exchange(self, client: Client, connection: Connection, kept: bool) -> dict[str, Any]:
        """Send a message, after the handshake if there has been none, and return the answer (RFC 6455)."""
        if not kept:
            client.session = "new"  # a WebSocket is a session by itself
            await connection.open(self.port)
            upgrade = (
                "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            )
            await connection.send(self.head(client, "/socket", 0, False, upgrade))
            status, *_ = await connection.answer()
            if status != 101:
                raise Failed(str(status))
        await connection.send(b"\x81\x81\0\0\0\0?")  # one masked byte of text
        return dict(json.loads(await connection.message()))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            if not os.read(0, 1):
                loop.remove_reader(0)
                self.stopping.set()

        loop.add_reader(0, end)
        await asyncio.gather(self.steady(), *map(self.poll, self.pollers), *map(self.talk, self.sockets))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("by", choices=("ip", "header", "session", "cookie"))
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--clients", type=int, default=240)
    parser.add_argument("--others", type=int, default=8, help="long polls, and WebSockets")
    parser.add_argument("--mixed", action="store_true", help="with uploads and events")
    given = parser.parse_args()

    async def main() -> None:
        await Load(given.port, given.by, given.rate, given.clients, given.others, given.mixed).run()

    asyncio.run(main())
