"""What only ASGI kinds have: parsers and loops in C, lifespan, background work, coroutines as hooks."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import websocket
from gunicorn import version_info
from support.connections import Connection
from support.harness import PATIENCE, Server, wait_for
from uvicorn.config import WS_PROTOCOLS

pytestmark = pytest.mark.features

#: Options, the configuration, and what a worker is to have loaded.
VARIANTS: dict[str, tuple[tuple[str, ...], str, set[str]]] = {
    f"uvicorn-{parser}-{loop}-{ws}": (
        (),
        f"""
from gunicorn_sticky import sticky
from uvicorn_worker import UvicornWorker

class Worker(UvicornWorker):
    CONFIG_KWARGS = {{"http": "{parser}", "loop": "{loop}", "ws": "{ws}"}}

worker_class = sticky(Worker)
""",
        {parser, *({loop} - {"asyncio"}), *({"wsproto"} & {ws})},
    )
    for parser, loop, ws in [
        ("h11", "asyncio", "websockets"),
        ("httptools", "asyncio", "websockets-sansio" if "websockets-sansio" in WS_PROTOCOLS else "websockets"),
        ("httptools", "uvloop", "wsproto"),
    ]
}
if version_info >= (27, 0, 1):
    ASGI = ("-k", "gunicorn_sticky.ASGIStickyWorker")
    VARIANTS["asgi-fast-uvloop"] = ((*ASGI, "--http-parser", "fast"), "", {"gunicorn_h1c", "uvloop"})
    VARIANTS["asgi-python-asyncio"] = ((*ASGI, "--http-parser", "python", "--asgi-loop", "asyncio"), "", set())
KEYS = [f"10.0.0.{n}" for n in range(12)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"asgi_kinds {name}")) for name in VARIANTS],
)
def variant(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def serve(variant: str, *options: str, config: str = "") -> Server:
    more, own, _modules = VARIANTS[variant]
    return Server(*more, "--keep-alive", "30", *options, "asgi_app:app", config=own + config)


@pytest.fixture(scope="module")
def server(variant: str) -> Iterator[Server]:
    with serve(variant, "--sticky-proxy", "-w", "3") as server:
        server.wait_for_log(r"Slot \d: ready", count=3)
        yield server


def head(path: str, key: str, *lines: bytes) -> bytes:
    start = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {key}\r\n".encode()
    return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def request(chance: random.Random, path: str, key: str) -> tuple[bytes, int]:
    """Return a request, and the size of its body: of no body, of a known length or in chunks."""
    size = chance.choice([0, 1, 70, 5000, 200_000])
    body = bytes(chance.choice(b"\r\n0a") for _ in range(min(size, 100))) * (size // 100 + 1)
    body = body[:size]
    if chance.random() < 0.5:
        return head(path, key, b"Content-Length: %d" % size) + body, size
    chunks = b""
    while body:
        length = chance.randint(1, 20_000)
        chunks += b"%x\r\n%s\r\n" % (len(body[:length]), body[:length])
        body = body[length:]
    return head(path, key, b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n", size


def send_in_pieces(connection: Connection, chance: random.Random, data: bytes) -> threading.Thread:
    """Send data, cut somewhere, beside whoever reads the answers."""

    def send() -> None:
        left = data
        while left:
            size = chance.choice([1, 3, 20, 500, 300_000])
            connection.socket.sendall(left[:size])
            left = left[size:]

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_what_is_pipelined_is_served_in_order_each_by_its_worker(server: Server, variant: str):
    slots = {key: server.who(headers={"X-Forwarded-For": key})["slot"] for key in KEYS}
    assert set(slots.values()) == {0, 1, 2}
    loaded = set(server.who(headers={"X-Forwarded-For": KEYS[0]})["modules"])
    assert VARIANTS[variant][2] <= loaded
    for seed in range(4):
        chance = random.Random(seed)
        connection = Connection(server.port)
        for _ in range(4):
            sent, expected = b"", []
            for n in range(chance.randint(1, 30)):
                key = chance.choice(KEYS)
                data, size = request(chance, f"/{n}", key)
                sent += data
                expected.append((f"/{n}", size, key, slots[key]))
            writer = send_in_pieces(connection, random.Random(seed), sent)
            answers = [connection.answer() for _ in expected]
            writer.join()
            assert [(a["path"], a["size"], a["key"], a["slot"]) for a in answers] == expected
        connection.close()


def test_what_goes_on_after_a_response_is_done_also_if_the_connection_moves(server: Server):
    slots = {key: server.who(headers={"X-Forwarded-For": key})["slot"] for key in KEYS}
    here = KEYS[0]
    there = next(key for key in KEYS if slots[key] != slots[here])
    path = "/background/work"
    connection = Connection(server.port)
    for where, key in ((path, here), ("/", there)):
        connection.socket.sendall(head(where, key, b"Content-Length: 0"))
        assert connection.answer()["slot"] == slots[key]
    assert path not in server.who(headers={"X-Forwarded-For": here})["done"]
    (server.folder / "release").touch()
    wait_for(lambda: path in server.who(headers={"X-Forwarded-For": here})["done"], "what is done in the background")
    connection.close()


@pytest.mark.parametrize("path", ["/", "/background/work"])
def test_half_a_head_has_its_own_time(variant: str, path: str):
    """It may come with the request before it, or while the application still works on that: both set timers."""
    with (
        serve(variant, "-w", "1", "--sticky-proxy", "--keep-alive", "1", "--sticky-header-timeout", "3") as server,
        contextlib.closing(Connection(server.port)) as connection,
    ):
        connection.socket.sendall(head(path, KEYS[0], b"Content-Length: 0") + b"GET / HTTP/1.1\r\n")
        assert connection.answer()["path"] == path
        (server.folder / "release").touch()
        assert connection.socket.recv(13) == b"HTTP/1.1 408 "


def test_a_life(variant: str):
    """Lifespan events once a worker, in order; a WebSocket and a stream of a worker that drains go on."""
    with serve(variant, "-w", "1", "--graceful-timeout", "15") as server:
        pid = server.who()["pid"]
        client = websocket.create_connection(f"ws://127.0.0.1:{server.port}/", timeout=PATIENCE)
        stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        stream.request("GET", "/events")
        events = stream.getresponse()
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: server.who()["pid"] != pid, "the successor")
        for _ in range(10):
            client.send("a")
            assert client.recv() == f"{pid} a"
            assert events.readline() == b"data: %d\n" % pid
            assert events.readline() == b"\n"
        client.close()
        stream.close()
        wait_for(lambda: pid not in server.alive("worker"), "the end of the old worker")
        server.stop()
        # What others log may follow before the line ends.
        found = re.findall(r"noted (\d+) (lifespan\.(?:startup|shutdown))", server.log)
    for worker in {worker for worker, _ in found}:
        assert [what for who, what in found if who == worker] == ["lifespan.startup", "lifespan.shutdown"]
    assert len({worker for worker, _ in found}) == 2


def test_max_requests_fails_nobody(variant: str):
    with serve(variant, "-w", "2", "--max-requests", "20", "--max-requests-jitter", "10") as server:
        pids: set[int] = set()

        def three() -> bool:
            pids.add(server.who()["pid"])
            return len(pids) == 3

        wait_for(three, "two successors")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        for _ in range(100):
            connection.request("GET", "/")
            assert json.loads(connection.getresponse().read())["path"] == "/"
        connection.close()


def test_a_hook_may_be_a_coroutine(variant: str):
    config = """
