"""The threads kind: what has a thread, and what has not."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from support.connections import Connection
from support.harness import PATIENCE, Server, wait_for
from support.status import status

from gunicorn_sticky.workers.core import StickyWorker
from gunicorn_sticky.workers.thread_deadlines import Deadlines, Timetable
from gunicorn_sticky.workers.thread_pool import DaemonPool

ONE_THREAD = ("-k", "gunicorn_sticky.ThreadStickyWorker", "--threads", "1", "-w", "1", "--keep-alive", "30")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
KEY = b"X-Forwarded-For: 203.0.113.1\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a single thread."""
    with Server(*ONE_THREAD, "--sticky-proxy", "whoami:app") as server:
        server.wait_for_log("Slot 0: ready")
        yield server


def connect(server: Server, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    client.sendall(sent)
    return client


def serves_at_once(server: Server) -> None:
    """To wait for one of the others would take two seconds at least."""
    started = time.monotonic()
    server.who(headers={"X-Forwarded-For": "203.0.113.1"})
    assert time.monotonic() - started < 1.5


def test_half_a_later_head_has_no_thread(server: Server):
    connections = [Connection(server.port) for _ in range(5)]
    for connection in connections:
        connection.socket.sendall(GET + KEY + b"\r\n")
        connection.answer()
        connection.socket.sendall(GET)
    serves_at_once(server)
    for connection in connections:
        connection.socket.sendall(KEY + b"\r\n")
        assert connection.answer()["key"] == "203.0.113.1"
        connection.close()


def test_who_is_refused_and_stays_has_no_thread(server: Server):
    connections = [Connection(server.port) for _ in range(5)]
    for connection in connections:
        connection.socket.sendall(GET + KEY + b"\r\n")
        connection.answer()
        connection.socket.sendall(GET + b"\r\n")
        assert connection.socket.recv(13) == b"HTTP/1.1 400 "
    serves_at_once(server)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("more", [b"", b"more than it has said"])
def test_who_does_not_close_holds_up_nobody(server: Server, more: bytes):
    """Gunicorn's loop waits for up to two seconds for each of them."""
    with ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(connect(server, GET + KEY + b"Connection: close\r\n\r\n" + more))
            assert client.recv(13) == b"HTTP/1.1 200 "
        serves_at_once(server)
        wait_for(lambda: connections(server) == 0, "the server to close them")


def connections(server: Server) -> int:
    return sum(worker["connections"] for slot in status(server)["slots"] for worker in slot["workers"])


def test_who_is_silent_has_no_thread_and_is_closed():
    with Server(*ONE_THREAD, "--keep-alive", "5", "whoami:app") as server, ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(5)]
        wait_for(lambda: connections(server) == 5, "the worker to have them")
        started = time.monotonic()
        assert server.who()["slot"] == 0
        assert time.monotonic() - started < 8  # a thread would wait ten seconds for who is silent
        silent[0].sendall(GET + b"\r\n")
        assert silent[0].recv(13) == b"HTTP/1.1 200 "
        assert [client.recv(100) for client in silent[1:]] == [b""] * 4


def test_pipelined_requests_behind_a_body_that_nobody_has_read(server: Server):
    requests = [b"POST /%d HTTP/1.1\r\nHost: a\r\n%sContent-Length: 5\r\n\r\nhello" % (n, KEY) for n in range(20)]
    connection = Connection(server.port)
    connection.socket.sendall(b"".join(requests))
    assert [connection.answer()["PATH_INFO"] for _ in requests] == [f"/{n}" for n in range(20)]
    connection.close()


def test_a_reset_later_on_is_no_error(server: Server):
    for sent in (b"", GET):
        connection = Connection(server.port)
        connection.socket.sendall(GET + KEY + b"\r\n")
        connection.answer()
        connection.socket.sendall(sent)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    wait_for(lambda: connections(server) == 0, "the server to close them")
    assert "Traceback" not in server.log


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_an_answer_arrives_whole_though_nobody_has_read_the_request(length: bytes):
    """To close a socket that has bytes to be read resets the connection."""
    with Server(*ONE_THREAD, "hello:app") as server:
        for _ in range(20):
            request = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n\r\n" % length
            with connect(server, request + b"f\r\n" * 4096) as client:
                received = b"".join(iter(lambda: client.recv(65536), b""))
                assert received.endswith(b"hello")
        wait_for(lambda: connections(server) == 0, "the server to close them")


