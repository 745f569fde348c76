"""Which worker a connection reaches, and what happens to connections that show no key."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.harness import LINGERING, PARSER, PATIENCE, STICKY, Response, Server, addresses, request, wait_for

from gunicorn_sticky.status.snapshot import find

pytestmark = pytest.mark.xdist_group("dispatch")

CLIENTS = addresses(40)
HEADER = (*STICKY, "--sticky-proxy")
ACCESS = "%(h)s slot=%({gunicorn_sticky.slot}e)s key=%({gunicorn_sticky.key}e)s"


@pytest.fixture(scope="module")
def by_ip() -> Iterator[Server]:
    with Server(*STICKY, "-w", "3", *UPLOADS, "whoami:app") as server:
        yield server


@pytest.fixture(scope="module")
def by_header() -> Iterator[Server]:
    limits = ("--sticky-header-timeout", "60", "--keep-alive", "60", "--limit-request-field_size", "0", *UPLOADS)
    log = ("--access-logfile", "-", "--access-logformat", ACCESS)
    binds = ("--bind", "unix:sticky.sock")
    with Server(*HEADER, "-w", "3", *binds, *limits, *log, "whoami:app", config=LINGERING) as server:
        yield server


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """By header, which has to be there within two seconds."""
    with Server(*HEADER, "-w", "1", "--sticky-header-timeout", "2", "whoami:app") as server:
        server.wait_for_log("Slot 0: ready")
        yield server


@pytest.fixture(scope="module")
def patient() -> Iterator[Server]:
    """By header, for what is refused at once or else after a minute."""
    with Server(*HEADER, "-w", "2", *PATIENT, "whoami:app") as server:
        yield server


#: A worker that reads from a client that is always faster shows no life meanwhile.
UPLOADS = ("--timeout", "120")
PATIENT = ("--sticky-header-timeout", "60", "--keep-alive", "60", "--limit-request-line", "100", *PARSER)


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


def whos(answers: bytes) -> list[dict[str, Any]]:
    """Return what tests/apps/whoami.py said in each of a connection's responses."""
    decoder, found, text = json.JSONDecoder(), [], answers.decode("latin-1")
    while text:
        head, _, text = text.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 "), head
        who, end = decoder.raw_decode(text)
        found.append(who)
        text = text[end:]
    return found


def ask(port: int, *fields: bytes, eol: bytes = b"\r\n", **kwargs) -> dict[str, Any]:
    """Send a GET request with these header lines, in one piece, and return who answered."""
    head = eol.join([b"GET / HTTP/1.1", b"Host: a", b"Connection: close", *fields, b"", b""])
    return whos(talk(port, head, **kwargs))[0]


# --- by IP ---


def test_by_ip_each_address_has_its_worker(by_ip: Server):
    first = {source: by_ip.who(source=source) for source in CLIENTS}
    assert {who["slot"] for who in first.values()} == {0, 1, 2}
    for source, who in first.items():
        again = by_ip.who(source=source, headers={"X-Forwarded-For": CLIENTS[0]})
        assert (again["pid"], again["slot"]) == (who["pid"], who["slot"])
        assert again["key"] == again["REMOTE_ADDR"] == source
        assert again["environment_slot"] == str(again["slot"])


def test_the_environ_is_that_of_the_stock_worker():
    names = ("REMOTE_ADDR", "SERVER_NAME", "wsgi.url_scheme")
    binds = ("-b", "127.0.0.1:0", "-b", "[::1]:0", "-b", "0.0.0.0:0", "-b", "[::]:0")
    seen = []
    for worker in (["-k", "gevent"], STICKY):
        with Server(*worker, "-w", "1", *binds, "whoami:app", bind=None) as server:
            *ports, dual = server.ports
            for port, host in zip(ports, ("127.0.0.1", "::1", "127.0.0.1"), strict=True):
                with socket.create_connection((host, port), timeout=30) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                    own_port = client.getsockname()[1]
                    who = whos(b"".join(iter(lambda: client.recv(65536), b"")))[0]
                assert who["SERVER_PORT"] == str(port)
                assert who["REMOTE_PORT"] == str(own_port)
                seen.append([who[name] for name in names])
            if worker is STICKY:  # an IPv4 client of a dual-stack listener is an IPv4 client
                assert json.loads(request(dual, source="127.0.0.9").body)["key"] == "127.0.0.9"
                assert json.loads(request(dual, host="::1").body)["key"] == "::/64"
    assert seen[:3] == seen[3:]


def test_a_listener_given_as_file_descriptor():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        with Server(*STICKY, "-w", "1", "whoami:app", bind=f"fd://{fd}", pass_fds=[fd]) as server:
            who = json.loads(request(port, source="127.0.0.9").body)
            assert (who["key"], who["SERVER_PORT"]) == ("127.0.0.9", str(port))
            assert "dispatcher" in server.log


# --- by header ---


def test_by_header_each_client_has_its_worker(by_header: Server):
    first = {client: by_header.who(headers={"X-Forwarded-For": client}) for client in CLIENTS}
    assert {who["slot"] for who in first.values()} == {0, 1, 2}
    for client, who in first.items():
        again = by_header.who(headers={"x-FORWARDED-for": f"{client}, 10.0.0.1"}, source="127.0.0.1")
        assert (again["pid"], again["key"]) == (who["pid"], client)
        assert again["REMOTE_ADDR"] != client  # the key is not the peer's address


