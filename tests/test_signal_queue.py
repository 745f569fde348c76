"""The queue of a master's signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import Empty

import pytest
from support.harness import PATIENCE, Server

from gunicorn_sticky.arbiter.signal_queue import SignalQueue


@pytest.fixture
def alarms() -> Iterator[SignalQueue]:
    """A queue that a signal is put in every 0.3 ms."""
    queue = SignalQueue()
    before = signal.signal(signal.SIGALRM, lambda number, _frame: queue.put_nowait(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    yield queue
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_signals_come_in_order() -> None:
    queue = SignalQueue()
    for number in (1, 2, 3):
        queue.put_nowait(number)
    assert [queue.get(), queue.get_nowait(), queue.get(timeout=1)] == [1, 2, 3]
    with pytest.raises(Empty):
        queue.get_nowait()


def test_a_time_limit_is_kept() -> None:
    queue = SignalQueue()
    began = time.monotonic()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    assert time.monotonic() - began >= 0.05
    for timeout in (0, 1e-9):
        with pytest.raises(Empty):
            queue.get(timeout=timeout)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_another_thread_wakes_who_waits(timeout: float | None) -> None:
    queue = SignalQueue()
    threading.Timer(0.05, queue.put_nowait, [7]).start()
    assert queue.get(timeout=timeout) == 7


def test_handlers_put_in_at_any_instruction(alarms: SignalQueue) -> None:
    """None is lost, whatever it interrupts: a handler of another signal as well."""
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: alarms.put_nowait(number))
    for _ in range(300):
        signal.raise_signal(signal.SIGUSR1)
        while alarms.get(timeout=PATIENCE) != signal.SIGUSR1:
            pass
    signal.signal(signal.SIGUSR1, before)


HURRIED = """
import random
from queue import Empty
from gunicorn_sticky.arbiter.signal_queue import SignalQueue
queue = SignalQueue()
for _ in range(100_000):
    queue.put_nowait(1)
    queue.get_nowait()
    try:
        queue.get(timeout=random.choice((1e-6, 2e-6, 3e-6, 5e-6)))
    except Empty:
        pass
"""


def test_time_that_is_over_in_the_middle_does_not_make_it_wait_for_ever() -> None:
    # On a busy machine each of its waits ends late.
    subprocess.run([sys.executable, "-c", HURRIED], check=True, timeout=600)


BUSY = """
def when_ready(server):
    # As on a machine that pauses the master for as long as it would have waited.
    wait = server.wait_for_signals
    server.wait_for_signals = lambda timeout=1.0: wait(2e-6)
"""


def test_a_master_whose_waits_are_over_at_once_goes_on() -> None:
    """It starts a worker in the place of one that hangs, which no signal tells it of."""
    options = ["-k", "gunicorn_sticky.GeventStickyWorker", "-w", "2", "--timeout", "10", "whoami:app"]
    with Server(*options, config=BUSY) as server:
        server.wait_for_log(r"Slot \d: ready", count=2)
        worker = server.alive("worker")[0]
        os.kill(worker, signal.SIGSTOP)
        server.wait_for_log(rf"WORKER TIMEOUT \(pid:{worker}\)")
