"""Behind real proxies: nginx and HAProxy with the configurations of docs/proxies, and the PROXY protocol by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.harness import PATIENCE, STICKY, Server, addresses, request, wait_for
from support.proxies import (
    HAPROXY,
    HAPROXY_V1,
    HAPROXY_V2,
    NGINX,
    NGINX_WITHOUT,
    changed,
    haproxy,
    nginx,
)
from support.socketio import JAVASCRIPT, MODES

from gunicorn_sticky.routing.head import Incomplete
from gunicorn_sticky.routing.proxy_protocol import parse

pytestmark = pytest.mark.programs

CLIENTS = addresses(200)
REQUESTS = 8
#: Longer than any proxy here keeps an idle connection: nobody but the proxy closes one.
KEEP_ALIVE = ("--keep-alive", "75")
BY_HEADER = (*STICKY, "--sticky-proxy", *KEEP_ALIVE, "-w", "4", "whoami:app")
BY_PROXY = (*STICKY, "--proxy-protocol", *KEEP_ALIVE, "-w", "4")


class Client:
    """Sends one request after the other from an address."""

    def __init__(self, port: int, address: str) -> None:
        self.address = address
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE, source_address=(address, 0))

    def ask(self, headers: dict[str, str] | None = None) -> dict[str, Any]:
        self._connection.request("GET", "/", headers=headers or {})
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        return dict(json.loads(body))

    def close(self) -> None:
        self._connection.close()


#: Who answered the requests of each client.
Answers = dict[str, list[dict[str, Any]]]


def converse(port: int, number: int = REQUESTS, headers: dict[str, str] | None = None) -> Answers:
    """Let every client ask `number` times, all in turns, and return who answered each of them."""

    def some(sources: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
        clients = [Client(port, source) for source in sources]
        rounds = [[client.ask(headers) for client in clients] for _ in range(number)]
        for client in clients:
            client.close()
        return list(zip(sources, map(list, zip(*rounds, strict=True)), strict=True))

    threads = 20
    with ThreadPoolExecutor(threads) as pool:
        found = [pair for pairs in pool.map(some, [CLIENTS[n::threads] for n in range(threads)]) for pair in pairs]
    assert sum(len(answers) for _, answers in found) == len(CLIENTS) * number
    return dict(found)


def connections(answers: Answers) -> int:
    """Return how many connections of the proxy these requests came by. Ports may recur, so there may be more."""
    return len({who["REMOTE_PORT"] for whos in answers.values() for who in whos})


def owners(server: Server) -> dict[str, int]:
    """Return the worker of each client."""
    with ThreadPoolExecutor(8) as pool:
        whos = pool.map(lambda client: server.who(headers={"X-Forwarded-For": client}), CLIENTS)
    pids = {client: who["pid"] for client, who in zip(CLIENTS, whos, strict=True)}
    assert set(pids.values()) == set(server.alive("worker"))
    return pids


@pytest.fixture(scope="module")
def by_header() -> Iterator[Server]:
    with Server(*BY_HEADER) as server:
        yield server


@pytest.fixture(scope="module")
def trusting() -> Iterator[Server]:
    """It trusts the proxy only."""
    with Server(*BY_HEADER, "--sticky-trusted-proxies", "127.0.0.1") as server:
        yield server


def misrouted(answers: Answers, pids: dict[str, int]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (client, who)
        for client, whos in answers.items()
        for who in whos
        if (who["key"], who["pid"]) != (client, pids[client])
    ]


@pytest.mark.xdist_group("proxies by header")
@pytest.mark.parametrize(
    ("proxy", "text", "reuses"),
    [(nginx, NGINX, True), (haproxy, HAPROXY, True), (nginx, NGINX_WITHOUT, False)],
    ids=["nginx", "haproxy", "nginx-without-keepalive"],
)
def test_200_clients_by_header(by_header: Server, tmp_path: Path, proxy: Any, text: str, reuses: bool):
    """Each of 1600 requests is served by its client's worker, whoever's requests came before on the connection."""
    pids = owners(by_header)
    with proxy(tmp_path, by_header.port, text) as port:
        answers = converse(port)
    assert misrouted(answers, pids) == []
    if reuses:
        assert connections(answers) < len(CLIENTS)
        # So they were shared, and handed over: clients and connections met in many more pairs than connections exist.
        assert sum(len({who["REMOTE_PORT"] for who in whos}) for whos in answers.values()) > 2 * connections(answers)
    else:
        assert connections(answers) > len(CLIENTS) * REQUESTS / 2


@pytest.mark.xdist_group("proxies trusting")
@pytest.mark.parametrize(("proxy", "text"), [(nginx, NGINX), (haproxy, HAPROXY)], ids=["nginx", "haproxy"])
def test_what_a_client_claims_does_not_count_if_only_the_proxy_is_trusted(
    trusting: Server, tmp_path: Path, proxy: Any, text: str
):
    pids = owners(trusting)
    with proxy(tmp_path, trusting.port, text) as port:
        answers = converse(port, 3, {"X-Forwarded-For": "203.0.113.1"})
    assert misrouted(answers, pids) == []


@pytest.mark.parametrize("text", [HAPROXY_V1, HAPROXY_V2], ids=["v1", "v2"])
def test_200_clients_by_proxy_protocol(tmp_path: Path, text: str):
    """The key is the source that the PROXY header gives; the application sees it as REMOTE_ADDR."""
    with Server(*BY_PROXY, "whoami:app") as server:
        with haproxy(tmp_path, server.port, text) as port:
            answers = converse(port)
        for client, whos in answers.items():
            assert {(who["key"], who["REMOTE_ADDR"]) for who in whos} == {(client, client)}
            assert len({who["pid"] for who in whos}) == 1
        assert {who["slot"] for whos in answers.values() for who in whos} == set(range(4))


def seen(who: dict[str, Any]) -> tuple[str, str]:
    return who["REMOTE_ADDR"], who["REMOTE_PORT"]


@pytest.mark.parametrize("text", [HAPROXY_V1, HAPROXY_V2], ids=["v1", "v2"])
def test_remote_address_after_a_handover(tmp_path: Path, text: str):
    """HAProxy keeps the connections of two sources apart; but one source may stand for many keys."""
    text = changed(text, "\nbackend gunicorn\n", "\nbackend gunicorn\n    http-reuse always\n")
    keys = [f"203.0.113.{n}" for n in range(40)]
    config = "def sticky_connection(worker, connection): worker.log.info('Given port %s', connection.address[1])"
    found = []
    for number, options in enumerate([("-k", "gevent", "-w", "1"), (*STICKY, "--sticky-proxy", "-w", "4")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (
            Server(*options, "--proxy-protocol", *KEEP_ALIVE, "whoami:app", config=config) as server,
            haproxy(folder, server.port, text) as port,
        ):
            client = Client(port, CLIENTS[7])
            whos = [client.ask({"X-Forwarded-For": key}) for key in keys]
            client.close()
            ports = re.findall(r"Given port (\d+)", server.log)
        assert len({seen(who) for who in whos}) == 1
        found.append(whos)
    stock, sticky = found
    assert [who["REMOTE_ADDR"] for who in sticky] == [who["REMOTE_ADDR"] for who in stock] == [CLIENTS[7]] * len(keys)
    assert [who["key"] for who in sticky] == keys
    assert {who["slot"] for who in sticky} == set(range(4))
    # All by one connection of HAProxy, which went from worker to worker.
    assert len(set(ports)) == 1
    assert len(ports) > 4


# --- the PROXY protocol by hand ---

SOURCE = "198.51.100.7"
V1 = f"PROXY TCP4 {SOURCE} 192.0.2.1 4711 80\r\n".encode()


def version_2(command: int, family: int, body: bytes) -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(">BBH", 0x20 | command, family, len(body)) + body


V2 = version_2(1, 0x11, socket.inet_aton(SOURCE) + socket.inet_aton("192.0.2.1") + struct.pack(">HH", 4711, 80))
V2_WITH_MORE = version_2(1, 0x11, V2[16:] + b"\x04\x00\x03abc")  # a type-length-value
V2_IPV6 = version_2(1, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack(">HH", 4711, 80))
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read one answer: its status, and what whoami.py says if that is 200."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read()
    return response.status, json.loads(body) if response.status == 200 else {}


def exchange(port: int, data: bytes, source: str = "127.0.0.1") -> tuple[int, dict[str, Any]]:
    with connect(port, source) as connection:
        connection.sendall(data)
        return answer(connection)


by_ip_group = pytest.mark.xdist_group("proxies by ip")


@pytest.fixture(scope="module")
def by_ip() -> Iterator[Server]:
    config = "def sticky_connection(worker, connection): worker.log.info('Key %s', connection.key)"
    with Server(*BY_PROXY, "--proxy-allow-from", "127.0.0.0/16", "whoami:app", config=config) as server:
        yield server


@by_ip_group
@pytest.mark.parametrize(
    ("header", "key", "address"),
    [
        (V1, SOURCE, SOURCE),
        (V2, SOURCE, SOURCE),
        (V2_WITH_MORE, SOURCE, SOURCE),
        (V1_IPV6, "2001:db8::/64", "2001:db8::1"),
        (V2_IPV6, "2001:db8::/64", "2001:db8::1"),
        (b"", "127.0.0.9", "127.0.0.9"),
    ],
    ids=["v1", "v2", "v2-with-more", "v1-ipv6", "v2-ipv6", "none"],
)
def test_key_and_remote_address(by_ip: Server, header: bytes, key: str, address: str):
    status, who = exchange(by_ip.port, header + GET, "127.0.0.9")
    assert (status, who["key"], who["REMOTE_ADDR"]) == (200, key, address)


@by_ip_group
@pytest.mark.parametrize(
    "header",
    [version_2(0, 0, b""), version_2(0, 0x11, V2[16:]), version_2(1, 0x01, b"")],
    ids=["local", "local-with-addresses", "unspecified"],
)
def test_local_counts_as_the_peer(by_ip: Server, header: bytes):
    """A proxy's own connections, such as health checks."""
    status, who = exchange(by_ip.port, header + GET, "127.0.0.8")
    # None is what Gunicorn makes of it.
    assert (status, who["key"], who["REMOTE_ADDR"]) == (200, "127.0.0.8", None)


