"""Reloads, upgrades, recycling and stopping under load: nobody is refused, and what was begun is finished."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from support.gunicornc import control, order
from support.harness import Server, wait_for
from support.kinds import Kind
from support.masters import pid_in
from support.under_load import (
    CLIENTS,
    Load,
    Record,
    assert_nobody_moved,
    assert_nothing,
    busy_server,
    check_ends,
    check_rate,
    each_fault,
    is_too_late,
    times,
    under_load,
    wait_until_ready,
)

pytestmark = pytest.mark.load

ALL = ("ip", "header", "session")
#: More than two long polls: what begins on a kept-alive connection while its worker drains can end.
GRACE = 2
#: Seconds from a new connection to its answer that may pass while workers are replaced.
GAP = 0.5


def is_of(record: Record, workers: set[int]) -> bool:
    """Tell whether a request belongs to what one of the workers keeps: a WebSocket, or a session."""
    if record.kind == "socket":
        return record.last_pid in workers
    return record.owner in workers


def last_answers(load: Load) -> dict[int, float]:
    """Return when each worker answered last."""
    return {r.pid: r.end for r in sorted(load.records, key=lambda r: r.end) if r.pid is not None}


def assert_no_gap(load: Load, records: list[Record]) -> None:
    slow = [r for r in records if r.kind == "request" and not r.kept and not r.failed and r.delay > GAP]
    assert_nothing([r for r in slow if not is_too_late(load, r.start, r.end)], "new connections that waited")


@each_fault(8, *ALL)
def test_reload_loses_nothing_but_sessions_after_the_graceful_timeout(kind: Kind, by: str):
    with busy_server(by, 3, "--graceful-timeout", str(GRACE), kind=kind) as server:
        replaced: dict[int, float] = {}
        with under_load(server, by, workers=3) as load:
            for _ in range(times(1, 20)):
                old = set(server.alive("worker"))
                replaced |= dict.fromkeys(old, time.monotonic() + GRACE)
                server.send_signal(signal.SIGHUP)
                wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")  # noqa: B023
                load.wait_for_answers(time.monotonic(), CLIENTS)

        def is_lost(record: Record) -> bool:
            return any(is_of(record, {pid}) and record.end >= until for pid, until in replaced.items())

        assert_nothing(
            [r for r in load.records if r.failed and not is_lost(r)], "failed", min(replaced.values()) - GRACE
        )
        assert_nobody_moved(load)
        assert_no_gap(load, load.records)
        assert any(r.failed and r.kind == "socket" for r in load.records)  # the old workers did have something to lose


@each_fault(6, *ALL)
def test_workers_added_and_removed_move_only_the_clients_that_have_to(kind: Kind, by: str):
    with busy_server(by, 8, "--graceful-timeout", str(GRACE), kind=kind, control_socket=True) as server:
        removed: dict[int, float] = {}
        steps: list[tuple[int, int, float, float]] = []
        server.wait_for_log("Control socket listening")
        wait_until_ready(server, 8)
        order(server, "worker remove 7")  # from now on, the arbiter has all channels that it will ever need
        wait_for(lambda: len(server.alive("worker")) == 1, "one worker")
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        with under_load(server, by, workers=1) as load:
            count = 1
            for _ in range(times(1, 5)):
                for new, change in (
                    (2, lambda: server.send_signal(signal.SIGTTIN)),
                    (8, lambda: order(server, "worker add 6")),
                    (2, lambda: order(server, "worker remove 6")),
                    (1, lambda: server.send_signal(signal.SIGTTOU)),
                ):
                    before, begun = set(server.alive("worker")), time.monotonic()
                    dispatchers = set(server.alive("dispatcher"))
                    change()
                    wait_for(lambda: len(server.alive("worker")) == new, f"{new} workers")  # noqa: B023
                    # The dispatcher for the new number of slots may still have to start, after others.
                    wait_for(lambda: not dispatchers & set(server.alive("dispatcher")), "another dispatcher")  # noqa: B023
                    load.wait_for_answers(begun, 1, lambda r: not r.kept and r.slot == new - 1)  # noqa: B023
                    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
                    removed |= dict.fromkeys(before - set(server.alive("worker")), begun + GRACE)
                    settled = time.monotonic()
                    load.wait_for_answers(settled, CLIENTS + 50, lambda r: r.kind == "request")
                    steps.append((count, new, begun, settled))
                    count = new

        ends = last_answers(load)

        def is_lost(record: Record) -> bool:
            if record.outcome == "404":  # a worker that is to leave does so when it has no connections any more
                return record.owner in removed and record.end >= ends[record.owner]
            return any(is_of(record, {pid}) and record.end >= until for pid, until in removed.items())

        assert_nothing([r for r in load.records if r.failed and not is_lost(r)], "failed", steps[0][2])
        if by == "session":
            assert_nobody_moved(load)
            return
        # By IP, a connection that is kept open stays where it is: its requests are not looked at.
        looked_at = [r for r in load.records if r.kind == "request" and not r.failed and (by == "header" or not r.kept)]
        until = [begun for _, _, begun, _ in steps[1:]] + [time.monotonic()]
        where = {r.client: r.slot for r in looked_at if r.end < steps[0][2]}
        for (count, new, _, settled), end in zip(steps, until, strict=True):
            answers = [r for r in looked_at if settled <= r.start and r.end < end]
            after = {r.client: r.slot for r in answers}
            assert_nothing([r for r in answers if r.slot != after[r.client]], "clients with two slots at once", settled)
            moved = [client for client in after if client in where and after[client] != where[client]]
            changing = set(range(min(count, new), max(count, new)))
            assert {(after if new > count else where)[client] for client in moved} <= changing
            # What the slots that come or go have, and as much as chance may add.
            share = len(changing) / max(new, count)
            assert len(moved) / len(after) <= share + 0.13, f"{len(moved)} of {len(after)} moved from {count} to {new}"
            assert set(after.values()) == set(range(new))
            where = after


@each_fault(4, *ALL)
def test_max_requests_leaves_no_gap_in_any_slot(kind: Kind, by: str):
    options = ("--max-requests", "250", "--max-requests-jitter", "50", "--graceful-timeout", str(GRACE))
    with busy_server(by, 2, *options, kind=kind) as server:
        with under_load(server, by, workers=2) as load:
            server.wait_for_log("Autorestarting", count=times(3, 50), timeout=600)
        ends = last_answers(load)

        def is_lost(record: Record) -> bool:
            """A worker takes its WebSockets and sessions with it, at its end, which takes it a second or two."""
            return any(is_of(record, {pid}) and record.end > ends[pid] - GRACE - 2 for pid in ends)

        assert_nothing([r for r in load.records if r.failed and not is_lost(r)], "failed")
        assert_nobody_moved(load)
        assert_no_gap(load, load.records)


@each_fault(1, "ip")
def test_term_finishes_what_was_accepted(kind: Kind, by: str):
    with busy_server(by, 4, "--graceful-timeout", "10", kind=kind) as server:
        load = Load(server, by)
        try:
            load.wait_for_everybody()
            port, processes = server.port, [*server.alive("worker"), *server.alive("dispatcher")]
            # One slot's connections are in its inbox when the signal comes.
            slow = load.worker(0)
            os.kill(slow, signal.SIGSTOP)
            stopped = time.monotonic()
            load.wait_for_answers(stopped, 60)
            accepted = time.monotonic() - 0.05
            server.send_signal(signal.SIGTERM)
            server.wait_for_log("Handling signal: term")
            wait_for(lambda: any(r.outcome == "refused" for r in load.records), "the listener to close")
            os.kill(slow, signal.SIGCONT)
            assert server.process.wait(30) == 0
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes to end")
            socket.create_server(("127.0.0.1", port)).close()
            records = load.stop()
        finally:
            load.kill()
        check_ends(records)
        begun = [r for r in records if r.start < accepted and r.end >= stopped and r.kind != "socket"]
        homes = load.homes()
        assert any(homes[r.client] == 0 and not r.kept and r.start > stopped for r in begun)
        assert_nothing([r for r in begun if r.failed], "not finished", accepted)
        assert_nobody_moved(load)


def upgrade(server: Server, load: Load) -> tuple[int, set[int], float]:
    """Start a new master; return its pid, its workers', and the time since when they serve new connections."""
    old = set(server.booted("worker"))
    os.kill(master(server), signal.SIGUSR2)
    pid = int(wait_for(lambda: (server.folder / "pid.2").exists() and (server.folder / "pid.2").read_text(), "pid.2"))
    begun = time.monotonic()
    load.wait_for_answers(begun, 50, lambda r: not r.kept and r.pid not in old)
    workers = set(server.booted("worker")) - old
    since = min(r.start for r in load.records if r.pid in workers)
    return pid, workers, since


