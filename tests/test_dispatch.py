"""Which worker a connection reaches, and what happens to connections that show no key."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import time
from pathlib import Path

import pytest
from harness import STICKY, Response, Server, addresses, request, wait_for

from gunicorn_sticky.status.snapshot import find

CLIENTS = addresses(40)
HEADER = (*STICKY, "-w", "4", "--sticky-proxy")


@pytest.fixture(scope="module")
def by_ip():
    with Server(*STICKY, "-w", "4", "whoami:app") as server:
        yield server


@pytest.fixture(scope="module")
def by_header():
    with Server(*HEADER, "--sticky-header-timeout", "2", "--limit-request-field_size", "0", "whoami:app") as server:
        yield server


def talk(port: int, *pieces: bytes, source: str = "127.0.0.1", pause: float = 0.0, half_close: bool = False) -> bytes:
    """Send bytes in pieces and return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
            if pause:
                time.sleep(pause)  # apart on the wire, or they would arrive as one piece
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def whos(answers: bytes) -> list[dict]:
    """Return what tests/apps/whoami.py said in each of a connection's responses."""
    decoder, found, text = json.JSONDecoder(), [], answers.decode("latin-1")
    while text:
        head, _, text = text.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 "), head
        who, end = decoder.raw_decode(text)
        found.append(who)
        text = text[end:]
    return found


def ask(port: int, *fields: bytes, eol: bytes = b"\r\n", **kwargs) -> dict:
    """Send a GET request with these header lines, in one piece, and return who answered."""
    head = eol.join([b"GET / HTTP/1.1", b"Host: a", b"Connection: close", *fields, b"", b""])
    return whos(talk(port, head, **kwargs))[0]


# --- by IP ---


def test_by_ip_each_address_has_its_worker(by_ip: Server):
    first = {source: by_ip.who(source=source) for source in CLIENTS}
    assert {who["slot"] for who in first.values()} == {0, 1, 2, 3}
    for source, who in first.items():
        again = by_ip.who(source=source, headers={"X-Forwarded-For": CLIENTS[0]})
        assert (again["pid"], again["slot"]) == (who["pid"], who["slot"])
        assert again["key"] == again["REMOTE_ADDR"] == source
        assert again["environment_slot"] == str(again["slot"])


def test_the_environ_is_that_of_the_stock_worker():
    names = ("REMOTE_ADDR", "SERVER_NAME", "wsgi.url_scheme")
    binds = ("-b", "127.0.0.1:0", "-b", "[::1]:0", "-b", "0.0.0.0:0")
    seen = []
    for worker in (["-k", "gevent"], [*STICKY, "-w", "2"]):
        with Server(*worker, *binds, "whoami:app", bind=None) as server:
            for port, host in zip(server.ports, ("127.0.0.1", "::1", "127.0.0.1"), strict=True):
                with socket.create_connection((host, port), timeout=30) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                    own_port = client.getsockname()[1]
                    who = whos(b"".join(iter(lambda: client.recv(65536), b"")))[0]
                assert who["SERVER_PORT"] == str(port)
                assert who["REMOTE_PORT"] == str(own_port)
                seen.append([who[name] for name in names])
    assert seen[:3] == seen[3:]


def test_an_ipv4_client_of_a_dual_stack_listener_is_an_ipv4_client():
    with Server(*STICKY, "-w", "2", "whoami:app", bind="[::]:0") as server:
        assert server.who(source="127.0.0.9")["key"] == "127.0.0.9"
        assert server.who(host="::1")["key"] == "::/64"


def test_slot_and_key_in_the_access_log():
    form = "%(h)s slot=%({gunicorn_sticky.slot}e)s key=%({gunicorn_sticky.key}e)s"
    with Server(*HEADER, "--access-logfile", "-", "--access-logformat", form, "whoami:app") as server:
        slot = server.who(headers={"X-Forwarded-For": "1.2.3.4"})["slot"]
        server.wait_for_log(rf"127\.0\.0\.1 slot={slot} key=1\.2\.3\.4$")


