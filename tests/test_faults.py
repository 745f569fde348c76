"""Faults of processes under load: what is lost is what was in the hands of the process that died, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.harness import Server, wait_for
from support.kinds import Kind, one_each
from support.under_load import (
    Load,
    Record,
    ask,
    assert_nobody_moved,
    assert_nothing,
    busy_server,
    check_ends,
    each_fault,
    kinds,
    percentile,
    summary,
    times,
    under_load,
)

pytestmark = pytest.mark.load

ALL = ("ip", "header", "session")


@dataclass(frozen=True)
class Kill:
    """A process that was killed: it did all until `began`, nothing since `stopped`, and was gone at `killed`."""

    pid: int
    slot: int
    began: float
    stopped: float
    killed: float


def kill(load: Load, pid: int, slot: int = -1, stop: bool = False) -> Kill:
    """Kill a process, or let it stand still for some requests first: those it cannot have taken."""
    began = time.monotonic()
    if stop:
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        if slot >= 0:
            load.wait_for_answers(stopped, 30)
        else:  # nothing new is dispatched
            load.wait_for_answers(stopped, 10, lambda r: r.kept)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    return Kill(pid, slot, began, stopped if stop else killed, killed)


# --- workers ---


def was_inside(record: Record, kill: Kill, is_for_it: bool) -> bool:
    """Tell whether a failed request was in the hands of the worker when that died."""
    if not kill.began <= record.end <= kill.killed + 0.5:
        return False
    if record.last_pid == kill.pid:  # so was its connection; the kernel takes a moment to close what a dead process had
        return record.start <= kill.killed + 0.2
    return is_for_it and record.start <= kill.stopped


@each_fault(0, *ALL)
def test_a_killed_worker_takes_with_it_what_it_was_serving_and_nothing_else(kind: Kind, by: str):
    with busy_server(by, 4, kind=kind) as server:
        kills = []
        with under_load(server, by) as load:
            for round_ in range(times(2, 50)):
                slot = round_ % 4
                kills.append(kill(load, load.worker(slot), slot, stop=round_ % 2 == 1))
                # Until its replacement answers, and has some requests inside again.
                load.wait_for_answers(kills[-1].killed, 20, lambda r: r.slot == slot and r.pid != kills[-1].pid)  # noqa: B023
        homes = load.homes()
        dead = {kill.pid: kill.killed for kill in kills}

        def is_for(record: Record, kill: Kill) -> bool:
            if by != "session":
                return homes.get(record.client) == kill.slot
            if record.owner is None or record.owner == kill.pid:
                return True
            return dead.get(record.owner, kill.killed) < kill.killed  # a session whose worker is gone goes anywhere

        def is_lost(record: Record) -> bool:
            if record.outcome == "404":
                return record.end > dead.get(record.owner or 0, float("inf"))
            return any(was_inside(record, kill, is_for(record, kill)) for kill in kills)

        assert_nothing([r for r in load.records if r.failed and not is_lost(r)], "lost without need", kills[0].killed)
        assert any(r.failed for r in load.records)  # the workers were busy
        assert_nobody_moved(load)


@each_fault(2, "ip")
def test_a_worker_that_cannot_be_imported_any_more_stops_the_server(kind: Kind, by: str):
    """As Gunicorn does: a failure to boot is no crash."""
    with busy_server(by, 2, "--graceful-timeout", "2", kind=kind) as server:
        processes = [*server.booted("worker"), *server.booted("dispatcher")]
        load = Load(server, by)
        try:
            load.wait_for_answers(0.0, 300)
            (server.folder / "broken").write_text("1")
            kill(load, load.worker(1))
            assert server.process.wait(30) == 3
            port = server.port
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes to end")
            socket.create_server(("127.0.0.1", port)).close()
            check_ends(load.stop())
        finally:
            load.kill()
        assert "Worker failed to boot" in server.log


@each_fault(1, "ip")
def test_a_slot_whose_workers_crash_is_answered_503_and_recovers(kind: Kind, by: str):
    timeout = 3.0
    with busy_server(by, 3, "--timeout", "3", kind=kind) as server:
        with under_load(server, by, workers=3, waits=timeout) as load:
            slot = 1
            (server.folder / "crash").write_text(str(slot))
            crash = kill(load, load.worker(slot), slot)
            wait_for(lambda: any(r.outcome == "503" for r in load.records), "an answer that says 503")
            (server.folder / "crash").unlink()
            since = time.monotonic()
            load.wait_for_answers(since, 50, lambda r: r.slot == slot)
        homes = load.homes()
        failed = [r for r in load.records if r.failed and not was_inside(r, crash, homes[r.client] == slot)]
        assert {r.outcome for r in failed} == {"503"}, summary(failed)
        assert_nothing([r for r in failed if homes[r.client] != slot], "failed in another slot", crash.killed)
        assert_nothing([r for r in failed if r.retry_after <= 0 and r.kind != "socket"], "without Retry-After")
        assert_nothing([r for r in failed if r.delay > timeout + 1.5], "waited too long")
        assert_nobody_moved(load)


def stand_still(server: Server, client: str, path: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(server, client, path)


@pytest.mark.parametrize(("kind", "how"), one_each([("block",), ("spin",)], [("stop",)], kinds(0)))
def test_a_worker_that_stands_still_makes_nobody_else_wait(kind: Kind, how: str):
    timeout = 4.0  # so long may the boot of its replacement take as well
    wanted, delays = times(1, 5), []
    with busy_server("ip", 4, "--timeout", "4", kind=kind) as server, under_load(server, waits=timeout + 2) as load:
        # What else the machine does makes some rounds slower, and none faster.
        for round_ in range(wanted + 4):
            slot = round_ % 4
            homes = load.homes()
            client = next(client for client, home in homes.items() if home == slot)
            victim = load.worker(slot)
            quiet = time.monotonic()
            load.wait_for_answers(quiet, 300)
            start = time.monotonic()
            if how == "stop":  # which neither threads nor coroutines do by themselves
                os.kill(victim, signal.SIGSTOP)
            thread = threading.Thread(target=stand_still, args=(server, client, f"/{how}?seconds=20"))
            thread.start()
            server.wait_for_log("WORKER TIMEOUT", count=round_ + 1)
            end = time.monotonic()
            thread.join()
            load.wait_for_answers(end, 20, lambda r: r.slot == slot and r.pid != victim)  # noqa: B023
            records = [r for r in load.records if r.kind == "request"]
            others = [r for r in records if homes.get(r.client) != slot]
            before = percentile([r.delay for r in others if quiet <= r.start < start], 99)
            during = percentile([r.delay for r in others if start <= r.start < end], 99)
            delays.append(during - before)
            failed = [r for r in load.records if r.failed and r.end > quiet]
            gone = Kill(victim, slot, start, start + 0.2, time.monotonic())
            assert_nothing([r for r in failed if not was_inside(r, gone, homes[r.client] == slot)], "failed", start)
            if sum(delay <= 0.05 for delay in delays) == wanted:
                break
        else:
            raise AssertionError(f"99 % of the others' requests took longer by {delays} s")
        assert_nobody_moved(load)


# --- the dispatcher ---


@each_fault(4, *ALL)
def test_a_killed_dispatcher_takes_with_it_what_it_was_looking_at_and_nothing_else(kind: Kind, by: str):
    with busy_server(by, 4, kind=kind) as server:
        kills = []
        with under_load(server, by) as load:
            for round_ in range(times(2, 50)):
                [dispatcher] = server.alive("dispatcher")
                kills.append(kill(load, dispatcher, stop=round_ % 2 == 1))
                load.wait_for_answers(kills[-1].killed, 50, lambda r: not r.kept)
                wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert len(server.booted("worker")) == 4
        failed = [r for r in load.records if r.failed]
        looked_at = [
            r
            for r in failed
            if r.split and any(r.start <= k.killed and k.began <= r.start + r.seconds + 0.1 for k in kills)
        ]
        late_ones = []
        for k in kills:
            # It may have had one more in its hands: accepted or handed over, and not passed on yet.
            held = [r for r in failed if r not in looked_at and r.start <= k.killed <= r.end + 0.1 <= k.killed + 0.6]
            assert len(held) <= 1, summary(held, k.killed)
            assert_nothing([r for r in held if r.kept and by == "ip"], "established", k.killed)
            looked_at += held
        for r in load.records:
            last = max((k.killed for k in kills if k.killed <= r.end), default=0.0)
            if not r.kept and r.end > max(r.start, last + 1) + r.seconds + 0.5:
                late_ones.append(r)
        assert_nothing(
            late_ones, f"waited too long, killed at {[k.killed - kills[0].killed for k in kills]}", kills[0].killed
        )
        assert_nothing([r for r in failed if r not in looked_at], "lost without need", kills[0].killed)
        assert_nobody_moved(load)


# --- the arbiter ---


@each_fault(0, "ip")
def test_everything_ends_with_a_killed_arbiter(kind: Kind, by: str):
    with busy_server(by, 4, kind=kind) as server:
        processes = [*server.booted("worker"), *server.booted("dispatcher")]
        load = Load(server, by)
        try:
            load.wait_for_answers(0.0, 300)
            port, processes = server.port, [*server.alive("worker"), *server.alive("dispatcher")]
            assert len(processes) == 5
            server.send_signal(signal.SIGKILL)
            server.process.wait()
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes to end", 10)
            socket.create_server(("127.0.0.1", port)).close()
            check_ends(load.stop())
        finally:
            load.kill()