import asyncio
async def sticky_connection(worker, connection):
    if connection.key == "127.0.0.9":
        asyncio.get_running_loop().call_later(0.2, connection.emit, "sticky-sessions:sync")
sticky_sync = True
sticky_sync_timeout = 5
"""
    with serve(variant, "-w", "1", config=config) as server:
        assert server.get(source="127.0.0.9").status == 200
        assert server.get(source="127.0.0.8").status == 503


if version_info >= (27, 0, 1):  # below, there is no asgi kind

    @pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.startswith("asgi")])
    def test_hooks_see_the_worker_itself(variant: str):
        """Gunicorn's protocol sees something else in its place, which lasts."""
        config = """
from gunicorn.workers.base import Worker

def pre_request(worker, request):
    assert isinstance(worker, Worker)
    worker.before = worker.nr

def post_request(worker, request, environ, response):
    worker.log.info("request %d after %d, of %d", worker.nr, worker.before, worker.max_requests)
"""
        with (
            serve(variant, "-w", "1", "--max-requests", "1000", config=config) as server,
            contextlib.closing(Connection(server.port)) as connection,
        ):
            for number in (1, 2):
                connection.socket.sendall(head("/", KEYS[0], b"Content-Length: 0"))
                connection.answer()
                server.wait_for_log(f"request {number} after {number}, of 1000$")


def test_a_request_that_ends_in_two_ways_reaches_nobody_twice(server: Server):
    """Length and chunks, or two lengths: where the next request begins is not to be a matter of opinion."""
    second = head("/second", KEYS[1], b"Content-Length: 0")
    for lines in (
        (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 4", b"Content-Length: 100"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: xchunked",),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(head("/first", KEYS[0], *lines) + b"0\r\n\r\n" + second)
            answer = b""
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)  # which fails if the server has reset the connection by now
                answer = b"".join(iter(lambda: client.recv(65536), b""))
        statuses = [*map(int, re.findall(rb"HTTP/1\.1 (\d+)", answer))]
        answers: list[Any] = re.findall(rb'"path": "(/\w+)"', answer)
        assert statuses.count(200) == len(answers) <= 2
        assert answers in ([], [b"/first"], [b"/first", b"/second"]), answer
