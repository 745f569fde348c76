"""The sticky_connection hook, and sync: the application releases each connection's first request."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from support.harness import LINGERING, PATIENCE, Server, request
from support.kinds import Kind, each_kind

pytestmark = [pytest.mark.features, each_kind()]

SYNC = ("-w", "1", "--sticky-sync")


def test_the_hook_sees_the_connection_before_its_first_request(kind: Kind):
    config = """
import json, os

def sticky_connection(worker, connection):
    line = dict(pid=worker.pid, own=os.getpid(), address=connection.address, key=connection.key, slot=connection.slot,
                listener=connection.listener.getsockname())
    worker.log.info("hook %s", json.dumps(line))

def pre_request(worker, req):
    worker.log.info("request %s", req.path)
"""
    args = ("-w", "2", "--sticky-proxy", kind.app("whoami"))
    with Server(*kind.args, *args, config=config) as server:
        who = server.who(headers={"X-Forwarded-For": "1.2.3.4"}, source="127.0.0.9")
        seen = json.loads(server.wait_for_log(r"hook (.*)").group(1))
        assert seen["pid"] == seen["own"] == who["pid"]
        assert seen["address"] == ["127.0.0.9", int(who["REMOTE_PORT"])]
        assert (seen["key"], seen["slot"]) == ("1.2.3.4", who["slot"])
        assert seen["listener"] == ["127.0.0.1", server.port]
        if kind.has_all:
            assert server.log.index("hook ") < server.log.index("request /")


def test_a_request_waits_for_its_release(kind: Kind):
    config = """
import os, threading
from waiting import wait_until

def release(worker, connection):
    wait_until(lambda: os.path.exists("release"))
    worker.log.info("wrong event: %s", connection.emit("something else"))
    worker.log.info("right event: %s", connection.emit("ready"))

def sticky_connection(worker, connection):
    threading.Thread(target=release, args=[worker, connection], daemon=True).start()
    worker.log.info("hook done")
"""
    with Server(*kind.args, *SYNC, "--sticky-sync-event", "ready", kind.app("whoami"), config=config) as server:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(server.who(path="/first")))
        thread.start()
        server.wait_for_log("hook done")
        assert not answers
        (server.folder / "release").touch()
        thread.join()
        assert answers[0]["PATH_INFO"] == "/first"
        server.wait_for_log("wrong event: False")
        server.wait_for_log("right event: True")


def test_a_release_within_the_hook(kind: Kind):
    config = """
def sticky_connection(worker, connection):
    connection.emit("sticky-sessions:sync")
"""
    with Server(*kind.args, *SYNC, kind.app("whoami"), config=config) as server:
        assert server.get().status == 200


def refused(server: Server, status: int) -> float:
    """Send a request with a body, of which nobody reads a byte, and see the answer arrive all the same.

    Returns:
        the seconds that it took, when the worker was ready
    """
    server.wait_for_log("Slot 0: ready")
    started = time.monotonic()
    response = request(server.port, method="POST", body=bytes(3_000_000))
    assert response.status == status
    return time.monotonic() - started


def test_a_connection_that_nobody_releases_is_answered_503(kind: Kind):
    with Server(*kind.args, *SYNC, "--sticky-sync-timeout", "1", kind.app("whoami"), config=LINGERING) as server:
        assert 0.9 < refused(server, 503) < 15
        server.wait_for_log("Refused a connection with key 127.0.0.1: 503, .*sticky-sessions:sync.*sticky_sync_timeout")


def test_the_timeout_covers_the_hook(kind: Kind):
    config = f"""{LINGERING}
import time

def sticky_connection(worker, connection):
    time.sleep(60)
"""
    with Server(*kind.args, *SYNC, "--sticky-sync-timeout", "1", kind.app("whoami"), config=config) as server:
        refused(server, 503)


def test_a_hook_that_fails_is_answered_500(kind: Kind):
    config = f"""{LINGERING}
def sticky_connection(worker, connection):
    raise LookupError("no such client")
"""
    with Server(*kind.args, "-w", "1", kind.app("whoami"), config=config) as server:
        refused(server, 500)
        server.wait_for_log("Exception in the sticky_connection hook")
        server.wait_for_log("LookupError: no such client")
        server.wait_for_log(r"500, the sticky_connection hook has failed \(setting: sticky_connection\)")


def test_who_asks_after_the_hook_has_failed_is_answered(kind: Kind):
    config = f"""{LINGERING}
def sticky_connection(worker, connection):
    raise LookupError("no such client")
"""
    with Server(*kind.args, "-w", "1", kind.app("whoami"), config=config) as server:
        server.wait_for_log("Slot 0: ready")
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            if kind.name != "threads":  # there the hook is called when a request comes
                server.wait_for_log("LookupError: no such client")
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 500"


def test_who_asks_nothing_is_told_nothing(kind: Kind):
    """Browsers open connections in advance, and take an answer without a request for that of the next one."""
    config = """
def sticky_connection(worker, connection):
    raise LookupError("no such client")
"""
    with Server(*kind.args, "-w", "1", "--keep-alive", "1", kind.app("whoami"), config=config) as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            assert client.recv(1) == b""
        assert "Refused" not in server.log


def test_a_held_connection_does_not_keep_the_server_from_stopping(kind: Kind):
    config = """
def sticky_connection(worker, connection):
    worker.log.info("held")
"""
    with Server(*kind.args, *SYNC, "--graceful-timeout", "2", kind.app("whoami"), config=config) as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.wait_for_log("held")
        assert server.stop(timeout=15) == 0
        client.close()