def test_slot_and_key_in_the_access_log(by_header: Server):
    slot = by_header.who(headers={"X-Forwarded-For": "1.2.3.99"})["slot"]
    by_header.wait_for_log(rf"127\.0\.0\.1 slot={slot} key=1\.2\.3\.99$")


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


def test_other_headers():
    config = "sticky_header = {!r}\nworkers = 1\n"
    with Server(*HEADER, "whoami:app", config=config.format("X-Forwarded-For")) as server:
        assert server.get().status == 400
        for name, value, key in (
            ("Forwarded", 'for="[2001:db8:cafe::17]:4711";proto=https, for=198.51.100.17', "2001:db8:cafe::/64"),
            ("x-real-ip", "198.51.100.17", "198.51.100.17"),
            ("CF-Connecting-IP", "2001:db8::1", "2001:db8::/64"),
            ("X-Tenant", "acme", "acme"),
        ):
            server.configure(config.format(name))
            server.send_signal(signal.SIGHUP)
            headers = {name.upper(): value}
            wait_for(lambda: server.get(headers=headers).status == 200, f"the reload for {name}")  # noqa: B023
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "the old dispatcher's end")
            assert server.who(headers=headers)["key"] == key
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
def test_a_bare_line_feed_is_400(patient: Server, data: bytes):
    assert talk(patient.port, data).startswith(b"HTTP/1.1 400 ")


REFUSED = [
    b"GET /\r\n",
    b"SSH-2.0-OpenSSH_9.2p1\r\n",
    b"\r\n\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / HTTP/3.0\r\nHost: a",
    b"get / HTTP/1.1\r\n",
    b"GET /" + b"a" * 300,
]


def test_what_gunicorn_refuses_at_once_waits_for_no_key(patient: Server):
    refuses_at_once(patient)


@pytest.mark.parametrize("by", ["session", "cookie"])
def test_what_gunicorn_refuses_at_once_waits_for_no_session(by: str):
    with Server(*STICKY, "-w", "2", "--sticky-by", by, *PATIENT, "whoami:app") as server:
        refuses_at_once(server)


def refuses_at_once(server: Server) -> None:
    """Also on a kept-alive connection. `talk` would wait for 30 s, and the server for 60."""
    first = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    refused = server.log.count("Refused a connection")
    for data in REFUSED:
        assert re.match(rb"HTTP/1\.1 (400|414|505) ", talk(server.port, data)), data
        answer = talk(server.port, first + data)
        assert re.match(rb"(?s)HTTP/1\.1 200 .*HTTP/1\.1 (400|414|505) ", answer), data
    assert server.log.count("Refused a connection") == refused


# --- what shows no key ---


#: From an address of its own, so that it can be told from others in the log.
STRANGER = "127.0.0.77"


def refusal(server: Server, status: int, setting: str, sent: bytes, header: str = "x-forwarded-for") -> None:
    """Send what must be refused, and see that answer and log tell why."""
    line = rf"\[WARNING\] Refused a connection from {STRANGER}: {status}, .*"
    before = len(re.findall(line, server.log))
    answer = talk(server.port, sent, source=STRANGER)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert header.encode() in answer.partition(b"\r\n\r\n")[2]
    logged = server.wait_for_log(line, before + 1).group()
    assert header in logged
    assert setting in logged


def test_missing_header_is_400():
    with Server(*HEADER, "-w", "1", "--sticky-header", "X-Real-IP", "whoami:app") as server:
        refusal(server, 400, "sticky_ignore_missing_header", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "x-real-ip")


def test_missing_header_is_ignored_on_request():
    with Server(*HEADER, "-w", "1", "--sticky-ignore-missing-header", "whoami:app") as server:
        for source in CLIENTS[:10]:
            assert server.who(source=source)["key"] == source
        assert server.who(headers={"X-Forwarded-For": "1.2.3.4"})["key"] == "1.2.3.4"


def test_refusal_survives_a_large_body(by_header: Server):
    """Closing with bytes unread would reset the connection and destroy the answer."""
    response = request(by_header.port, method="POST", body=bytes(4_000_000))
    assert response.status == 400


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-"])
def test_half_a_head_gets_408(impatient: Server, sent: bytes):
    started = time.monotonic()
    refusal(impatient, 408, "sticky_header_timeout", sent)
    assert 1.9 < time.monotonic() - started < PATIENCE / 2


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
    with Server(*STICKY, "-w", "1", "--sticky-header-timeout", "1", *options, "whoami:app") as server:
        assert talk(server.port) == b""
        (seen,) = find(server.pid)
        assert not any(seen.status()["dispatcher"]["refused"].values())
        assert "WARNING" not in server.log


def test_no_header_in_64_kib_is_431(by_header: Server):
    refusal(by_header, 431, "sticky_header", b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000)


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


def test_gunicorns_own_limits_hold_in_the_worker(patient: Server):
    response: Response = patient.get(path="/" + "a" * 200, headers={"X-Forwarded-For": "1.2.3.4"})
    assert response.status in (400, 414)  # Gunicorn 25 and 27


def test_unix_socket_by_header(by_header: Server):
    keys = set()
    for n in range(8):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(by_header.folder / "sticky.sock"))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.%d\r\nConnection: close\r\n\r\n" % n)
            who = whos(b"".join(iter(lambda: client.recv(65536), b"")))[0]
        keys.add(who["key"])
        assert who["REMOTE_ADDR"] == ""
    assert keys == {f"1.2.3.{n}" for n in range(8)}