def test_a_listener_given_as_file_descriptor():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        with Server(*STICKY, "-w", "2", "whoami:app", bind=f"fd://{fd}", pass_fds=[fd]) as server:
            port = listener.getsockname()[1]
            assert request(port, source="127.0.0.9").status == 200
            assert json.loads(request(port, source="127.0.0.9").body)["SERVER_PORT"] == str(port)
            assert "dispatcher" in server.log


# --- by header ---


def test_by_header_each_client_has_its_worker(by_header: Server):
    first = {client: by_header.who(headers={"X-Forwarded-For": client}) for client in CLIENTS}
    assert {who["slot"] for who in first.values()} == {0, 1, 2, 3}
    for client, who in first.items():
        again = by_header.who(headers={"x-FORWARDED-for": f"{client}, 10.0.0.1"}, source="127.0.0.1")
        assert (again["pid"], again["key"]) == (who["pid"], client)
        assert again["REMOTE_ADDR"] != client  # the key is not the peer's address


@pytest.mark.parametrize(
    "fields",
    [
        [b"X-Forwarded-For: 203.0.113.7"],
        [b"X-Forwarded-For: 203.0.113.7:5678"],
        [b"X-Forwarded-For: 203.0.113.7, 198.51.100.1"],
        [b"X-Forwarded-For: 203.0.113.7, 198.51.100.1, 198.51.100.2"],
        [b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-For: 198.51.100.1"],
        [b"X-Forwarded-For: ", b"X-Forwarded-For: 203.0.113.7"],
        [b'X-Forwarded-For: "203.0.113.7"'],
        [b"X-Forwarded-For: ::ffff:203.0.113.7"],
        [b"X-Forwarded-Force: 198.51.100.9", b"A: X-Forwarded-For: 198.51.100.9", b"X-Forwarded-For: 203.0.113.7"],
    ],
)
def test_one_client_however_it_is_written(by_header: Server, fields: list[bytes]):
    assert ask(by_header.port, *fields)["key"] == "203.0.113.7"


def test_the_name_elsewhere_moves_nobody(by_header: Server):
    port = by_header.port
    head = b"GET /?X-Forwarded-For:9.9.9.9 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    assert whos(talk(port, head + b"X-Forwarded-For: 1.2.3.4\r\n\r\n"))[0]["key"] == "1.2.3.4"
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 28\r\n\r\n\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
    assert talk(port, body).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("Forwarded", 'for="[2001:db8:cafe::17]:4711";proto=https, for=198.51.100.17', "2001:db8:cafe::/64"),
        ("x-real-ip", "198.51.100.17", "198.51.100.17"),
        ("CF-Connecting-IP", "2001:db8::1", "2001:db8::/64"),
        ("X-Tenant", "acme", "acme"),
    ],
)
def test_other_headers(name: str, value: str, key: str):
    with Server(*HEADER, "--sticky-header", name, "whoami:app") as server:
        assert server.who(headers={name.upper(): value})["key"] == key
        assert server.get(headers={"X-Forwarded-For": value}).status == 400


def test_head_split_at_every_byte(by_header: Server):
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    for cut in range(1, len(head)):
        assert whos(talk(by_header.port, head[:cut], head[cut:], pause=0.002))[0]["key"] == "1.2.3.4"


def test_head_in_many_pieces(by_header: Server):
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    pieces = [head[n : n + 1] for n in range(len(head))]
    assert whos(talk(by_header.port, *pieces, pause=0.002))[0]["key"] == "1.2.3.4"


