"""The status, by Gunicorn's statsd logger."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.instrument.statsd import Statsd
from support.harness import APPS, PATIENCE, STICKY, Server, addresses, wait_for
from support.statsd import Agent, agent

from gunicorn_sticky.shared.board import SEATS, Board
from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.status import statsd
from gunicorn_sticky.status.snapshot import Server as Status
from gunicorn_sticky.status.statsd import Reporter

pytestmark = pytest.mark.features

CLIENTS = addresses(24)


def hear(heard: Agent, action: Callable[[], object], what: str) -> None:
    """Read what is sent while something else is done, or a socket would be full: metrics get lost, or workers wait."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        wait_for(lambda: heard.read() and done.done(), what, 2 * PATIENCE)
    done.result()


def ask(heard: Agent, server: Server) -> None:
    """Send a request of each client."""
    hear(heard, lambda: server.slots(CLIENTS), "all answers")


# --- with the real server ---


@pytest.mark.parametrize("options", ["udp", "udp with prefix and tags", "unix"])
def test_metrics_are_sent(options: str, tmp_path: Path):
    address = str(tmp_path / "agent") if options == "unix" else ("127.0.0.1", 0)
    form: dict[str, str] = {}
    args: tuple[str, ...] = ()
    if "prefix" in options:
        form = {"prefix": "shop.", "tags": "|#zone:a,app:b"}
        args = ("--statsd-prefix", "shop", "--dogstatsd-tags", "zone:a,app:b")
    with (
        agent(address, **form) as (heard, host),
        Server(*STICKY, "-w", "2", "--keep-alive", "60", "--statsd-host", host, *args, "whoami:app") as server,
    ):
        ask(heard, server)
        wait_for(lambda: heard.read().of_slots("requests") == len(CLIENTS), "all requests")
        # A report is many datagrams: those of other metrics come after those of requests.
        wait_for(lambda: heard.read().of_slots("dispatched") == len(CLIENTS), "all connections")
        wait_for(lambda: heard.read().of_slots("cpu_ms") > 0, "the time that they took")
        wait_for(lambda: heard.read().gauges["slots_ready"] == 2, "all workers")
        assert heard.counters["dispatcher.accepted"] == heard.counters["dispatcher.keys.ip"] == len(CLIENTS)
        for slot in (0, 1):
            assert heard.gauges[f"slot.{slot}.state"] == 3
            assert heard.gauges[f"slot.{slot}.memory_bytes"] > 1 << 20
        with ExitStack() as stack:
            for _ in range(6):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for(
                lambda: {heard.read().gauges[f"slot.{slot}.connections"] for slot in (0, 1)} == {0, 6},
                "six connections at one worker",
            )
            assert heard.gauges["imbalance"] == 2
        wait_for(lambda: not any(heard.read().gauges[f"slot.{slot}.connections"] for slot in (0, 1)), "their end")
        # A report is many datagrams: those of the connections may have come before those of their requests.
        wait_for(lambda: heard.read().of_slots("requests") == len(CLIENTS) + 6, "their requests")
        assert "Error sending" not in server.log


def test_counters_go_on_when_workers_are_replaced_and_slots_removed():
    with (
        agent(("127.0.0.1", 0)) as (heard, host),
        Server(*STICKY, "-w", "2", "--statsd-host", host, "whoami:app") as server,
    ):
        ask(heard, server)
        old = server.alive("worker")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: heard.read() and not {*old} & {*server.alive("worker")}, "the old workers' end")
        ask(heard, server)
        wait_for(lambda: heard.read().of_slots("requests") == 2 * len(CLIENTS), "the requests of both")
        assert heard.of_slots("restarts") == 2
        server.send_signal(signal.SIGTTOU)
        wait_for(lambda: heard.read().gauges["slots"] == 1, "one slot")
        wait_for(lambda: heard.read().gauges["slot.1.memory_bytes"] == 0, "the end of its gauges")
        server.send_signal(signal.SIGTTIN)
        wait_for(lambda: heard.read().gauges["slots_ready"] == 2, "two slots")
        ask(heard, server)
        wait_for(lambda: heard.read().of_slots("requests") >= 3 * len(CLIENTS), "the requests of all")
        assert heard.of_slots("requests") == 3 * len(CLIENTS)


