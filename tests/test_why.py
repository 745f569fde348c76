"""Why a request is served where it is served: what a response header and the log tell."""

from __future__ import annotations

import json

import pytest
import websocket
from harness import PATIENCE, STICKY, Server, addresses

CLIENTS = addresses(12)


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
        assert "x-sticky-slot" not in client.getheaders()
        client.close()
