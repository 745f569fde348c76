"""Socket.IO end to end: real clients, real servers, several workers."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import websocket
from support.harness import PATIENCE, STICKY, TESTS, Response, Server, addresses, request
from support.socketio import JAVASCRIPT, MODES, PYTHON

pytestmark = pytest.mark.programs

APPS = {"python-socketio": "sio_app:app", "flask-socketio": "flask_sio_app:app", "async": "async_sio_app:app"}
WORKERS = 4
#: A client on a busy machine may send its request long after it has connected; until then its connection is idle.
KEEP_ALIVE = ("--keep-alive", "30")
#: Seconds that a client has to stay connected.
STAY = 2.0

#: No two clients have the same, so that a server can count the connections of each.
_addresses = iter(addresses(10_000))


def fresh_addresses(number: int) -> list[str]:
    return list(islice(_addresses, number))


OPTIONS = {"ip": [], "header": ["--sticky-proxy"], "session": ["--sticky-by", "session"]}
#: Each of them by each key, but not all of it: application and worker count only where they make the sessions' ids.
SERVERS = [
    ("Gevent", "python-socketio", "ip"),
    ("Gevent", "flask-socketio", "header"),
    ("Gevent", "python-socketio", "session"),
    ("Gevent", "flask-socketio", "session"),
    ("Thread", "flask-socketio", "session"),
    ("ASGI", "async", "session"),
    ("Uvicorn", "async", "session"),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.xdist_group(f"socketio {kind}"), id="-".join(kind)) for kind in SERVERS
    ],
)
def kind(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """Worker, application and key."""
    kind: tuple[str, str, str] = request.param
    return kind


@pytest.fixture(scope="module")
def by(kind: tuple[str, str, str]) -> str:
    return kind[2]


@pytest.fixture(scope="module")
def server(kind: tuple[str, str, str]) -> Iterator[Server]:
    worker, app, by = kind
    sticky = ("-k", f"gunicorn_sticky.{worker}StickyWorker", "--threads", "100")  # which only one of them has
    with Server(*sticky, *OPTIONS[by], *KEEP_ALIVE, "-w", str(WORKERS), APPS[app]) as server:
        # Those who boot first would get all the sessions.
        server.wait_for_log(r"Slot \d: ready", count=WORKERS)
        yield server


def connect(
    client: list[str], server: Server, by: str, modes: Iterable[str] = MODES, number: int = 25
) -> dict[str, list[dict[str, Any]]]:
    """Let `number` clients of each mode connect at once, and return what each of them says; all have to succeed."""
    sources = {mode: fresh_addresses(number) for mode in modes}
    clients = [(MODES[mode], addresses) for mode, addresses in sources.items()]
    task = {"port": server.port, "by": by, "clients": clients, "stay": STAY}
    done = subprocess.run(client, input=json.dumps(task), stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done
    results = json.loads(done.stdout)
    assert [result["address"] for result in results] == list(itertools.chain(*sources.values()))
    found = {mode: [results.pop(0) for _ in range(number)] for mode in sources}
    for mode, of_mode in found.items():
        failed = [result for result in of_mode if not succeeded(result, by, mode)]
        assert not failed, f"{mode}: {len(failed)} of {number} failed, such as {failed[:3]}\n{server.log[-5000:]}"
    return found


def succeeded(result: dict[str, Any], by: str, mode: str) -> bool:
    """Whether a client connected as `mode` wants, had its events answered by one worker, and stayed without a break."""
    first, last = MODES[mode][0], MODES[mode][-1]
    if "error" in result or not result["still_connected"] or result["reconnects"]:
        return False
    before, after = result["answers"]
    return (
        result["transport"] == after["transport"] == last
        and before["started"] == after["started"] == first
        and (before["pid"], before["slot"]) == (after["pid"], after["slot"])
        # By session all clients come from one address, and the first request has no session yet.
        and after["key"] == (result["address"] if by != "session" else "127.0.0.1")
        # polling: the handshake, a POST and a GET for the namespace, and the same for the first event
        and (by == "session" or after["connections"] >= {"polling": 5, "upgrade": 2, "websocket": 1}[mode])
    )


@pytest.mark.usefixtures("node_modules")
def test_every_client_connects_and_stays(server: Server, by: str):
    """150 at once: 50 in each mode, half of them in Python, the others in JavaScript."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda client: connect(client, server, by), (PYTHON, JAVASCRIPT)))
    modes = [itertools.chain(*(results[mode] for results in found)) for mode in MODES]
    # By session, a worker that is busy with the clients of one mode gets fewer of another's.
    for results in [itertools.chain(*modes)] if by == "session" else modes:
        workers = {(answer["slot"], answer["pid"]) for result in results for answer in result["answers"]}
        assert sorted(slot for slot, _ in workers) == list(range(WORKERS))