def test_a_reader_that_stands_still_does_not_hold_up_the_arbiter(tmp_path: Path):
    with (
        agent(str(tmp_path / "agent")) as (heard, host),
        Server(*STICKY, "-w", "2", "--statsd-host", host, "whoami:app") as server,
    ):
        server.wait_for_log("Booting dispatcher")
        wait_for(lambda: heard.read().gauges.get("slots_ready") == 2, "the workers")
        fill(tmp_path / "agent")
        wait_for_reports(server)
        os.kill(server.alive("worker")[0], signal.SIGKILL)
        server.wait_for_log("was sent SIGKILL")  # which Gunicorn counts, by a metric
        server.wait_for_log("Booting worker", count=3)
        wait_for(lambda: heard.read().reports >= 5, "reports, now that they are read again")
        fill(tmp_path / "agent")
        assert server.stop() == 0


def fill(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
        sender.connect(str(path))
        sender.setblocking(False)
        while True:
            sender.send(b"knock")


def wait_for_reports(server: Server) -> None:
    """Wait until the master has gone to sleep a few times, which it does once a second."""

    def slept() -> int:
        match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", Path(f"/proc/{server.pid}/status").read_text(), re.M)
        assert match
        return int(match[1])

    before = slept()
    wait_for(lambda: slept() >= before + 5, "the arbiter's loop")


@pytest.mark.parametrize("kind", ["udp", "unix"])
def test_a_reader_that_goes_earns_no_flood_of_errors(kind: str, tmp_path: Path):
    address = str(tmp_path / "agent") if kind == "unix" else ("127.0.0.1", 0)
    with agent(address) as (heard, host), ExitStack() as stack:
        server = stack.enter_context(Server(*STICKY, "-w", "1", "--statsd-host", host, "whoami:app"))
        wait_for(lambda: heard.read().gauges.get("slots_ready") == 1, "the first report")
        stack = stack.pop_all()
    with stack:
        if kind == "unix":
            server.wait_for_log("Error sending message to statsd")
        wait_for_reports(server)
        assert server.log.count("Error sending message to statsd") == (kind == "unix")
        if kind == "udp":
            name, port = host.split(":")
            with agent((name, int(port))) as (heard, _host):
                wait_for(lambda: heard.read().reports >= 2, "reports, now that they are read again")


def test_a_logger_of_ones_own_is_given_the_metrics(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from gunicorn.glogging import Logger\n\n"
        "class Own(Logger):\n"
        "    def debug(self, message, *args, extra=None, **kwargs):\n"
        "        if extra:\n"
        "            print(extra['metric'], extra['mtype'], extra['value'], flush=True)\n"
    )
    args = ("--logger-class", "own.Own", "--statsd-host", "127.0.0.1:8125")
    with Server(*STICKY, "-w", "1", *args, "whoami:app", env={"PYTHONPATH": f"{tmp_path}:{APPS}"}) as server:
        server.wait_for_log(r"^gunicorn\.sticky\.slots_ready gauge 1$")
        server.get()
        server.wait_for_log(r"^gunicorn\.sticky\.slot\.0\.requests counter 1$")


def test_a_reload_keeps_the_agent():
    """As it does for Gunicorn's own metrics: the logger's socket is opened at the start."""
    with agent(("127.0.0.1", 0)) as (first, host), agent(("127.0.0.1", 0)) as (second, other):
        config = f"statsd_host = {host!r}\nworkers = 1\n"
        with Server(*STICKY, "whoami:app", config=config) as server:
            wait_for(lambda: first.read().gauges.get("slots_ready") == 1, "the worker")
            server.configure(config.replace(host, other))
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: first.read().counters["slot.0.restarts"] == 1, "its successor")
            assert not second.read().gauges
    with Server(*STICKY, "whoami:app", config="workers = 1\n") as server, agent(("127.0.0.1", 0)) as (heard, host):
        server.wait_for_log("Booting dispatcher")
        server.configure(f"statsd_host = {host!r}\nworkers = 1\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Booting worker", count=2)
        wait_for(lambda: len(server.alive("worker")) == 1, "the old worker's end")
        assert not heard.read().gauges


def test_of_two_masters_the_one_in_charge_is_heard():
    with (
        agent(("127.0.0.1", 0)) as (heard, host),
        Server(*STICKY, "-w", "2", "--statsd-host", host, "--pid", "pid", "whoami:app") as server,
    ):
        ask(heard, server)
        wait_for(lambda: heard.read().gauges.get("slots_ready") == 2, "the workers")
        server.send_signal(signal.SIGUSR2)
        hear(heard, lambda: server.wait_for_log(r"Master\.2 accepts connections now"), "the new master")
        ask(heard, server)
        wait_for(lambda: heard.read().of_slots("requests") == 2 * len(CLIENTS), "the requests of both masters")
        server.send_signal(signal.SIGTERM)
        hear(heard, lambda: server.process.wait(PATIENCE), "the old master's end")
        reports = heard.read().reports
        wait_for(lambda: heard.read().reports >= reports + 2, "the new one's reports")
        os.kill(int((server.folder / "pid").read_text()), signal.SIGTERM)