@by_ip_group
@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN 198.51.100.7 192.0.2.1 4711 80\r\n"],
    ids=["alone", "with-addresses"],
)
def test_unknown_counts_as_the_peer(by_ip: Server, header: bytes):
    address = "127.0.0.7" if header.endswith(b"UNKNOWN\r\n") else "127.0.0.6"
    # It reaches the worker of the peer's address, where Gunicorn's own parser refuses it.
    assert exchange(by_ip.port, header + GET, address)[0] == 400
    by_ip.wait_for_log(f"Key {address}$")


@by_ip_group
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 nonsense 192.0.2.1 4711 80\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 65536\r\n",
        b"PROXY TCP5 198.51.100.7 192.0.2.1 4711 80\r\n",
        b"PROXY " + b"x" * 200,
        V2[:12] + b"\x31" + V2[13:],
        version_2(2, 0x11, V2[16:]),
        version_2(1, 0x11, V2[16:20]),
        version_2(1, 0x31, bytes(216)),
    ],
    ids=["address", "port", "family", "endless", "v2-version", "v2-command", "v2-short", "v2-family"],
)
def test_malformed_header(by_ip: Server, header: bytes):
    pattern = r"Closed a connection from 127\.0\.0\.5: malformed PROXY header.*\(setting: proxy_protocol\)"
    before = len(re.findall(pattern, by_ip.log))

    def logged() -> bool:
        """Send it again and again: there is one line a second at most."""
        with connect(by_ip.port, "127.0.0.5") as connection:
            connection.sendall(header)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        return len(re.findall(pattern, by_ip.log)) > before

    wait_for(logged, "the line in the log")