@pytest.fixture(scope="session")
def gevent_websocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gevent-websocket, which python-engineio prefers although it cannot work under this worker."""
    folder = tmp_path_factory.mktemp("gevent-websocket")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", str(folder), "gevent-websocket"], check=True)
    return folder


@pytest.mark.parametrize(
    ("app", "preload"), [("python-socketio", False), ("flask-socketio", True)], ids=["python-socketio", "flask-preload"]
)
def test_websocket_works_although_gevent_websocket_is_installed(app: str, preload: bool, gevent_websocket: Path):
    options = ["--preload"] if preload else []
    env = {"PYTHONPATH": os.pathsep.join([str(TESTS / "apps"), str(gevent_websocket)])}
    with Server(*STICKY, *options, *KEEP_ALIVE, "-w", "2", APPS[app], env=env) as server:
        for results in connect(PYTHON, server, "ip", ["websocket", "upgrade"], number=10).values():
            assert all(answer["gevent_websocket"] for result in results for answer in result["answers"])


# --- long polling, request by request ---

SESSIONS = 40
#: A session's requests: the handshake, two for the namespace, two for each event.
EVENTS = 11
REQUESTS = 1 + 2 + 2 * EVENTS


class Refused(Exception):
    """A request was not answered with 200."""


class Poller:
    """A client that polls over a new TCP connection for each request, until one is refused."""

    def __init__(self, port: int, by: str, address: str) -> None:
        self.port = port
        self.source = address if by == "ip" else None
        self.headers = {"Connection": "close"} | ({"X-Forwarded-For": address} if by == "header" else {})
        self.path = "/socket.io/?EIO=4&transport=polling"
        self.responses: list[Response] = []
        self.acks: list[Any] = []

    def send(self, method: str, body: str | None = None) -> str:
        response = request(self.port, self.path, method, self.headers, source=self.source, body=body)
        self.responses.append(response)
        if response.status != 200:
            raise Refused
        return response.body.decode()

    def receive(self) -> str:
        """Poll for one packet that is not a heartbeat."""
        packets: list[str] = []
        while not packets:
            packets = [packet for packet in self.send("GET").split("\x1e") if packet != "2"]
        assert len(packets) == 1, packets
        return packets[0]

    def run(self) -> Poller:
        try:
            handshake = self.send("GET")
            self.path += "&sid=" + json.loads(handshake[1:])["sid"]
            self.send("POST", "40")
            assert self.receive().startswith("40{")
            for number in range(EVENTS):
                self.send("POST", f'42{number}["who"]')
                answer = self.receive()
                assert answer.startswith(f"43{number}["), answer
                self.acks.append(json.loads(answer[len(f"43{number}") :])[0])
        except Refused:
            pass  # the last response tells
        return self

    @property
    def refused(self) -> bool:
        return self.responses[-1].status != 200


def poll(port: int, by: str) -> list[Poller]:
    """Let `SESSIONS` clients poll, ten at a time."""
    pollers = [Poller(port, by, address) for address in fresh_addresses(SESSIONS)]
    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(Poller.run, pollers))


def test_no_polling_request_is_refused(server: Server, by: str):
    pollers = poll(server.port, by)
    assert [poller.responses[-1] for poller in pollers if poller.refused] == []
    assert sum(len(poller.responses) for poller in pollers) >= SESSIONS * REQUESTS == 1000
    for poller in pollers:
        assert len({ack["pid"] for ack in poller.acks}) == 1
        # all but the last GET, which brings this figure
        assert by == "session" or poller.acks[-1]["connections"] >= REQUESTS - 1
    assert {ack["slot"] for poller in pollers for ack in poller.acks} == set(range(WORKERS))


def test_without_stickiness_polling_requests_are_refused():
    """The control: this is what the tests above would see if requests reached any worker."""
    # A single worker that is ready before the others would serve every request.
    config = "def post_worker_init(worker): worker.log.info('Ready')"
    with Server("-k", "gevent", *KEEP_ALIVE, "-w", str(WORKERS), APPS["python-socketio"], config=config) as server:
        server.wait_for_log("Ready", count=WORKERS)
        pollers = poll(server.port, "ip")
    refused = [poller for poller in pollers if poller.refused]
    assert {poller.responses[-1].status for poller in refused} == {400}
    assert len(refused) >= SESSIONS / 2


def test_a_slow_websocket_client_gets_whole_messages():
    size, count = 1 << 16, 80
    with Server(*STICKY, *KEEP_ALIVE, "-w", "1", "cluster_app:app") as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the server cannot send at once
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", server.port))
        client = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/socket.io/?EIO=4&transport=websocket", socket=connection
        )

        def receive() -> str:
            message = client.recv()
            assert isinstance(message, str)
            return message

        assert receive().startswith("0{")
        client.send("40")
        assert receive().startswith("40{")
        client.send("42" + json.dumps(["say", count, None, size]))
        numbers: list[int] = []
        while len(numbers) < count:
            message = receive()
            if message == "2":
                client.send("3")
                continue
            name, _pid, number, _answer_to, text = json.loads(message.removeprefix("42"))
            assert (name, len(text)) == ("said", size)
            numbers.append(number)
        assert numbers == list(range(1, count + 1))