# --- what is sent, and when ---


class Log:
    """A logger that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def debug(self, message: str, extra: dict[str, Any]) -> None:
        assert message == ""
        self.sent.append(extra)

    def take(self, kind: str) -> dict[str, float]:
        sent, self.sent = self.sent, []
        return {found["metric"]: found["value"] for found in sent if found["mtype"] == kind}


class Rig:
    """A server of this process only, and its reporter."""

    def __init__(self) -> None:
        self.metrics, self.board, self.log = Metrics(), Board(), Log()
        self.board.slots = self.board.count = 2
        for slot in range(2):
            self.board.take(slot * SEATS, slot + 1, slot + 1)
            self.board.activate(slot, slot * SEATS)
            self.metrics.worker(slot * SEATS).pid.set(os.getpid())
        self.metrics.master().dispatchers.set(1)
        dispatcher = self.metrics.dispatcher(0)
        dispatcher.starts()
        dispatcher.pid.set(os.getpid())
        self.status = Status(self.metrics, self.board)
        self.reporter = Reporter(self.log, self.status)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(statsd, "INTERVAL", 0)
    return Rig()


def test_once_a_second(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statsd, "INTERVAL", 3600)
    rig.reporter.report()
    assert rig.log.take("gauge")
    rig.reporter.report()
    assert not rig.log.sent


def test_a_gauge_of_nothing_is_sent(rig: Rig):
    """Gunicorn's logger, before 26.1, leaves out a value that is false."""
    rig.reporter.report()
    gauges = rig.log.take("gauge")
    assert gauges["gunicorn.sticky.slot.0.connections"] == 0
    assert all(gauges.values())


def test_counters_are_sent_as_what_has_been_added(rig: Rig):
    rig.reporter.report()
    assert set(rig.log.take("counter")) <= {f"gunicorn.sticky.{of}.cpu_ms" for of in ("slot.0", "slot.1", "dispatcher")}
    requests = rig.metrics.worker(0).requests
    for total, expected in ((3, 3), (3, None), (10, 7), (1, None), (2, 1)):
        requests.cell[0] = total
        rig.reporter.report()
        assert rig.log.take("counter").get("gunicorn.sticky.slot.0.requests") == expected


class Overtaken:
    """A poll object after whose answer somebody else is faster."""

    def __init__(self, poll: Any, path: Path) -> None:
        self._poll, self._path = poll, path

    def poll(self, timeout: float) -> Any:
        found = self._poll.poll(timeout)
        fill(self._path)
        return found


def test_who_finds_no_room_at_the_last_moment_does_not_wait(rig: Rig, tmp_path: Path):
    with agent(str(tmp_path / "agent")) as (heard, host):
        cfg = Config()
        cfg.set("statsd_host", host)
        log = Statsd(cfg)
        with log.sock:
            reporter = Reporter(log, rig.status)
            rig.board.other().become_active_master()  # so it sends few metrics, for which there is room
            rig.metrics.worker(0).requests.cell[0] = 5
            poll = reporter._poll
            reporter._poll = Overtaken(poll, tmp_path / "agent")
            reporting = threading.Thread(target=reporter.report, daemon=True)
            reporting.start()
            reporting.join(PATIENCE)
            assert not reporting.is_alive()
            reporter._poll = poll

            def counted() -> bool:
                reporter.report()
                return heard.read().counters["slot.0.requests"] == 5

            wait_for(counted, "what has been counted, with nothing lost")
            log.sock.socket.close()


def test_cpu_time_begins_anew_with_a_process(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    name = "gunicorn.sticky.slot.0.cpu_ms"
    status = rig.status.status()
    (worker,) = status["slots"][0]["workers"]
    monkeypatch.setattr(rig.status, "status", lambda: status)
    for worker["pid"], worker["cpu_seconds"], expected in ((1, 0.5, 500), (1, 0.75, 250), (2, 0.1, 100), (1, 0.2, 200)):
        rig.reporter.report()
        assert rig.log.take("counter")[name] == expected


def test_who_is_not_in_charge_tells_no_gauges(rig: Rig):
    rig.board.other().become_active_master()
    rig.metrics.worker(0).requests.cell[0] = 5
    rig.reporter.report()
    sent = list(rig.log.sent)
    assert rig.log.take("gauge") == {}
    assert {"metric": "gunicorn.sticky.slot.0.requests", "value": 5, "mtype": "counter"} in sent
