"""What Gunicorn writes and sends: access log, error log, syslog and statsd, from all processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import pwd
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.harness import APPS, PATIENCE, STICKY, Server, addresses, request, wait_for

from gunicorn_sticky.arbiter.slot_log import SlotLog
from gunicorn_sticky.shared.board import MasterBoard
from gunicorn_sticky.status.snapshot import find

pytestmark = pytest.mark.features

CLIENTS = addresses(12)


def status(server: Server) -> dict[str, Any]:
    (found,) = find(server.pid)
    return found.status()


class Receiver:
    """Collects datagrams."""

    def __init__(self, receiver: socket.socket) -> None:
        self._socket = receiver
        self.port = receiver.getsockname()[1]
        self.lines: list[str] = []

    def receive(self) -> list[str]:
        """Return all that have come until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines.append(self._socket.recv(65536).decode())
        return self.lines


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # what finds no room is lost
        datagrams.setblocking(False)
        yield Receiver(datagrams)


def test_access_log():
    form = '%(h)s "%(r)s" %(s)s %(B)s %(p)s %({X-A}i)s %({content-type}o)s %({gunicorn_sticky.slot}e)s'
    args = ("--access-logfile", "access.log", "--access-logformat", form)
    with Server(*STICKY, "-w", "2", *args, "whoami:app") as server:
        found = {client: server.get(f"/there?of={client}", source=client, headers={"X-A": "b"}) for client in CLIENTS}
        log = server.folder / "access.log"
        wait_for(lambda: len(log.read_text().splitlines()) == len(CLIENTS), "the lines")
        for client, response in found.items():
            who = json.loads(response.body)
            line = (
                f'{client} "GET /there?of={client} HTTP/1.1" 200 {len(response.body)} <{who["pid"]}> b application/json'
            )
            assert f"{line} {who['slot']}" in log.read_text().splitlines()
    assert len({json.loads(response.body)["slot"] for response in found.values()}) == 2


def test_access_log_of_a_connection_that_moves():
    """A request is logged once, by the worker that serves it."""
    form = "%({X-Forwarded-For}i)s %({gunicorn_sticky.key}e)s %(p)s"
    args = ("--sticky-proxy", "--keep-alive", "60", "--access-logfile", "access.log", "--access-logformat", form)
    with Server(*STICKY, "-w", "2", *args, "whoami:app") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        expected = []
        for number in range(20):
            connection.request("GET", "/", headers={"X-Forwarded-For": f"10.0.0.{number}"})
            who = json.loads(connection.getresponse().read())
            expected.append(f"10.0.0.{number} 10.0.0.{number} <{who['pid']}>")
        connection.close()
        log = server.folder / "access.log"
        wait_for(lambda: len(log.read_text().splitlines()) >= 20, "the lines")
        assert sorted(log.read_text().splitlines()) == sorted(expected)


def test_level():
    with Server(*STICKY, "-w", "2", "--log-level", "warning", "whoami:app") as server:
        wait_for(lambda: len(server.children()) == 3, "workers and dispatcher")
        assert server.stop() == 0
        assert server.log == ""


LOGS = ("--error-logfile", "logs/error.log", "--access-logfile", "logs/access.log", "--sticky-proxy")


@contextlib.contextmanager
def logs_in_files(*options: str, config: str = "") -> Iterator[tuple[Server, Path, int]]:
    """Have a server that has answered, with its folder of logs, and its port."""
    options = (*STICKY, "-w", "2", "--sticky-status", "127.0.0.1:0", *LOGS, *options, "whoami:app")
    with Server(*options, config=f"import os\nos.makedirs('logs', exist_ok=True)\n{config}") as server:
        logs = server.folder / "logs"
        log = logs / "error.log"
        for line in ("Status at", "Slot 0: ready", "Slot 1: ready"):  # until then, signals are lost
            wait_for(lambda: log.exists() and line in log.read_text(), line)  # noqa: B023
        port = int(re.findall(r"Listening at: http://127.0.0.1:(\d+)", log.read_text())[0])
        assert request(port, headers={"X-Forwarded-For": "1"}).status == 200
        yield server, logs, port


def writes(logs: Path, port: int) -> bool:
    """Tell whether a worker and the dispatcher write to the files in a folder."""
    mark = str(time.monotonic())
    assert request(port, path=f"/{mark}", headers={"X-Forwarded-For": "1"}).status == 200
    assert request(port).status == 400
    return mark in (logs / "access.log").read_text() and "Refused" in (logs / "error.log").read_text()


