"""Listening sockets: several of them, inherited ones, and what waits in them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from typing import Any

import pytest
from support.harness import BIN, PATIENCE, STICKY, Server, addresses, request, wait_for

pytestmark = pytest.mark.features

CLIENTS = addresses(12)
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def test_several_listeners_lead_to_the_same_workers():
    binds = ("-b", "127.0.0.1:0", "-b", "0.0.0.0:0", "-b", "unix:socket")
    with Server(*STICKY, "-w", "2", "--sticky-proxy", *binds, "whoami:app", bind=None) as server:
        first, second = server.ports
        found: dict[str, set[int]] = {}
        for number in range(12):
            headers = {"X-Forwarded-For": f"10.1.1.{number}"}
            for port in (first, second):
                who = json.loads(request(port, headers=headers).body)
                found.setdefault(headers["X-Forwarded-For"], set()).add(who["slot"])
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(server.folder / "socket"))
                connection = http.client.HTTPConnection("localhost")
                connection.sock = client
                connection.request("GET", "/", headers=headers)
                found[headers["X-Forwarded-For"]].add(json.loads(connection.getresponse().read())["slot"])
        assert {len(slots) for slots in found.values()} == {1}
        assert len(set.union(*found.values())) > 1


def test_what_waits_in_the_listener_is_bounded_by_the_backlog():
    # Those who are let in first wait for their turn here.
    with Server(*STICKY, "-w", "1", "--backlog", "5", "--keep-alive", "60", "whoami:app") as server:
        server.slots(CLIENTS)
        (dispatcher,) = server.alive("dispatcher")
        os.kill(dispatcher, signal.SIGSTOP)
        clients = []
        for source in CLIENTS:
            client = socket.socket()
            client.bind((source, 0))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", server.port))
            clients.append(client)

        def connected(client: socket.socket) -> bool:
            try:
                client.getpeername()
            except OSError:
                return False
            return True

        wait_for(lambda: sum(map(connected, clients)) >= 6, "the backlog to be full")
        assert sum(map(connected, clients)) == 6  # Linux lets one more in
        os.kill(dispatcher, signal.SIGCONT)
        for client in clients:
            wait_for(lambda: connected(client), "the connection")  # noqa: B023
            client.setblocking(True)
            client.settimeout(PATIENCE)
            client.sendall(GET)
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()


def test_sockets_of_systemd():
    """They stay open over a reload. Gunicorn cannot pass them on to a new master, so an upgrade is refused."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in listeners]
        fds = [listener.fileno() for listener in listeners]
        script = f"""import fcntl, os, sys
for target, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in {fds}], 3):
    os.dup2(fd, target)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
os.execv(sys.argv[1], sys.argv[1:])"""
        options: dict[str, Any] = {"command": [sys.executable, "-c", script, str(BIN / "gunicorn")], "bind": None}
        server = stack.enter_context(Server(*STICKY, "-w", "2", "--pid", "pid", "whoami:app", pass_fds=fds, **options))
        for listener in listeners:
            listener.close()

        def slots() -> list[int]:
            return [json.loads(request(port, source=client).body)["slot"] for port in ports for client in CLIENTS]

        before = slots()
        assert set(before) == {0, 1}
        assert before[: len(CLIENTS)] == before[len(CLIENTS) :]
        assert set(server.ports) == set(ports)
        old = set(server.alive("worker"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")
        assert slots() == before
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log("USR2 signal ignored: the listeners are systemd's")
        assert slots() == before
        assert server.stop() == 0
        wait_for(lambda: not server.session(), "all processes to end")


def test_systemd_is_told_that_we_are_ready():
    with Server("--version") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(folder.folder / "notify")
        notify.bind(path)
        notify.settimeout(PATIENCE)
        with Server(*STICKY, "-w", "2", "whoami:app", env={"NOTIFY_SOCKET": path}) as server:
            assert notify.recv(1000).startswith(b"READY=1\n")
            assert set(server.slots(CLIENTS).values()) == {0, 1}


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with Server(*STICKY, "-w", "1", "--pid", "pid", "whoami:app", bind=bind) as server:
            assert server.process.wait(PATIENCE) == 1
            assert "Can't connect to" in server.log
            assert "Booting" not in server.log