@pytest.mark.parametrize("size", [1000, 8000, 32000, 65536])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_large_heads(by_header: Server, size: int, position: float):
    """The dispatcher finds the header anywhere in 64 KiB; the server's own limit is lifted for this test."""
    field, end = b"X-Forwarded-For: 1.2.3.4\r\n", b"\r\n"
    start = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    rest = size - len(start) - len(field) - len(end)
    lines = [b"A-%02d: " % n + b"b" * (rest // 50 - 8) + b"\r\n" for n in range(49)]
    lines.append(b"C: " + b"d" * (rest - sum(map(len, lines)) - 5) + b"\r\n")
    lines.insert(round(position * len(lines)), field)
    head = start + b"".join(lines) + end
    assert len(head) == size
    cuts = sorted(random.Random(size).sample(range(1, size), 40))
    pieces = [head[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    for answer in (talk(by_header.port, head), talk(by_header.port, *pieces, pause=0.005)):
        assert whos(answer)[0]["key"] == "1.2.3.4"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 1.2.3.4\n\n",
        b"GET / HTTP/1.1\r\nHost: a\nX-Forwarded-For: 1.2.3.4\n\n",
        # Older Gunicorns accept this one, with the address in the field.
        b"GET /odd?x\nX-Forwarded-For:\t10.9.9.9, HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
    ],
)
def test_a_bare_line_feed_is_400(data: bytes):
    with Server(*HEADER, "--sticky-header-timeout", "60", "whoami:app") as server:
        assert talk(server.port, data).startswith(b"HTTP/1.1 400 ")


REFUSED = [
    b"GET /\r\n",
    b"SSH-2.0-OpenSSH_9.2p1\r\n",
    b"\r\n\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / HTTP/3.0\r\nHost: a",
    b"get / HTTP/1.1\r\n",
    b"GET /" + b"a" * 300,
]


@pytest.mark.parametrize("by", ["header", "session", "cookie"])
def test_what_gunicorn_refuses_at_once_waits_for_no_key(by: str):
    """Also on a kept-alive connection. `talk` would wait for 30 s, and the server for 60."""
    limits = ("--sticky-header-timeout", "60", "--keep-alive", "60", "--limit-request-line", "100")
    first = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    with Server(*STICKY, "-w", "2", "--sticky-by", by, *limits, "whoami:app") as server:
        for data in REFUSED:
            assert re.match(rb"HTTP/1\.1 (400|414|505) ", talk(server.port, data)), data
            answer = talk(server.port, first + data)
            assert re.match(rb"(?s)HTTP/1\.1 200 .*HTTP/1\.1 (400|414|505) ", answer), data
        assert "Refused a connection" not in server.log


# --- what shows no key ---


def refusal(server: Server, answer: bytes, status: int, setting: str, header: str = "x-forwarded-for") -> None:
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert header.encode() in answer.partition(b"\r\n\r\n")[2]
    line = server.wait_for_log(rf"\[WARNING\] Refused a connection from 127\.0\.0\.1: {status}, .*").group()
    assert header in line
    assert setting in line


def test_missing_header_is_400():
    with Server(*HEADER, "--sticky-header", "X-Real-IP", "whoami:app") as server:
        answer = talk(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        refusal(server, answer, 400, "sticky_ignore_missing_header", "x-real-ip")


def test_missing_header_is_ignored_on_request():
    with Server(*HEADER, "--sticky-ignore-missing-header", "whoami:app") as server:
        for source in CLIENTS[:10]:
            assert server.who(source=source)["key"] == source
        assert server.who(headers={"X-Forwarded-For": "1.2.3.4"})["key"] == "1.2.3.4"


def test_refusal_survives_a_large_body(by_header: Server):
    """Closing with bytes unread would reset the connection and destroy the answer."""
    response = request(by_header.port, method="POST", body=bytes(4_000_000))
    assert response.status == 400


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-"])
def test_half_a_head_gets_408(sent: bytes):
    with Server(*HEADER, "--sticky-header-timeout", "1", "whoami:app") as server:
        started = time.monotonic()
        answer = talk(server.port, sent)
        assert 0.9 < time.monotonic() - started < 10
        refusal(server, answer, 408, "sticky_header_timeout")


@pytest.mark.parametrize(
    "options",
    [
        ("--sticky-by", "header"),
        ("--sticky-by", "session"),
        ("--sticky-by", "cookie"),
        ("--proxy-protocol", "auto"),
        ("--sticky-sync", "--sticky-sync-timeout", "1"),
    ],
    ids=" ".join,
)
def test_who_says_nothing_is_told_nothing(options: tuple[str, ...]):
    """Browsers open connections in advance, and take an answer without a request for that of the next one."""
    with Server(*STICKY, "--sticky-header-timeout", "1", *options, "whoami:app") as server:
        assert talk(server.port) == b""
        (seen,) = find(server.pid)
        assert not any(seen.status()["dispatcher"]["refused"].values())
        assert "WARNING" not in server.log


def test_no_header_in_64_kib_is_431():
    with Server(*HEADER, "whoami:app") as server:
        answer = talk(server.port, b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000)
        refusal(server, answer, 431, "sticky_header")


def test_clients_that_leave_early_cost_nothing(by_header: Server):
    by_header.who(headers={"X-Forwarded-For": "1.2.3.4"})  # by now the dispatcher has opened what it needs
    dispatcher = by_header.booted("dispatcher")[0]

    def descriptors() -> int:
        return len(list(Path(f"/proc/{dispatcher}/fd").iterdir()))

    before = descriptors()
    for n in range(60):
        client = socket.create_connection(("127.0.0.1", by_header.port))
        client.sendall(b"GET / HTTP/1.1\r\nX-Forw"[: n % 20])
        if n % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
        client.close()
    wait_for(lambda: descriptors() <= before, "the dispatcher to close what is gone")
    assert by_header.who(headers={"X-Forwarded-For": "1.2.3.4"})["key"] == "1.2.3.4"


# --- what passes through ---


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 65536, 1_000_000])
@pytest.mark.parametrize("mode", ["by_ip", "by_header"])
def test_bodies(request: pytest.FixtureRequest, mode: str, size: int, chunked: bool):
    upload(request.getfixturevalue(mode), size, chunked)


@pytest.mark.parametrize(("mode", "chunked"), [("by_ip", False), ("by_header", True)])
def test_100_mb(request: pytest.FixtureRequest, mode: str, chunked: bool):
    upload(request.getfixturevalue(mode), 100_000_000, chunked)


def upload(server: Server, size: int, chunked: bool) -> None:
    block = random.Random(size).randbytes(min(size, 1_000_000))
    blocks = [block] * (size // len(block)) if block else []
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
    headers = {"X-Forwarded-For": "1.2.3.4"} | framing
    who = server.who(method="POST", body=iter(blocks), headers=headers, encode_chunked=chunked)
    assert (who["size"], who["sha256"]) == (size, hashlib.sha256(b"".join(blocks)).hexdigest())


def test_expect_100_continue(by_header: Server):
    with socket.create_connection(("127.0.0.1", by_header.port), timeout=30) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert whos(b"".join(iter(lambda: client.recv(65536), b"")))[0]["size"] == 5


@pytest.mark.parametrize("mode", ["by_ip", "by_header"])
def test_pipelining(request: pytest.FixtureRequest, mode: str):
    server: Server = request.getfixturevalue(mode)
    one = b"POST /%d HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 3\r\n%s\r\nabc"
    pipeline = b"".join(one % (n, b"Connection: close\r\n" if n == 29 else b"") for n in range(30))
    answers = whos(talk(server.port, pipeline))
    assert [who["PATH_INFO"] for who in answers] == [f"/{n}" for n in range(30)]
    assert len({who["pid"] for who in answers}) == 1


def test_gunicorns_own_limits_hold_in_the_worker():
    with Server(*HEADER, "--limit-request-line", "100", "whoami:app") as server:
        response: Response = server.get(path="/" + "a" * 200, headers={"X-Forwarded-For": "1.2.3.4"})
        assert response.status in (400, 414)  # Gunicorn 25 and 27


def test_unix_socket_by_header():
    with Server(*HEADER, "whoami:app", bind="unix:sticky.sock") as server:
        path = str(server.folder / "sticky.sock")
        server.wait_for_log("Booting dispatcher")
        keys = set()
        for n in range(8):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(path)
                client.sendall(
                    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.%d\r\nConnection: close\r\n\r\n" % n
                )
                who = whos(b"".join(iter(lambda: client.recv(65536), b"")))[0]
            keys.add(who["key"])
            assert who["REMOTE_ADDR"] == ""
        assert keys == {f"1.2.3.{n}" for n in range(8)}