def test_logs_that_cannot_be_reopened_are_written_on():
    with logs_in_files() as (server, logs, port):
        before = server.children()
        old = logs.rename(server.folder / "old")
        for pid in before:
            os.kill(pid, signal.SIGUSR1)
        error = old / "error.log"
        wait_for(lambda: error.read_text().count("still writes to the old log files") == 4, "four lines")
        assert str(logs / "error.log") in error.read_text()
        assert "(setting: user)" in error.read_text()
        wait_for(lambda: writes(old, port), "the old files to be written")
        # And when that is mended, the new ones are.
        logs.mkdir()
        server.send_signal(signal.SIGUSR1)
        wait_for((logs / "access.log").exists, "new files")
        wait_for(lambda: writes(logs, port), "the new files to be written")
        assert server.children() == before
        assert "Traceback" not in server.log


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_logs_in_a_folder_of_root(mode: int):
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    # The Python that runs the tests may be one that only its owner can read: the workers keep theirs, and what gevent
    # would import late is here already.
    config = """
import gevent
gevent.config.loop, gevent.config.format_context, gevent.config.threadpool, gevent.config.resolver
def post_fork(server, worker):
    worker.cfg.set("user", None)
    worker.cfg.set("group", None)
"""
    with logs_in_files("--user", entry.pw_name, "--group", str(entry.pw_gid), config=config) as (server, logs, port):
        before = server.children()
        server.folder.chmod(0o755)
        logs.chmod(mode)
        for name in ("error", "access"):
            (logs / f"{name}.log").rename(logs / f"{name}.old")
        server.send_signal(signal.SIGUSR1)
        wait_for((logs / "access.log").exists, "new files")
        if mode == 0o755 or os.geteuid() != 0:
            wait_for(lambda: writes(logs, port), "the new files to be written")
        else:
            said = f"User {entry.pw_uid} still writes to the old log files"
            wait_for(lambda: (logs / "error.old").read_text().count(said) == 2, "two lines")
        assert request(port, headers={"X-Forwarded-For": "1"}).status == 200
        assert server.children() == before
        assert "Traceback" not in server.log


def test_output_of_the_application():
    args = ("--error-logfile", "log", "--capture-output")
    with Server(*STICKY, "-w", "1", *args, "process:app") as server:
        assert server.get("/print").status == 200
        server.wait_for_log("printed by the application")


@pytest.mark.parametrize("setting", ["logconfig_dict", "logconfig_json", "logconfig"])
def test_log_configuration(setting: str):
    tables = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "SHORT %(process)d %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "own.log", "formatter": "short"}},
        "root": {"level": "INFO", "handlers": ["file"]},
        "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["file"], "propagate": False}},
    }
    text = """
[loggers]
keys=root,gunicorn.error
[handlers]
keys=file
[formatters]
keys=short
[logger_root]
level=INFO
handlers=file
[logger_gunicorn.error]
level=INFO
handlers=file
propagate=0
qualname=gunicorn.error
[handler_file]
class=FileHandler
formatter=short
args=("own.log",)
[formatter_short]
format=SHORT %(process)d %(message)s
"""
    # The files have to be there before Gunicorn reads its configuration, so that writes them.
    config = f"""
import json
with open("log.json", "w") as file:
    json.dump({tables!r}, file)
with open("log.ini", "w") as file:
    file.write({text!r})
{setting} = {({"logconfig_dict": tables, "logconfig_json": "log.json", "logconfig": "log.ini"})[setting]!r}
workers = 1
"""
    with Server(*STICKY, "whoami:app", config=config) as server:
        log = server.folder / "own.log"
        expected = ("Starting gunicorn", "Booting worker", "Booting dispatcher")
        wait_for(lambda: log.exists() and all(text in log.read_text() for text in expected), "the lines")
        assert all(line.startswith("SHORT ") for line in log.read_text().splitlines())
        assert server.log == ""


def test_logger_class_of_ones_own(tmp_path: Path):
    (tmp_path / "loud.py").write_text(
        "from gunicorn.glogging import Logger\n\n"
        "class Loud(Logger):\n"
        "    def info(self, message, *args, **kwargs):\n"
        "        super().info('Hear, hear! ' + message, *args, **kwargs)\n"
    )
    args = ("--logger-class", "loud.Loud")
    with Server(*STICKY, "-w", "1", *args, "whoami:app", env={"PYTHONPATH": f"{tmp_path}:{APPS}"}) as server:
        server.wait_for_log(r"Hear, hear! Booting worker with pid: \d")
        server.wait_for_log(r"Hear, hear! Booting dispatcher with pid: \d")


def test_syslog():
    with receiver() as syslog:
        target = f"udp://127.0.0.1:{syslog.port}"
        args = ("--log-syslog", "--log-syslog-to", target, "--log-syslog-prefix", "shop", "--access-logfile", "-")
        with Server(*STICKY, "-w", "1", *args, "whoami:app") as server:
            assert server.get("/there").status == 200
            for text in ("Booting worker", "Booting dispatcher", "GET /there"):
                wait_for(lambda: any(text in line and "shop" in line for line in syslog.receive()), text)  # noqa: B023