def test_connections_that_threads_close_make_room_for_others():
    """The loop, which they do not wake while there is room, has to notice them when there is none."""
    with Server(*ONE_THREAD, "--worker-connections", "3", "--threads", "2", "hello:app") as server:
        server.wait_for_log("Slot 0: ready")
        started = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            asked = [pool.submit(server.get, headers={"Connection": "close"}) for _ in range(300)]
            statuses = [done.result(PATIENCE).status for done in asked]
        assert statuses == [200] * 300
        assert time.monotonic() - started < 30  # to wait for half a second each time would take longer
        wait_for(lambda: connections(server) == 0, "the worker to count them")


def test_an_error_of_the_application_closes_its_connection_once():
    """Also when the response has begun, where Gunicorn closes the socket itself, in the thread."""
    with Server(*ONE_THREAD, "failing:app") as server:
        for _ in range(3):
            with connect(server, GET + b"\r\n") as client:
                received = b"".join(iter(lambda: client.recv(65536), b""))
                assert received.endswith(b"begun\r\n")
        wait_for(lambda: connections(server) == 0, "the server to close them")
        assert server.stop() == 0


def test_threads_of_the_users_own():
    config = """
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread
from gunicorn.workers.gthread import ThreadWorker
import gunicorn_sticky

class Own(ThreadWorker):
    def get_thread_pool(self):
        return ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="own")

def pre_request(worker, req):
    worker.log.info("In thread %s", current_thread().name)

worker_class = gunicorn_sticky.sticky(Own)
"""
    with Server("-w", "2", "whoami:app", config=config) as server:
        assert server.who()["key"] == "127.0.0.1"
        server.wait_for_log("In thread own")


# --- parts ---


def test_threads_do_not_keep_a_process_from_ending():
    program = (
        "import time; from gunicorn_sticky.workers.thread_pool import DaemonPool; "
        "pool = DaemonPool(2); pool.submit(time.sleep, 60); time.sleep(0.1); pool.shutdown(wait=False); print('end')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_there_are_as_many_threads_as_are_needed():
    pool, release = DaemonPool(3), threading.Event()
    one = pool.submit(threading.get_ident)
    one.result(PATIENCE)
    wait_for(lambda: len(pool._idle) == 1, "the thread to be idle")
    assert pool.submit(threading.get_ident).result(PATIENCE) == one.result()
    waiting = [pool.submit(lambda: (release.wait(PATIENCE), threading.get_ident())[1]) for _ in range(9)]
    release.set()
    assert len({future.result(PATIENCE) for future in waiting} | {one.result()}) <= 3
    failing = pool.submit(json.loads, "{")
    assert isinstance(failing.exception(PATIENCE), ValueError)
    pool.shutdown()


def test_what_has_been_cancelled_is_not_begun_and_what_runs_cannot_be():
    pool, release, started = DaemonPool(1), threading.Event(), threading.Event()

    def run() -> bool:
        started.set()
        return release.wait(PATIENCE)

    running, waiting = pool.submit(run), pool.submit(release.clear)
    assert started.wait(PATIENCE)
    assert (running.cancel(), waiting.cancel()) == (False, True)
    release.set()
    assert running.result(PATIENCE) is True
    assert pool.submit(release.is_set).result(PATIENCE)  # by the same thread, which goes on
    pool.shutdown()


def test_deadlines_are_met_in_their_order():
    overdue: list[str] = []
    timetable = Timetable()
    soon, late = Deadlines[str](timetable, 10.0, overdue.append), Deadlines[str](timetable, 20.0, overdue.append)
    assert timetable.next == soon.first() == math.inf
    late.add("z")
    for name in "abc":
        soon.add(name)
    soon.discard("b")
    soon.discard("never there")
    first, last = soon.first(), late.first()
    assert first == timetable.next < last
    timetable.expire(first - 1)
    assert overdue == []
    timetable.expire(first + 1)
    assert overdue == ["a", "c"]
    assert "a" not in soon
    assert (bool(soon), bool(late), timetable.next) == (False, True, last)
    late.discard("z")
    timetable.expire(last)
    assert (overdue, timetable.next) == (["a", "c"], math.inf)


def test_max_requests_may_be_reached_by_several_threads_at_once():
    """Each of them says that the worker is to end; it waits for its successor all the same."""
    worker: Any = object.__new__(StickyWorker)
    worker._flags = bytearray(2)
    worker._seat = SimpleNamespace(board=SimpleNamespace(close=lambda seat: None))
    worker._has_been_active = worker._is_spent = worker._is_told = False
    worker.nr = worker.max_requests = 10
    worker.alive = True
    for _ in range(3):
        worker.alive = False
        assert worker.alive
        assert worker.leaving
    worker._is_told = True  # by SIGTERM, when the successor is there
    worker.alive = False
    assert not worker.alive
