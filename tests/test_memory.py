"""Shared memory is what any of its processes may write into: whatever one writes, the others go on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from support.harness import BIN, PATIENCE, STICKY, Server, addresses, wait_for
from support.status import run, status

from gunicorn_sticky.shared import board as boards
from gunicorn_sticky.shared import memory
from gunicorn_sticky.shared.board import MAX_SLOTS, REQUEST, RUNNING, SEATS, STOPPED, STOPPING, Board, MasterBoard
from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.status.snapshot import Server as Status
from gunicorn_sticky.status.snapshot import find, slot_state

CLIENTS = addresses(24)
MOST = (1 << 64) - 1

#: Lets a worker, while there is a file named "scribble", write what that contains all over the memory that it shares
#: with the others, and then try to cut it off.
SCRIBBLER = """
import mmap, os, threading, time
from waiting import wait_until

def scribble(fds):
    maps = [mmap.mmap(fd, os.fstat(fd).st_size if "rings" not in name else 1 << 16) for name, fd in fds.items()]
    with open("scribble", "rb") as pattern:
        pattern = pattern.read()
    while os.path.exists("scribble"):
        for shared in maps:
            size = len(shared)
            shared[:] = os.urandom(size) if pattern == b"random" else (pattern * size)[:size]
        time.sleep(0.01)
    for fd in fds.values():
        for cut in (lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 1 << 40), lambda: fcntl.fcntl(fd, 1033, 8)):
            try:
                cut()
            except OSError as error:
                open("refused", "a").write(f"{error.strerror}\\n")
    open("done", "w").close()

def watch():
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if name.startswith("/memfd:gunicorn-sticky"):
            fds[name] = int(fd)
    wait_until(lambda: os.path.exists("scribble") and os.path.getsize("scribble"))
    open("scribbling", "w").write(" ".join(fds))
    scribble(fds)

import fcntl
from gevent.monkey import get_original
start = get_original("_thread", "start_new_thread")
time.sleep = get_original("time", "sleep")

def post_worker_init(worker):
    if worker.slot == 0 and not os.path.exists("scribbling"):
        start(watch, ())