# --- slots ---


def slot_lines(server: Server, slot: int) -> list[str]:
    """Return what the log says of a slot: levels and states, with the workers in the order of their appearance."""
    lines = re.findall(rf"\[(\w+)\] Slot {slot}: (\w+)(?: \(pid: (\d+)\))?$", server.log, re.MULTILINE)
    pids = list(dict.fromkeys(pid for _, _, pid in lines if pid))
    return [f"{level} {state} {pids.index(pid)}" if pid else f"{level} {state}" for level, state, pid in lines]


def wait_for_slot(server: Server, slot: int, *lines: str) -> None:
    """Wait for the log to say this of a slot, and nothing else."""
    wait_for(lambda: slot_lines(server, slot)[-1:] == list(lines[-1:]), f"{lines[-1]} in {slot_lines(server, slot)}")
    assert slot_lines(server, slot) == list(lines)


BOOTED = ("INFO starting 0", "INFO ready 0")


def test_a_worker_that_is_ready_before_the_master_looks_has_started(caplog: pytest.LogCaptureFixture):
    board, log = MasterBoard(), logging.getLogger(__name__)
    board.slots = 1
    slots = SlotLog(board)
    caplog.set_level(logging.INFO)
    for pid, seat in ((11, 0), (12, 1)):
        board.take(seat, owner=pid, age=pid)
        board.shared().activate(0, seat)
        slots.look(log, 1, {seat: pid})
    slots.look(log, 1, {1: 12})
    board.leave(0)
    board.leave(1)
    slots.look(log, 1, {})
    assert caplog.messages == [
        "Slot 0: starting (pid: 11)",
        "Slot 0: ready (pid: 11)",
        "Slot 0: ready (pid: 12)",
        "Slot 0: down",
    ]


def test_a_slot_whose_worker_is_killed():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        wait_for_slot(server, 0, *BOOTED)
        wait_for_slot(server, 1, *BOOTED)
        pid = int(server.wait_for_log(r"Slot 1: ready \(pid: (\d+)\)").group(1))
        assert pid in server.alive("worker")
        os.kill(pid, signal.SIGKILL)
        wait_for_slot(server, 1, *BOOTED, "WARNING down", "INFO starting 1", "INFO ready 1")
        wait_for_slot(server, 0, *BOOTED)


def test_a_slot_whose_worker_is_told_to_end():
    with Server(*STICKY, "-w", "2", "--sticky-by", "session", "whoami:app") as server:
        wait_for_slot(server, 0, *BOOTED)
        wait_for_slot(server, 1, *BOOTED)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as held:
            held.request("GET", "/hold")  # so that it is there for a while
            wait_for(lambda: status(server)["imbalance"] == 2, "the request to be under way")
            slot = max(status(server)["slots"], key=lambda slot: slot["workers"][0]["connections"])
            os.kill(slot["workers"][0]["pid"], signal.SIGTERM)
            wait_for(lambda: slot_lines(server, slot["slot"])[-1] == "INFO ready 1", "its successor")
            (server.folder / "release").touch()
            assert held.getresponse().status == 200
        lines = slot_lines(server, slot["slot"])
        assert [line for line in lines if line != "INFO draining 0"] == [*BOOTED, "INFO starting 1", "INFO ready 1"]


def test_slots_over_reload_resize_and_end():
    config = "workers = 2"
    with Server(*STICKY, "whoami:app", config=config) as server:
        wait_for_slot(server, 0, *BOOTED)
        wait_for_slot(server, 1, *BOOTED)
        server.wait_for_log(r"\[INFO\] Sticky sessions by ip; IPv6 prefix: 64; slots: 2$")
        server.send_signal(signal.SIGTTIN)
        server.wait_for_log(r"by ip; IPv6 prefix: 64; slots: 3$")
        wait_for_slot(server, 2, *BOOTED)
        server.send_signal(signal.SIGTTOU)
        server.wait_for_log(r"slots: 2$", count=2)
        # No client notices that a worker is replaced.
        server.send_signal(signal.SIGHUP)
        wait_for_slot(server, 0, *BOOTED, "INFO ready 1")
        wait_for_slot(server, 1, *BOOTED, "INFO ready 1")
        server.configure(f"{config}\nsticky_by = 'session'")
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"Sticky sessions by session \(query:sid, .*\); balance: least-connections; slots: 2$")
        wait_for_slot(server, 1, *BOOTED, "INFO ready 1", "INFO ready 2")
        assert server.log.count("Sticky sessions by") == 4
        wait_for_slot(server, 2, *BOOTED)
        assert server.stop() == 0
        assert "[WARNING]" not in server.log