@by_ip_group
def test_peer_that_may_not_send_a_header(by_ip: Server):
    """It is routed by its own address, and Gunicorn refuses it."""
    for header in (V1, V2):
        assert exchange(by_ip.port, header + GET, "127.1.0.1")[0] == 403
    by_ip.wait_for_log(r"Key 127\.1\.0\.1$", count=2)
    assert SOURCE not in re.findall(r"Key (.*)\n.*127\.1\.0\.1", by_ip.log)
    status, who = exchange(by_ip.port, GET, "127.1.0.2")
    assert (status, who["key"], who["REMOTE_ADDR"]) == (200, "127.1.0.2", "127.1.0.2")


@pytest.mark.parametrize("header", [V1, V2, V2_WITH_MORE], ids=["v1", "v2", "v2-with-more"])
def test_every_beginning_of_a_header_is_incomplete(header: bytes):
    for size in range(len(header)):
        with pytest.raises(Incomplete):
            parse(bytearray(header) + bytes(1000), size)
    assert parse(bytearray(header) + bytes(1000), len(header)) == (len(header), (SOURCE, 4711))


@pytest.mark.parametrize("by", [[], ["--sticky-proxy"]], ids=["ip", "header"])
def test_header_split_at_any_byte(by: list[str]):
    key = "203.0.113.9" if by else SOURCE
    with Server(*BY_PROXY, *by, "--sticky-header-timeout", "60", "whoami:app") as server:
        for header in (V1, V2):
            data = header + GET
            parts = [(connect(server.port), data[:cut], data[cut:]) for cut in range(1, len(data))]
            for connection, first, _ in parts:
                connection.sendall(first)
            # Who is answered after that was accepted after that, so the first parts have all been looked at.
            assert exchange(server.port, data)[0] == 200
            for connection, _, second in parts:
                connection.sendall(second)
            for connection, _, _ in parts:
                status, who = answer(connection)
                assert (status, who["key"], seen(who)) == (200, key, (SOURCE, "4711"))
                connection.close()