"""


def listen(statsd: socket.socket) -> str:
    statsd.bind(("127.0.0.1", 0))
    return f"statsd_host = '127.0.0.1:{statsd.getsockname()[1]}'"


@pytest.mark.features
@pytest.mark.parametrize(("by", "pattern"), [("ip", b"\0"), ("session", b"random"), ("session", b"\xff")])
def test_a_worker_that_writes_all_over_it(by: str, pattern: bytes):
    """Master, dispatcher and status server live, other workers too; when it has ended, all is as before."""
    options = ("--sticky-by", by, "--sticky-status", "127.0.0.1:0")
    with (
        contextlib.ExitStack() as stack,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd,
        Server(*STICKY, "-w", "3", *options, "whoami:app", config=SCRIBBLER + listen(statsd)) as server,
    ):
        wait_for(lambda: server.alive("worker") and status(server)["state"] == "ok", "all workers")
        others = set(server.alive("worker"))
        (victim,) = (worker["pid"] for worker in status(server)["slots"][2]["workers"])  # who does not scribble
        (server.folder / "scribble").write_bytes(pattern)
        written = wait_for(lambda: (path := server.folder / "scribbling").exists() and path.read_text(), "garbage")
        assert len(re.findall("gunicorn-sticky-(?:board|metrics|rings)", written)) == 3
        for _ in range(2):
            run("--json")
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(server.alive("worker")) == 3 and victim not in server.alive("worker"), "a successor")
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) for _ in CLIENTS]
        for client in waiting:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        select.select(waiting, [], [], 2.0)
        (server.folder / "scribble").unlink()
        wait_for((server.folder / "done").exists, "the end of it")
        assert (server.folder / "refused").read_text() == "Operation not permitted\n" * 9
        wait_for(lambda: status(server)["state"] == "ok", "the server to be well again")
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in waiting)
        assert all(server.get(source=client).status == 200 for client in CLIENTS)
        assert len(others & set(server.alive("worker"))) == 2, "workers were replaced for what another one has written"
        # The master puts the board right first, and what it counts a moment later.
        wait_for(lambda: sum(slot["restarts"] for slot in status(server)["slots"]) == 1, "one worker to be replaced")
        seen = status(server)
        assert [slot["slot"] for slot in seen["slots"]] == [0, 1, 2]

        def pids() -> set[int]:
            return {worker["pid"] for slot in status(server)["slots"] for worker in slot["workers"]}

        wait_for(lambda: pids() == set(server.alive("worker")), "the workers to write their numbers again")
        assert seen["dispatcher"]["pid"] in server.alive("dispatcher")
        known = set(server.alive("worker"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: len(set(server.alive("worker")) - known) == 3, "new workers")
        wait_for(lambda: status(server)["state"] == "ok", "the server to be well after a reload")
        assert all(server.get(source=client).status == 200 for client in CLIENTS)
        assert server.stop() == 0
        assert "Traceback" not in server.log


# --- the board ---


@pytest.fixture
def board() -> MasterBoard:
    """Three slots, each with a worker that takes connections."""
    board = MasterBoard()
    board.slots = board.count = 3
    for slot in range(3):
        board.take(slot * SEATS, slot + 1, slot + 1)
        board.shared().activate(slot, slot * SEATS)
    board.restore()
    return board


def says(board: Board) -> list[object]:
    """Return all that a board says."""
    return [
        board.is_active_master,
        board.slots,
        board.count,
        board.phase,
        board.owners(),
        [board.seat_of(owner) for owner in range(1, 5)],
        [(board.active_seat(slot), board.is_open(slot)) for slot in range(3)],
        [board.is_booting(seat) for seat in range(3 * SEATS)],
    ]


GARBAGE = {
    "random": random.Random(1).randbytes(boards.SIZE),
    **{str(byte): bytes([byte]) * boards.SIZE for byte in (0, 1, 2, 0x7F, 0xFF)},
}
#: What workers may have said, in cells that they write.
SMALL = b"".join(number.to_bytes(8, sys.byteorder) for number in random.Random(1).choices(range(5), k=boards.SIZE // 8))


def overwrite(fd: int, garbage: bytes, start: int = 0) -> None:
    os.pwrite(fd, garbage[start:], start)


@pytest.mark.parametrize("name", GARBAGE)
def test_its_master_puts_a_board_right(board: MasterBoard, name: str):
    shared, before = board.shared(), says(board)
    assert says(shared) == before
    overwrite(board.fd, GARBAGE[name], start=8)  # but who is in charge, which other masters say as well
    board.restore()
    assert says(board) == before
    assert says(shared) == before


@pytest.mark.parametrize("name", [*GARBAGE, "small"])
def test_whatever_stands_on_a_board_can_be_read(board: MasterBoard, name: str):
    shared = board.shared()
    overwrite(board.fd, (GARBAGE | {"small": SMALL})[name])
    for seen in (shared, shared.other()):
        assert seen.slots <= MAX_SLOTS
        assert seen.count <= MAX_SLOTS
        assert len(seen.owners()) <= MAX_SLOTS * SEATS
        for slot in range(MAX_SLOTS):
            assert seen.active_seat(slot) in {-1, *range(slot * SEATS, (slot + 1) * SEATS)}
            assert seen.is_open(slot) in (True, False)
            assert 0 <= seen.load(slot) <= 8 * MOST
            seen.give(slot, REQUEST)
        seen.activate(0, 1)
        seen.clear()
        assert not any(seen.owners())
    assert shared.is_active_master != shared.other().is_active_master
    MasterBoard(board.fd, 1)


@pytest.mark.parametrize("half", [0, 1])
def test_of_two_masters_one_is_in_charge(board: MasterBoard, half: int):
    both = [board, MasterBoard(board.fd, 1)]
    both[half].become_active_master()
    assert [one.is_active_master for one in both] == [half == 0, half == 1]
    overwrite(board.fd, GARBAGE["random"])
    assert [one.is_active_master for one in both] == [half == 0, half == 1]
    assert board.shared().is_active_master == (half == 0)


def test_a_board_says_what_workers_have_said(board: MasterBoard):
    """What a master believes is what is possible: here is what happens when all goes well."""
    shared = board.shared()
    board.take(1, 10, 10)
    assert board.is_booting(1)
    assert (board.active_seat(0), board.is_open(0)) == (0, True)
    shared.activate(0, 1)
    assert (board.active_seat(0), board.is_open(0), board.is_booting(1)) == (1, True, False)
    shared.activate(0, 0)  # too late
    assert board.active_seat(0) == 1
    shared.close(1)
    assert (board.active_seat(0), board.is_open(0)) == (1, False)
    board.leave(1)
    board.take(1, 11, 11)
    assert board.is_booting(1)
    shared.activate(0, 1)
    assert board.is_open(0)
    board.deactivate(0)
    assert board.active_seat(0) == shared.active_seat(0) == -1
    for phase in (STOPPING, STOPPED, RUNNING):
        board.phase = phase
        assert shared.phase == phase
    board.restore()
    assert says(board) == says(shared)


def test_a_worker_that_has_claimed_its_slot_and_is_gone_is_not_followed_by_its_predecessor(board: MasterBoard):
    """The predecessor has seen the claim, and takes no more connections."""
    board.take(1, 10, 10)
    board.shared().activate(0, 1)
    board.leave(1)
    board.restore()
    assert board.active_seat(0) == board.shared().active_seat(0) == 1


# --- the metrics ---


def test_loads_that_have_been_overwritten_begin_anew(board: MasterBoard):
    shared = board.shared()
    for garbage in GARBAGE.values():
        overwrite(board.fd, garbage, start=8)
        board.restore()
        for slot in range(3):
            shared.busy(slot * SEATS)[0] = 0
        for _ in range(30):
            least = min(range(3), key=shared.load)
            shared.give(least * SEATS, REQUEST)
        loads = [shared.load(slot) for slot in range(3)]
        assert max(loads) - min(loads) <= REQUEST


def test_what_an_idle_worker_skips_is_not_given_to_it(board: MasterBoard):
    shared = board.shared()
    for _ in range(1000):
        shared.give(0, REQUEST)
    before = shared.given(SEATS)
    shared.give(SEATS, REQUEST)
    assert shared.load(1) > shared.load(0) - 1000  # it has nothing to catch up on
    assert shared.given(SEATS) == before + REQUEST
    assert shared.given(0) == 1000 * REQUEST


def test_a_row_is_what_its_writer_has_counted():
    table = Metrics()
    row = table.worker(3)
    row.starts()
    for _ in range(5):
        row.requests.inc()
    for garbage in (0, 7, MOST):
        for number in table.worker(3):
            number.cell[0] = garbage
        row.requests.inc()
        row.connections.inc()
        row.connections.dec()
        row.show()
        assert [number.cell[0] for number in table.worker(3)] == [number.value for number in row]
    assert row.requests.value == 8
    row.requests.cell[0] = MOST
    successor = table.worker(3)
    successor.starts()
    successor.requests.inc()
    assert table.worker(3).requests.value == 1


def test_whatever_is_counted_can_be_shown(board: MasterBoard):
    from rich.console import Console

    from gunicorn_sticky.status.statsd import metrics
    from gunicorn_sticky.status.terminal import _page

    table, shared = Metrics(), board.shared()
    for garbage in (1, 1 << 62, MOST):
        for row in (table.master(), *map(table.slot, range(3)), *map(table.worker, range(9)), table.dispatcher(0)):
            for number in row:
                number.cell[0] = garbage
        seen = Status(table, shared).status()
        assert list(metrics(seen))
        with open(os.devnull, "w") as nowhere:
            Console(file=nowhere, width=80).print(_page([seen], [seen]))


def test_the_newest_dispatcher_is_the_one_made_last_whatever_the_clock_says(board: MasterBoard):
    table, now = Metrics(), time.time_ns()
    for number, (pid, started) in enumerate([(os.getppid(), now), (os.getpid(), now - 3600 * 10**9)]):
        row = table.dispatcher(number)
        row.pid.set(pid)
        row.started.set(started)
    table.master().dispatchers.set(2)
    assert Status(table, board.shared()).status()["dispatcher"]["pid"] == os.getpid()
    row.started.set(now + 3600 * 10**9)
    assert Status(table, board.shared()).status()["dispatcher"]["age"] == 0


def test_cpu_time_is_not_counted_in_ticks(board: MasterBoard):
    """A dispatcher's second with few connections is less than the 10 ms of a tick."""
    table = Metrics()
    table.master().dispatchers.set(1)
    table.dispatcher(0).pid.set(os.getpid())
    server = Status(table, board.shared())
    before = server.status()["dispatcher"]["cpu_seconds"]
    spent = time.process_time()
    while time.process_time() - spent < 0.001:
        pass
    after = server.status()["dispatcher"]["cpu_seconds"]
    assert 0.001 <= after - before < 1
    assert abs(after - time.process_time()) < 1


