"""`socket.setdefaulttimeout`, in a configuration or a library that it imports: no effect, as on stock Gunicorn."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.connections import Connection
from support.harness import PATIENCE, STICKY, Server, addresses, request, wait_for

#: Seconds: more than what is asked here takes on a busy machine.
TIMEOUT = 20
CONFIG = f"import socket\nsocket.setdefaulttimeout({TIMEOUT})\n"
CLIENTS = addresses(12)
BY = {
    "ip": (),
    "header": ("--sticky-proxy",),
    "session": ("--sticky-by", "session", "--sticky-session-keys", "query:session_id"),
    "cookie": ("--sticky-by", "cookie"),
}

pytestmark = pytest.mark.features

#: Makes all our sockets, new and inherited, and tells their timeouts.
PROGRAM = """
import os, socket
socket.setdefaulttimeout(5)
from gunicorn_sticky.shared.channel import Channel
from gunicorn_sticky.broadcast.join_socket import JoinSocket
from gunicorn_sticky.status.listener import StatusSocket

channel = Channel()
status, cluster = StatusSocket("127.0.0.1:0"), JoinSocket("socket")
channels = channel, Channel.inherited(*map(os.dup, channel.filenos()))
others = status, StatusSocket("", os.dup(status.fileno())), cluster, JoinSocket("", os.dup(cluster.fileno()))
print([end.gettimeout() for each in channels for end in (each._in, each._out)])
print([each.socket.gettimeout() for each in others])
"""


def test_no_socket_of_ours_has_it(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("[0.0, 0.0, 0.0, 0.0]\n[0.0, 0.0, 0.0, 0.0]\n", "")


@pytest.fixture(params=BY)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    binds = ("-b", "127.0.0.1:0", "-b", "127.0.0.1:0")
    times = ("--keep-alive", "60", "--graceful-timeout", "60")
    with Server(
        *STICKY, *binds, *BY[request.param], "-w", "2", *times, "sessions:app", config=CONFIG, bind=None
    ) as server:
        yield server


def answers(server: Server) -> set[int]:
    """Return who answers a few clients, by both listeners."""
    found = set()
    for client in CLIENTS:
        for port in server.ports:
            response = request(port, source=client, headers={"X-Forwarded-For": client})
            found.add(json.loads(response.body)["pid"])
    return found


def test_nobody_waits(server: Server):
    """Neither for a silent client, nor for one listener of two, nor at the end."""
    wait_for(lambda: len(answers(server)) == 2, "both workers")
    with socket.create_connection(("127.0.0.1", server.port)) as silent, socket.socket() as half:
        half.connect(("127.0.0.1", server.port))
        half.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        began = time.monotonic()
        answers(server)
        assert time.monotonic() - began < TIMEOUT, "one of 24 requests has waited for a timeout"
        silent.close()
    assert server.stop() == 0, "it has waited, if not for all of graceful_timeout"


@pytest.mark.parametrize("server", ["header"], indirect=True)
def test_handovers(server: Server):
    wait_for(lambda: len(answers(server)) == 2, "both workers")
    connection = Connection(server.port)
    pids = []
    began = time.monotonic()
    for n in range(40):
        connection.socket.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {CLIENTS[n % 12]}\r\n\r\n".encode())
        pids.append(connection.answer()["pid"])
    assert time.monotonic() - began < TIMEOUT
    connection.close()
    assert len({*itertools.pairwise(pids)}) > 2, "no handover"


def test_programs_that_have_joined_stay():
    """The worker that has let them in goes on to hold their connection, which tells them that it lives."""
    config = CONFIG.replace(str(TIMEOUT), "0.3")
    with Server(*STICKY, "-w", "1", "--sticky-cluster-socket", "cluster", "hello:app", config=config) as server:
        server.wait_for_log("ready")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            wait_for(lambda: client.connect_ex(str(server.folder / "cluster")) == 0, "the socket")
            _, fds, _, _ = socket.recv_fds(client, 100, 2)
            for fd in fds:
                os.close(fd)
            client.settimeout(1.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
