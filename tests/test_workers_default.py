"""How many workers there are if nobody says so: one for each CPU that the process may use."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Mapping, Sequence

import pytest
from support.harness import BIN, STICKY, Server, wait_for

from gunicorn_sticky import configuration

pytestmark = pytest.mark.features

LINE = r"Number of workers not given: (\d+), one per CPU"
ONE_CPU = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), str(BIN / "gunicorn"))


def workers(server: Server, count: int) -> None:
    """Wait until `count` workers run, and the dispatcher, which starts when all of them have."""
    wait_for(lambda: server.alive("dispatcher") and len(server.alive("worker")) == count, f"{count} workers")


def test_one_for_each_cpu():
    with Server(*STICKY, "whoami:app") as server:
        workers(server, configuration.available_cpus())
        assert server.wait_for_log(LINE).group(1) == str(configuration.available_cpus())


def test_one_for_each_cpu_that_this_process_may_use():
    with Server(*STICKY, "whoami:app", command=ONE_CPU) as server:
        workers(server, 1)
        assert server.wait_for_log(LINE).group(1) == "1"
        server.who()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(LINE, count=2)
        server.wait_for_log("Booting worker", count=2)
        wait_for(lambda: server.alive("worker") == server.booted("worker")[1:], "the old worker's end")


@pytest.mark.parametrize(
    ("args", "config", "env"),
    [
        (["-w", "1"], "", {}),
        ([], "workers = 1\n", {}),
        ([], "", {"WEB_CONCURRENCY": "1"}),
        ([], "", {"GUNICORN_CMD_ARGS": "--workers 1"}),
    ],
    ids=["option", "file", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"],
)
def test_one_that_was_asked_for(args: Sequence[str], config: str, env: Mapping[str, str]):
    with Server(*STICKY, *args, "whoami:app", config=config, env=env) as server:
        workers(server, 1)
        server.who()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Booting worker", count=2)
        wait_for(lambda: server.alive("worker") == server.booted("worker")[1:], "the old worker's end")
        server.who()
        assert server.stop() == 0
        assert "not given" not in server.log
        assert len(server.booted("worker")) == 2


def test_a_reload_gives_and_omits_the_number():
    with Server(*STICKY, "whoami:app", config="workers = 3\n") as server:
        workers(server, 3)
        server.configure("")
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(LINE)
        workers(server, configuration.available_cpus())
        server.configure("workers = 3\n")
        server.send_signal(signal.SIGHUP)
        workers(server, 3)


def test_a_worker_class_that_is_not_sticky_keeps_its_default():
    with Server("-k", "gthread", "whoami:app") as server:
        server.who()
        assert server.stop() == 0
        assert len(server.booted("worker")) == 1
        assert "not given" not in server.log


@pytest.mark.parametrize(
    ("affinity", "files", "expected"),
    [
        (4, {}, 4),
        (4, {"/proc/self/cgroup": "0::/\n"}, 4),
        (4, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        (4, {"/proc/self/cgroup": "1:cpu:/\n0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (4, {"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 1),
        (1, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "800000 100000\n"}, 1),
        (4, {"/proc/self/cgroup": "1:cpu:/\n"}, 4),
    ],
)
def test_available_cpus(monkeypatch, affinity, files, expected):
    def fake_open(path: str, *args: object) -> io.StringIO:
        try:
            return io.StringIO(files[os.path.normpath(path)])
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(configuration, "open", fake_open, raising=False)
    assert configuration.available_cpus() == expected