def test_cpu_time_where_processes_have_no_clocks(board: MasterBoard, monkeypatch: pytest.MonkeyPatch):
    def clock_gettime(clock: int) -> float:
        raise OSError

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    table = Metrics()
    table.master().dispatchers.set(1)
    table.dispatcher(0).pid.set(os.getpid())
    seen = Status(table, board.shared()).status()["dispatcher"]["cpu_seconds"]
    assert abs(seen - time.process_time()) < 1


@pytest.mark.features
def test_a_limit_on_the_size_of_files():
    """Of 1 GiB, or of 1 MiB, where there is no room for messages between workers, or of less than it takes."""

    def limited(blocks: int) -> Server:
        command = ["bash", "-c", f'ulimit -f {blocks} && exec "$0" "$@"', str(BIN / "gunicorn")]
        return Server(*STICKY, "-w", "1", "whoami:app", command=command)

    for blocks in (1 << 20, 1024):
        with limited(blocks) as server:
            wait_for(lambda: list(find(server.pid)) and status(server)["state"] == "ok", "the worker")
            assert server.get().status == 200
    with limited(100) as server:
        assert server.process.wait(PATIENCE) == 1
        assert re.fullmatch(r"\s*Error: .* bytes of shared memory are beyond the limit \(ulimit -f\)\s*", server.log)


def test_the_state_of_a_slot_is_that_of_its_best_worker():
    assert slot_state({"draining", "ready"}) == "ready"
    assert slot_state(()) == "down"


# --- the memory itself ---


def test_nobody_can_cut_it_off_or_forbid_to_write():
    fd = memory.create("test", 8192)
    assert memory.is_sealed(fd, 8192)
    assert not memory.is_sealed(fd, 4096)
    for size in (0, 8191, 8193):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, boards.SIZE)
    assert not memory.is_sealed(fd, boards.SIZE)
    os.close(fd)
    with Path("/dev/null").open("rb") as other:
        assert not memory.is_sealed(other.fileno(), 0)


def test_rows_are_of_their_own():
    table = Metrics()
    first, second = table.slot(0), table.slot(1)
    first.waiting.set(1)
    second.waiting.set(2)
    first.show()
    assert (table.slot(0).waiting.value, table.slot(1).waiting.value) == (1, 2)