@pytest.mark.parametrize(
    ("number", "everybody"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGQUIT, False)],
)
def test_no_alarm_at_the_end(number: int, everybody: bool):
    """Also if a terminal or a container sends the signal to all processes."""
    with Server(*STICKY, "-w", "1", "whoami:app") as server:
        server.wait_for_log(r"Slot 0: ready")
        if everybody:
            os.killpg(server.pid, number)
        else:
            server.send_signal(number)
        assert server.process.wait(PATIENCE) == 0
        assert ": down" not in server.log


def test_slots_of_two_masters():
    with Server(*STICKY, "-w", "2", "--pid", "pid", "whoami:app") as server:
        server.wait_for_log(r"Slot \d: ready", count=2)
        server.send_signal(signal.SIGUSR2)
        server.wait_for_log(r"Slot \d: ready", count=4)
        new = int((server.folder / "pid.2").read_text())
        server.wait_for_log(rf"\[{new}\] \[INFO\] Slot 1: ready")
        server.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
        server.pid = new
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not server.is_running, "the end of the new master")
        assert ": down" not in server.log


# --- statsd ---


def sent(statsd: Receiver, start: str) -> list[str]:
    return [line for line in statsd.receive() if line.startswith(start)]


def test_statsd():
    with receiver() as statsd:
        args = ("--statsd-host", f"127.0.0.1:{statsd.port}", "--statsd-prefix", "shop", "--dogstatsd-tags", "a:b")
        with Server(*STICKY, "-w", "2", *args, "whoami:app") as server:
            before = server.slots(CLIENTS)
            for start in ("requests:1|c|@1.0|#a:b", "request.status.200:1|c", "request.duration:"):
                wait_for(lambda: len(sent(statsd, f"shop.gunicorn.{start}")) == len(CLIENTS), start)  # noqa: B023
            wait_for(lambda: sent(statsd, "shop.gunicorn.workers:2|g|#a:b"), "the number of workers")
            server.send_signal(signal.SIGTTIN)
            wait_for(lambda: sent(statsd, "shop.gunicorn.workers:3|g"), "another number of workers")
            server.send_signal(signal.SIGTTOU)
            wait_for(lambda: sent(statsd, "shop.gunicorn.workers:")[-1].startswith("shop.gunicorn.workers:2|g"), "two")
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
            assert server.slots(CLIENTS) == before


def test_statsd_hears_of_the_dispatchers_warnings():
    with receiver() as statsd:
        args = ("--sticky-proxy", "--statsd-host", f"127.0.0.1:{statsd.port}")
        with Server(*STICKY, "-w", "1", *args, "whoami:app") as server:
            assert request(server.port).status == 400  # without the header
            wait_for(lambda: sent(statsd, "gunicorn.log.warning:1|c"), "the warning")


def test_the_backlog_counts_what_waits_for_a_worker():
    with receiver() as statsd, contextlib.ExitStack() as stack:
        args = ("--statsd-host", f"127.0.0.1:{statsd.port}", "--enable-backlog-metric", "--timeout", "60")
        server = stack.enter_context(Server(*STICKY, "-w", "2", *args, "whoami:app"))

        def backlogs(after: str = "") -> list[int]:
            """Return the values that have been sent, or of those the ones that came after the last such line."""
            lines = statsd.receive()
            start = max([n for n, line in enumerate(lines) if after and line.startswith(after)], default=0)
            return [int(line[17:].removesuffix("|h")) for line in lines[start:] if line.startswith("gunicorn.backlog:")]

        victim = server.who(source=CLIENTS[0])["pid"]
        os.kill(victim, signal.SIGSTOP)
        clients = []
        for _ in range(50):
            client = socket.create_connection(("127.0.0.1", server.port), PATIENCE, (CLIENTS[0], 0))
            stack.callback(client.close)
            client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            clients.append(client)
        # The kernel tells what the messages in a channel weigh, not how many they are.
        wait_for(lambda: any(40 <= value <= 100 for value in backlogs()), "50 connections in the backlog")
        assert max(backlogs()) <= 100
        os.kill(victim, signal.SIGCONT)
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * 50
        # Older versions of Gunicorn send no zeros, so look at what comes between two other values.
        server.send_signal(signal.SIGTTIN)
        wait_for(lambda: sent(statsd, "gunicorn.workers:3|g"), "the number of workers")
        server.send_signal(signal.SIGTTOU)
        wait_for(lambda: sent(statsd, "gunicorn.workers:")[-1] == "gunicorn.workers:2|g", "the number of workers")
        assert not any(backlogs(after="gunicorn.workers:3|g"))