def master(server: Server) -> int:
    """Return the pid in the master's file, or 0: between two masters there is none for a moment."""
    return pid_in(server.folder / "pid")


def goes_with_quit(record: Record, workers: set[int], left: float, last: float, gone: float) -> bool:
    """Tell whether a failed request was in a master that was told to quit at `left`, and waits for nothing.

    Args:
        last: when the last request began that this master has answered: so long it did not know yet
    """
    if record.outcome == "404":
        return record.owner in workers and record.end >= left
    if record.outcome == "refused" or not left <= record.end <= gone + 0.5:
        return False
    return record.start <= max(left, last) + 0.2 or record.last_pid in workers or record.owner in workers


@each_fault(3, "ip", "session")
def test_upgrade_and_the_way_back(kind: Kind, by: str):
    options = ("--pid", "pid", "--graceful-timeout", str(GRACE))
    with busy_server(by, 2, *options, kind=kind, control_socket=True) as server:
        wait_until_ready(server, 2)
        load = Load(server, by)
        try:
            load.wait_for_everybody()
            quits: list[tuple[set[int], float, float, float]] = []
            for _ in range(times(1, 5)):
                first = set(server.alive("worker"))
                # There and back again.
                new, second, since = upgrade(server, load)
                load.wait_for_answers(time.monotonic(), CLIENTS)
                left = time.monotonic()
                os.kill(new, signal.SIGQUIT)
                wait_for(lambda: not Path(f"/proc/{new}").exists(), "the new master to end")  # noqa: B023
                gone = time.monotonic()
                load.wait_for_answers(gone, CLIENTS)
                assert not (server.folder / "pid.2").exists()
                assert master(server) == server.pid
                last = max(r.start for r in load.records if r.pid in second)
                quits.append((second, left, last, gone))
                failed = [r for r in load.records if r.failed]
                assert_nothing([r for r in failed if not any(goes_with_quit(r, *q) for q in quits)], "failed", left)
                assert_nothing(
                    [
                        r
                        for r in load.records
                        if since + 0.3 < r.start < left and not r.kept and not r.failed and r.pid in first - {r.owner}
                    ],
                    "served by the old master's workers beside the new one's",
                    since,
                )
                assert_nobody_moved(load)
            # And for good.
            new, second, since = upgrade(server, load)
            load.wait_for_answers(time.monotonic(), CLIENTS)
            left = time.monotonic()
            server.send_signal(signal.SIGTERM)
            server.process.wait(30)
            load.wait_for_answers(time.monotonic(), CLIENTS)
            wait_for(lambda: master(server) == new, "the new master's pid file")
            assert not (server.folder / "pid.2").exists()
            shown = control(server, "show workers")
            assert second <= {worker["pid"] for worker in shown["workers"]}, shown
            records = load.stop()
        finally:
            load.kill()
            if last := master(server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(last, signal.SIGTERM)
        check_ends(records)
        check_rate(load)
        lost = [r for r in records if r.failed and r.start > since]
        assert_nothing([r for r in lost if not (is_of(r, first) and r.end >= left + GRACE)], "failed", left)
        assert_nothing(
            [r for r in records if r.start > since + 0.3 and not r.kept and r.pid in first - {r.owner}],
            "served by the old master's workers beside the new one's",
            since,
        )
        assert_nobody_moved(load)
        wait_for(lambda: not Path(f"/proc/{new}").exists(), "the new master to end")