def test_header_in_the_middle_of_a_connection_counts_for_nothing():
    """Also not after a handover, where the connection is new to the worker."""
    with Server(*BY_PROXY, "--sticky-proxy", "whoami:app") as server:
        heads = [GET.replace(b".9\r", b".%d\r" % n) for n in range(40)]
        with connect(server.port) as connection:
            slots: set[int] = set()
            for head in heads:
                connection.sendall((V1 if not slots else b"") + head)
                status, who = answer(connection)
                assert (status, seen(who)) == (200, (SOURCE, "4711"))
                slots.add(who["slot"])
            assert slots == set(range(4))
            connection.sendall(V1.replace(b".7", b".8") + heads[0])
            assert answer(connection)[0] == 400


# --- sticky_trusted_proxies ---


def test_trusted_proxies():
    trusted = ("--sticky-trusted-proxies", "127.1.0.0/16,10.0.0.0/8")
    with Server(*BY_HEADER, *trusted) as server:

        def key(source: str, *values: str) -> str:
            with connect(server.port, source) as connection:
                lines = "".join(f"X-Forwarded-For: {value}\r\n" for value in values)
                found: set[str] = set()
                for _ in range(2):  # the second request is read by the worker
                    connection.sendall(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode())
                    status, who = answer(connection)
                    assert status == 200
                    assert who["REMOTE_ADDR"] == source
                    found.add(who["key"])
            assert len(found) == 1
            return found.pop()

        assert key("127.1.0.1", "203.0.113.1") == "203.0.113.1"
        assert key("127.1.0.1", "203.0.113.1, 203.0.113.2") == "203.0.113.2"
        assert key("127.1.0.1", "203.0.113.1, 203.0.113.2, 10.1.2.3, 127.1.2.3") == "203.0.113.2"
        assert key("127.1.0.1", "203.0.113.1", "203.0.113.2:4711, 10.1.2.3") == "203.0.113.2"
        assert key("127.1.0.1", "[2001:db8::1]:4711, ::ffff:10.1.2.3") == "2001:db8::/64"
        assert key("127.1.0.1", "10.1.2.4, 10.1.2.3") == "10.1.2.4"  # the proxies themselves
        assert key("127.2.0.1", "203.0.113.1") == "127.2.0.1"
        assert key("127.2.0.1") == "127.2.0.1"
        # A proxy that sends no header has a fault.
        assert request(server.port, source="127.1.0.1").status == 400


# --- sticky_by = "session" ---


@pytest.fixture(scope="module")
def by_session() -> Iterator[Server]:
    with Server(*STICKY, "--sticky-by", "session", *KEEP_ALIVE, "-w", "4", "sio_app:app") as server:
        # Those that are ready get all sessions while the others boot.
        server.wait_for_log(r"Slot \d: ready", count=4)
        yield server


@pytest.mark.xdist_group("proxies by session")
@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    ("site", "mode"),
    # A WebSocket has a connection of its own, whatever nginx does with others.
    [(NGINX, "upgrade"), (NGINX_WITHOUT, "upgrade"), (NGINX, "websocket")],
    ids=["keepalive-upgrade", "without-keepalive-upgrade", "websocket"],
)
def test_sessions_behind_one_address_spread(by_session: Server, tmp_path: Path, site: str, mode: str):
    """All 200 come from the address of nginx: the busiest of 4 workers has at most 1.3 times its share."""
    # Behind nginx it does not matter where the clients come from.
    task = {"by": "header", "clients": [(MODES[mode], CLIENTS)], "stay": 2}
    with nginx(tmp_path, by_session.port, site) as port:
        command = json.dumps(task | {"port": port})
        done = subprocess.run(JAVASCRIPT, input=command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    results = json.loads(done.stdout)
    wrong = [r for r in results if "error" in r or not r["still_connected"] or r["reconnects"]]
    assert not wrong, f"{len(wrong)} of {len(results)}, such as {wrong[:3]}\n{by_session.log[-5000:]}"
    workers = [{answer["pid"] for answer in result["answers"]} for result in results]
    assert {len(pids) for pids in workers} == {1}
    loads = Counter(pids.pop() for pids in workers)
    assert loads.total() == len(CLIENTS)
    assert max(loads.values()) <= 1.3 * len(CLIENTS) / 4, loads
