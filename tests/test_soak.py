"""The soak's judge (soak_judge.py): what it excuses, and what not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from soak_judge import History, Judge, Process, Window
from support.under_load import Record

pytestmark = pytest.mark.features

GRACE, BOUND = 2.0, 15.0
RECORD = Record(
    client="127.1.0.1",
    kind="request",
    kept=False,
    split=False,
    start=10.0,
    end=10.1,
    seconds=0.0,
    outcome="200",
    slot=1,
    pid=101,
    began=None,
    last_slot=None,
    last_pid=None,
    owner=None,
    retry_after=-1.0,
    opened=10.0,
)


def answered(**changes: Any) -> Record:
    return dataclasses.replace(RECORD, **changes)


def failed(**changes: Any) -> Record:
    return dataclasses.replace(RECORD, **({"outcome": "reset", "slot": None, "pid": None} | changes))


#: The client's slot, by a request of an earlier time.
BEFORE = answered(start=1.0, end=1.1, opened=1.0)


def worker(pid: int = 101, slot: int = 1, **changes: Any) -> Process:
    return Process(pid, "worker", **({"born": 0.0, "slot": slot, "master": 100} | changes))


def dispatcher(**changes: Any) -> Process:
    return Process(99, "dispatcher", **({"born": 0.0, "master": 100} | changes))


def found(
    *records: Record,
    by: str = "ip",
    processes: tuple[Process, ...] = (),
    windows: tuple[Window, ...] = (),
    proxied: bool = False,
) -> list[str]:
    history = History({process.pid: process for process in processes}, list(windows))
    return [finding.what for finding in Judge(by, proxied, history, GRACE, BOUND).findings([BEFORE, *records])]


KILLED = worker(gone=10.05, killed=True)


@pytest.mark.parametrize(
    ("what", "record", "processes"),
    [
        ("nothing has happened", failed(), [worker()]),
        ("another slot's worker was killed", failed(), [worker(), worker(102, 0, gone=10.05, killed=True)]),
        ("it came after the worker's end", failed(start=10.5, end=10.51), [KILLED]),
        ("it failed long after that", failed(end=11.0), [KILLED]),
        (
            "the worker stood still and could not take it",
            failed(start=9.0),
            [worker(gone=10.05, killed=True, stopped=8.0)],
        ),
        ("its worker has ended by itself", failed(last_pid=101), [worker(gone=10.05, leaving=9.0)]),
        ("its worker had more time", failed(last_pid=101), [worker(gone=10.05, leaving=9.0, forced=10.0)]),
        ("the dispatcher was killed before", failed(), [worker(), dispatcher(killed=True, gone=9.0)]),
        ("on an established connection", failed(kept=True), [worker(), dispatcher(killed=True, gone=10.05)]),
        ("its session's worker lives", failed(outcome="404", owner=101), [worker()]),
    ],
)
def test_lost_beyond_promise(what: str, record: Record, processes: list[Process]):
    assert "failed" in found(record, processes=tuple(processes)), what


@pytest.mark.parametrize(
    ("what", "record", "processes"),
    [
        ("it was for the worker that was killed", failed(), [KILLED]),
        ("it was on a connection of that worker", failed(client="127.9.9.9", last_pid=101), [KILLED]),
        ("that worker could wait no longer", failed(last_pid=101), [worker(gone=10.5, leaving=7.0, forced=10.0)]),
        ("the dispatcher had it in its hands", failed(), [worker(), dispatcher(killed=True, gone=10.05)]),
        ("half its head was there", failed(split=True, seconds=0.15), [dispatcher(killed=True, gone=10.2)]),
        ("that worker had waited for it", failed(start=7.5), [worker(gone=10.5, leaving=7.0, forced=10.0)]),
        ("its session is gone", failed(outcome="404", owner=101), [worker(gone=9.0, leaving=5.0)]),
        ("its master has ended, and did not wait", failed(last_pid=101), [worker(gone=10.2, leaving=8.0)]),
    ],
)
def test_not_beyond_promise(what: str, record: Record, processes: list[Process]):
    assert "failed" not in found(record, processes=tuple(processes)), what


def test_a_dispatcher_has_one_connection_in_its_hands():
    records = [failed(client=f"127.1.0.{n}") for n in range(3)]
    assert found(*records, processes=(worker(), dispatcher(killed=True, gone=10.05))) == ["failed"] * 2


def test_behind_a_proxy_a_worker_takes_along_whatever_it_had():
    assert found(failed(client="127.9.9.9"), proxied=True, processes=(KILLED,)) == []


def test_hanging():
    assert found(answered(end=40.0), processes=(worker(),)) == ["hung"]
    assert found(answered(end=24.0), processes=(worker(),)) == []
    assert found(answered(end=40.0), processes=(worker(ready=10.0),)) == []  # it may have to wait for such a boot


def test_another_slot():
    moved = answered(slot=0, pid=102)
    assert found(moved, processes=(worker(), worker(102, 0))) == ["answered by another worker"]
    assert found(moved, processes=(worker(), worker(102, 0)), windows=(Window("slots", 9.0, 12.0),)) == []


def test_another_worker_than_the_sessions():
    moved = answered(owner=103, pid=101)
    assert found(moved, by="session", processes=(worker(), worker(103))) == ["answered by another worker"]
    assert found(moved, by="session", processes=(worker(), worker(103, gone=5.0, killed=True))) == []
    orphan = worker(103, leaving=9.9, gone=10.5, killed=True)
    assert found(moved, by="session", processes=(worker(), orphan)) == []
    drains = worker(103, leaving=9.9, gone=10.5)
    assert found(moved, by="session", processes=(worker(), drains)) == ["answered by another worker"]


def test_back_to_an_older_worker():
    new, back = answered(start=5.0, end=5.1, pid=103), answered()
    assert found(new, back, processes=(worker(), worker(103, born=4.0))) == ["went back to an older worker"]
    assert found(new, back, processes=(worker(), worker(103, born=4.0, gone=7.0, killed=True))) == []
    # An older master's replacement has answered before the new master accepted.
    old = (worker(102, slot=2, master=99, born=-5.0), worker(103, master=99, born=4.0))
    assert found(answered(start=0.1, end=0.2, pid=103), back, processes=(worker(), *old)) == []


def test_a_worker_that_ends_without_a_reason():
    assert found(processes=(worker(gone=7.0),)) == ["worker 101 of slot 1 has ended without a reason"]
    assert found(processes=(worker(gone=7.0, leaving=5.0),)) == []


def test_a_request_that_was_routed_anew_and_to_a_worker_that_was_killed():
    lost = failed(owner=103, start=9.5)
    assert found(lost, by="session", processes=(KILLED, worker(103, slot=2, gone=9.6, leaving=8.0))) == []
    assert found(lost, by="session", processes=(KILLED, worker(103, slot=2))) == ["failed"]


def test_a_socketio_session():
    lost = failed(kind="sio", pid=101, owner=101, last_pid=101, opened=5.0)
    assert found(lost, processes=(worker(),)) == ["failed"]
    assert found(lost, processes=(worker(), worker(103, born=9.0))) == []  # its slot has a successor
    assert found(lost, by="session", processes=(worker(), worker(103, born=9.0))) == ["failed"]
    drains = worker(born=4.0, leaving=9.5)
    assert found(lost, processes=(drains, worker(103, born=1.0))) == []  # its slot is an older master's again
    assert found(lost, processes=(worker(leaving=11.0), worker(103, born=-1.0))) == ["failed"]
    assert found(lost, by="session", processes=(drains, worker(103, born=1.0))) == ["failed"]
    assert found(lost, by="session", processes=(KILLED,)) == []


def test_a_request_of_a_socketio_session_in_the_hands_of_another_worker():
    # A proxy's connection led to one that stood still, which was killed; the client noticed in the end.
    lost = failed(kind="sio", pid=101, owner=101, last_pid=101, opened=5.0, start=6.0, end=26.0)
    other = worker(103, slot=2, stopped=5.5, gone=12.0, killed=True)
    assert found(lost, by="session", processes=(worker(), other), proxied=True) == []
    assert found(lost, by="session", processes=(worker(), other)) == ["failed"]
    earlier = worker(103, slot=2, gone=5.0, killed=True)
    assert found(lost, by="session", processes=(worker(), earlier), proxied=True) == ["failed"]
