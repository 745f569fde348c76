"""Why a request is served where it is served: what a response header and the log tell."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest
import websocket
from support.harness import PATIENCE, STICKY, Response, Server, addresses

pytestmark = pytest.mark.features

CLIENTS = addresses(12)
#: Connections that are kept stay open, however long this machine takes between two requests.
KEPT = ("--keep-alive", "60")
DEBUG = (*STICKY, *KEPT, "--log-level", "debug")
POLL = "/socket.io/?EIO=4&transport=polling"


@contextlib.contextmanager
def kept_alive(server: Server) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as connection:
        yield connection


def new_session(server: Server) -> str:
    """Return the id of a new session."""
    return str(json.loads(server.get(POLL).body[1:])["sid"])


# --- the dispatcher's lines ---


def test_by_ip():
    with Server(*DEBUG, "-w", "4", "whoami:app") as server:
        for client in CLIENTS:
            slot = server.who(source=client)["slot"]
            server.wait_for_log(
                rf"\[DEBUG\] Connection from {client} goes to slot {slot} \(hash\); key by ip: {client}$"
            )


def test_by_header():
    options = ("--sticky-proxy", "--sticky-trusted-proxies", "127.0.0.1", "--sticky-ignore-missing-header")
    with Server(*DEBUG, "-w", "4", *options, "whoami:app") as server:
        slot = server.who(headers={"X-Forwarded-For": "10.0.0.1"})["slot"]
        start = rf"Connection from 127\.0\.0\.1 goes to slot {slot} \(hash\)"
        server.wait_for_log(rf"{start}; key by header x-forwarded-for: 10\.0\.0\.1$")
        server.who()
        server.wait_for_log(r"; key by ip, as the header x-forwarded-for is missing: 127\.0\.0\.1$")
        server.who(source="127.0.0.2", headers={"X-Forwarded-For": "10.0.0.1"})
        server.wait_for_log(r"; key by ip, as the header x-forwarded-for is not trusted: 127\.0\.0\.2$")


def test_by_proxy_header():
    options = ("--proxy-protocol", "--proxy-allow-from", "127.0.0.1")
    with Server(*DEBUG, "-w", "2", *options, "whoami:app") as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            client.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        server.wait_for_log(r"from 127\.0\.0\.1 goes to slot \d \(hash\); key by PROXY header: 198\.51\.100\.7$")
        server.who(source="127.0.0.2")
        server.wait_for_log(r"from 127\.0\.0\.2 goes to slot \d \(hash\); key by ip: 127\.0\.0\.2$")


def test_by_session():
    with Server(*DEBUG, "-w", "2", "--sticky-by", "session", "sio_app:app") as server:
        sid = new_session(server)
        new = r"\(a new session, least-connections\)"
        match = server.wait_for_log(rf"Connection from 127\.0\.0\.1 goes to slot (\d) {new}; key by ip: 127\.0\.0\.1$")
        slot = int(match.group(1))
        server.get(f"{POLL}&sid={sid}")
        pattern = rf"goes to the session's worker in seat \d+ \(slot {slot}\); key by session: (\d+)$"
        owner = server.wait_for_log(pattern).group(1)
        pid = int(server.wait_for_log(rf"Slot {slot}: ready \(pid: (\d+)\)").group(1))
        os.kill(pid, signal.SIGKILL)
        server.wait_for_log(rf"Slot {slot}: ready", count=2)
        server.get(f"{POLL}&sid={sid}")
        gone = r"\(the session's worker is gone, least-connections\)"
        server.wait_for_log(rf"goes to slot \d {gone}; key by session: {owner}$")


def test_by_cookie():
    with Server(*DEBUG, "-w", "2", "--sticky-by", "cookie", "--sticky-balance", "round-robin", "whoami:app") as server:
        cookie = server.get().headers["Set-Cookie"].partition(";")[0]
        server.wait_for_log(r"\(a new session, round-robin\); key by ip: 127\.0\.0\.1$")
        server.get(headers={"Cookie": cookie})
        server.wait_for_log(r"goes to the session's worker in seat \d+ \(slot \d\); key by cookie: \d+$")


def test_nobody_feigns_a_reason():
    """What a client can choose is at the end of the line, and in one line."""
    with Server(*DEBUG, "-w", "1", "--sticky-proxy", "--sticky-header", "x-tenant", "whoami:app") as server:
        feigned = "a goes to slot 7 (hash); key by ip: b"
        assert server.get(headers={"X-Tenant": feigned}).status == 200
        server.wait_for_log(rf"goes to slot 0 \(hash\); key by header x-tenant: {re.escape(feigned)}$")
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nX-Tenant: a\r\n [CRITICAL] forged\x85\r\n\r\n")
            client.recv(12)
        server.wait_for_log("key by header x-tenant: blake2b:")
        assert "forged" not in server.log


def test_nothing_is_said_unless_asked_for():
    with Server(*STICKY, *KEPT, "-w", "2", "--sticky-proxy", "whoami:app") as server, kept_alive(server) as connection:
        for n in range(8):
            connection.request("GET", "/", headers={"X-Forwarded-For": f"10.0.0.{n}"})
            Response(connection.getresponse())
        assert "onnection from" not in server.log


# --- connections that move ---


def test_handed_over_by_header():
    with Server(*DEBUG, "-w", "4", "--sticky-proxy", "whoami:app") as server, kept_alive(server) as connection:
        slots = []
        for n in range(20):
            connection.request("GET", "/", headers={"X-Forwarded-For": f"10.0.0.{n}"})
            slots.append(json.loads(Response(connection.getresponse()).body)["slot"])
        moved = [n for n in range(1, 20) if slots[n] != slots[n - 1]]
        assert moved
        for n in moved:
            server.wait_for_log(
                r"Handing over a connection from 127\.0\.0\.1, as its next request is for another slot; "
                rf"key of its next request by header x-forwarded-for: 10\.0\.0\.{n}$"
            )
            server.wait_for_log(rf"goes to slot {slots[n]} \(hash\); handed back by a worker, key: 10\.0\.0\.{n}$")
        assert server.log.count("Handing over") == server.log.count("handed back") == len(moved)


def test_handed_over_by_session():
    with Server(*DEBUG, "-w", "2", "--sticky-by", "session", "sio_app:app") as server, kept_alive(server) as connection:
        server.wait_for_log(r"Slot \d: ready", count=2)
        sids = [new_session(server) for _ in range(4)]
        for sid in sids:
            connection.request("POST", f"{POLL}&sid={sid}", body="3")
            assert Response(connection.getresponse()).status == 200
        server.wait_for_log(
            r"as its next request is of another worker's session; key of its next request by session: \d+$"
        )
        server.wait_for_log(r"goes to the session's worker in seat \d+ \(slot \d\); handed back by a worker, key: \d+$")


def test_moved_with_a_slot():
    """What waits for a worker that stands still goes elsewhere with its slot."""
    with Server(*DEBUG, "-w", "2", "--timeout", "60", "whoami:app") as server:
        client = next(client for client, slot in server.slots(CLIENTS).items() if slot == 1)
        victim = server.who(source=client)["pid"]
        os.kill(victim, signal.SIGSTOP)
        try:
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE, (client, 0)) as waiting:
                waiting.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                # The first one is that of `slots`, the second one that of `who`.
                server.wait_for_log(rf"Connection from {client} goes to slot 1", count=3)
                server.send_signal(signal.SIGTTOU)
                server.wait_for_log(
                    rf"Connection from {client} goes to slot 0 \(hash\); "
                    rf"moved, as its worker or its slot is gone, key: {client}$"
                )
                assert waiting.recv(12) == b"HTTP/1.1 200"
        finally:
            os.kill(victim, signal.SIGCONT)


# --- the response header ---


@pytest.mark.parametrize("by", ["ip", "cookie"])
def test_slot_header(by: str):
    with Server(*STICKY, "-w", "2", "--sticky-by", by, "--sticky-slot-header", "whoami:app") as server:
        for client in CLIENTS:
            response = server.get(source=client)
            assert response.headers["X-Sticky-Slot"] == str(json.loads(response.body)["slot"])
            assert ("Set-Cookie" in response.headers) == (by == "cookie")


def test_no_slot_header_unless_asked_for():
    with Server(*STICKY, "-w", "1", "whoami:app") as server:
        assert "X-Sticky-Slot" not in server.get().headers


def test_no_slot_header_in_what_the_application_answers_itself():
    with Server(*STICKY, "-w", "1", "--sticky-slot-header", "sio_app:app") as server:
        path = "/socket.io/?EIO=4&transport="
        assert server.get(f"{path}polling").headers["X-Sticky-Slot"] == "0"
        client = websocket.create_connection(f"ws://127.0.0.1:{server.port}{path}websocket", timeout=PATIENCE)
        assert client.getstatus() == 101
        headers = client.getheaders()
        assert headers is not None
        assert "x-sticky-slot" not in headers
        client.close()
