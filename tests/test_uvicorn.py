"""What only uvicorn's worker does in another way than Gunicorn's own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from support.harness import PATIENCE, Server, wait_for
from support.status import status

pytestmark = pytest.mark.features

#: Longer than `limit_request_line`, which is not uvicorn's.
LINE = b"GET /?" + b"a" * 5000 + b" HTTP/1.1\r\n"


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    config = f"""
from gunicorn_sticky import sticky
from uvicorn_worker import UvicornWorker

class Worker(UvicornWorker):
    CONFIG_KWARGS = {{"http": {request.param!r}}}

worker_class = sticky(Worker)
"""
    with Server("--sticky-proxy", "-w", "2", "--keep-alive", "60", "as_asgi:whoami", config=config) as server:
        yield server


def fields(client: str) -> bytes:
    return f"Host: a\r\nX-Forwarded-For: {client}\r\n\r\n".encode()


def key(client: socket.socket) -> str:
    data = client.recv(65536)
    while not data.endswith(b"}"):
        data += client.recv(65536)
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["key"])


def test_a_long_line_that_comes_before_its_header_is_no_reason_to_go_elsewhere(server: Server):
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(LINE)
        wait_for(lambda: status(server)["dispatcher"]["peeking"] == 1, "the dispatcher to wait for the header")
        client.sendall(fields("10.0.0.1"))
        assert key(client) == "10.0.0.1"
        for number in range(2, 8):
            client.sendall(LINE)
            client.sendall(fields(f"10.0.0.{number}"))
            assert key(client) == f"10.0.0.{number}"
