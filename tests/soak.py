"""A soak: python soak.py [SECONDS] [--seed N]

Runs a real server by ip, header, session and cookie, with and without nginx and HAProxy in front, under a mixed load:
new connections and kept-alive ones, slow requests, uploads, events, WebSockets and Socket.IO sessions. Meanwhile it
injects faults at random. Prints what was lost beyond promise, see soak_judge.py, and what has leaked; the last line
says how much it was, and the exit code is 1 if that is not 0. A seed repeats the faults, if not their moments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak_judge import Finding, History, Judge, Process, Window
from support.harness import STICKY, TESTS, Server, addresses, request, wait_for
from support.masters import pid_in
from support.proxies import HAPROXY, HAPROXY_V2, NGINX, haproxy, nginx
from support.under_load import GROWTH, Load, Record, descriptors, memory, summary, wait_until_ready

WORKERS, GRACE, TIMEOUT = 3, 2, 6
RATE, CLIENTS, SESSIONS = 120, 120, 6
#: Seconds that any request may take longer than what it asks for: until who hangs is killed, and its successor serves.
BOUND = TIMEOUT + 9.0
#: Seconds in which a server recovers from whatever was done to it.
RECOVERY = 30.0
#: Seconds for which a configuration is run before the next one's turn.
SHORTEST, LONGEST = 14, 240
#: Seconds that the end of a configuration takes.
ROUND_ENDS = 4
#: Seconds without a worker or dispatcher after which lanes may fill.
FILLS = 1.0
#: Descriptors that a process may have more than at the start: another slot's channels, if there has been one.
SPARE = 8
#: What is logged of greenlets that Gunicorn kills at the end of a worker, and when descriptors are missing.
EXPECTED = ("greenlet.GreenletExit", "gevent.exceptions.ConcurrentObjectUseError", "OSError: [Errno 24]")
#: What hostile clients do, see clients/hostile.py.
HOSTILE = ("reset", "half", "silent", "drip", "rest", "second", "pieces", "second-nodes", "nodes", "cookies", "query")

CONFIG = """
import os

def post_fork(server, worker):
    server.log.info("Soak: worker %d of slot %d, master %d", worker.pid, worker.slot, os.getppid())
"""
OPTIONS = {
    "ip": (),
    "header": ("--sticky-proxy",),
    "session": ("--sticky-by", "session", "--sticky-session-keys", "query:session,query:sid"),
    "cookie": ("--sticky-by", "cookie"),
}
FRONTS = {"nginx": (nginx, NGINX), "haproxy": (haproxy, HAPROXY), "haproxy by PROXY": (haproxy, HAPROXY_V2)}
#: The key, and what is in front.
ROUNDS = (
    ("ip", ""),
    ("header", "nginx"),
    ("session", ""),
    ("cookie", "haproxy"),
    ("header", ""),
    ("session", "nginx"),
    ("ip", "haproxy by PROXY"),
    ("cookie", ""),
    ("header", "haproxy"),
    ("session", "haproxy"),
    ("cookie", "nginx"),
)


class Watch(threading.Thread):
    """Follows the server's processes, by its log and their pidfds."""

    def __init__(self, server: Server, history: History) -> None:
        super().__init__()
        self._path = server.folder / "log"
        self._read = 0
        self._history = history
        self._poll = select.poll()
        self._pids: dict[int, int] = {}
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            for fd, _ in self._poll.poll(10):
                self._history.processes[self._pids.pop(fd)].gone = time.monotonic()
                self._poll.unregister(fd)
                os.close(fd)
            self._follow()

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
        self._read += len(lines)
        for line in lines.decode(errors="replace").splitlines():
            self._hear(line)

    def _hear(self, line: str) -> None:
        if match := re.search(r"Booting (dispatcher) with pid: (\d+)", line):
            self._add(Process(int(match.group(2)), match.group(1), time.monotonic()))
        elif match := re.search(r"Soak: worker (\d+) of slot (\d+), master (\d+)", line):
            pid, slot, master = map(int, match.groups())
            self._add(Process(pid, "worker", time.monotonic(), master, slot))
        elif match := re.search(r"\[(\d+)\] \[INFO\] Autorestarting worker", line):
            self._history.processes[int(match.group(1))].leaving = time.monotonic()
        elif match := re.search(r"Slot \d+: ready \(pid: (\d+)\)", line):
            self._history.processes[int(match.group(1))].ready = time.monotonic()
        elif match := re.search(r"Worker graceful timeout \(pid:(\d+)\)", line):
            self._history.processes[int(match.group(1))].forced = time.monotonic()
        elif match := re.search(r"TIMEOUT \(pid:(\d+)\)|\(pid:(\d+)\) (?:was sent SIG(?!TERM)|has died|exited)", line):
            process = self._history.processes.get(int(match.group(1) or match.group(2)))
            if process is not None and not process.leaving:
                process.killed = True

    def _add(self, process: Process) -> None:
        self._history.processes[process.pid] = process
        try:
            fd = os.pidfd_open(process.pid)
            process.master = process.master or int(
                Path(f"/proc/{process.pid}/stat").read_text().rsplit(")")[-1].split()[1]
            )
        except OSError:
            process.gone = time.monotonic()
            return
        self._pids[fd] = process.pid
        self._poll.register(fd, select.POLLIN)

    def close(self) -> None:
        self._done.set()
        self.join()
        for fd in self._pids:
            os.close(fd)


class Faults:
    """All that is done to a server.

    Args:
        server: the one
        port: where clients find it
        load: what it serves meanwhile
        history: where it is written down
        chance: decides
    """

    def __init__(self, server: Server, port: int, load: Load, history: History, chance: random.Random) -> None:
        self._server, self._port, self._load = server, port, load
        self._history, self._chance = history, chance
        self._hostile: list[subprocess.Popen[bytes]] = []
        #: What was done, for whoever looks for causes.
        self.done: list[tuple[float, str]] = []

    # --- who is there ---

    def master(self) -> int:
        """Return the pid of the only master."""
        return wait_for(lambda: pid_in(self._server.folder / "pid"), "the master's pid")

    def _all(self, kind: str) -> list[Process]:
        return [p for p in self._history.of(kind) if p.gone is None and p.stopped is None]

    def _worker(self, booted: bool = False) -> Process | None:
        """Return one of the workers, also of those that boot, unless that must not be."""
        answered = {record.pid for record in self._load.records[-500:]}
        workers = [p for p in self._all("worker") if p.pid in answered or not booted]
        return self._chance.choice(workers) if workers else None

    def _booted_worker(self) -> Process | None:
        return self._worker(booted=True)

    def _dispatcher(self) -> Process | None:
        return next(reversed(self._all("dispatcher")), None)

    def _status_server(self) -> int | None:
        return next((pid for pid in self._server.session() if "status server" in _title(pid)), None)

    # --- what is done to one process ---

    def _note(self, text: str) -> None:
        self.done.append((time.monotonic(), text))

    def _kill(self, process: Process | None) -> None:
        if process is not None:
            self._note(f"kill -9 {process.kind} {process.pid} (slot {process.slot})")
            process.killed = True
            _signal(process.pid, signal.SIGKILL)

    def _term(self, process: Process | None) -> None:
        if process is not None:
            self._note(f"TERM to {process.kind} {process.pid} (slot {process.slot})")
            self._leaves(process)
            _signal(process.pid, signal.SIGTERM)

    def _leaves(self, *processes: Process) -> None:
        for process in processes:
            process.leaving = process.leaving or time.monotonic()

    @contextlib.contextmanager
    def _still(self, process: Process) -> Iterator[None]:
        """Let a process stand still; it may die meanwhile."""
        self._note(f"STOP of {process.kind} {process.pid} (slot {process.slot})")
        start = process.stopped = time.monotonic()
        _signal(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if time.monotonic() > start + FILLS:
                self._history.windows.append(Window("lanes", start, time.monotonic() + FILLS))
            if not process.killed and process.gone is None:
                process.stopped = None
            _signal(process.pid, signal.SIGCONT)

    def _pause(self, process: Process | None, most: float = 2.0) -> None:
        if process is not None:
            with self._still(process):
                time.sleep(self._chance.uniform(0.05, most))

    def _kill_somehow(self, process: Process | None) -> None:
        if process is None or self._chance.random() < 0.5:
            self._kill(process)
            return
        with self._still(process):
            time.sleep(self._chance.uniform(0.05, 1))
            self._kill(process)

    def _hang(self, process: Process | None) -> None:
        """Wait until the master kills it."""
        if process is not None:
            with self._still(process):
                self._wait(lambda: process.gone, f"{process.kind} {process.pid}, which hangs, to be killed")

    def _wait(self, condition: Callable[[], Any], what: str) -> None:
        wait_for(condition, what, RECOVERY)

    # --- faults ---

    def a_killed_worker(self) -> None:
        self._kill_somehow(self._worker())

    def a_worker_that_stands_still(self) -> None:
        self._pause(self._worker())

    def a_worker_that_hangs(self) -> None:
        self._hang(self._worker())

    def a_worker_told_to_end(self) -> None:
        self._term(self._booted_worker())  # a signal is lost on those that boot, as with Gunicorn's own

    def a_killed_dispatcher(self) -> None:
        self._kill_somehow(self._dispatcher())

    def a_dispatcher_that_stands_still(self) -> None:
        self._pause(self._dispatcher())

    def a_dispatcher_that_hangs(self) -> None:
        self._hang(self._dispatcher())

    def a_killed_status_server(self) -> None:
        if pid := self._status_server():
            self._note(f"kill -9 status server {pid}")
            _signal(pid, signal.SIGKILL)

    def a_master_that_stands_still(self) -> None:
        self._note("STOP of master")
        master = self.master()
        _signal(master, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.05, 1))
        _signal(master, signal.SIGCONT)

    def a_dispatcher_killed_while_workers_end(self) -> None:
        for _ in range(self._chance.randint(1, 2)):
            self._chance.choice([self._kill, self._term])(self._booted_worker())
        time.sleep(self._chance.choice([0, 0.01, 0.1, GRACE]))
        self._kill(self._dispatcher())

    def a_child_that_is_ended(self) -> None:
        self._ask("/child")

    def a_full_table_of_descriptors(self) -> None:
        process = self._chance.choice([self._booted_worker, self._dispatcher])()
        if process is None:
            return
        self._note(f"no more descriptors for {process.kind} {process.pid} (slot {process.slot})")
        start = time.monotonic()
        try:
            before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (descriptors(process.pid), before[1]))
            time.sleep(self._chance.uniform(0.1, 1.5))
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        except (OSError, ProcessLookupError):
            pass
        if process.kind == "dispatcher":
            self._history.windows.append(Window("descriptors", start, time.monotonic() + 0.2))

    def workers_that_crash_at_boot(self) -> None:
        worker = self._worker()
        if worker is not None:
            (self._server.folder / "crash").write_text(str(worker.slot))
            self._kill(worker)
            time.sleep(self._chance.uniform(0.1, 2))
            (self._server.folder / "crash").unlink()

    def hostile_clients(self) -> None:
        kind = self._chance.choice(HOSTILE)
        count = self._chance.randint(1, 4 if "nodes" in kind or kind in ("pieces", "cookies", "query") else 20)
        self._note(f"{count} hostile clients: {kind}")
        command = [sys.executable, str(TESTS / "clients" / "hostile.py"), kind, str(self._port), str(count)]
        self._hostile.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def logs_reopened(self) -> None:
        self._note("USR1")
        os.kill(self.master(), signal.SIGUSR1)

    def a_reload(self) -> None:
        self._note("HUP")
        before = self._all("worker")
        self._leaves(*before)
        os.kill(self.master(), signal.SIGHUP)
        self._perhaps_another()
        self._wait(lambda: all(p.gone is not None for p in before), "the old workers to end")

    def a_slot_more_and_less(self) -> None:
        start = time.monotonic()
        self._note("TTIN")
        os.kill(self.master(), signal.SIGTTIN)
        self._perhaps_another()
        self._wait(lambda: any(p.slot == WORKERS for p in self._all("worker")), "another slot")
        time.sleep(self._chance.uniform(0, 1))
        self._note("TTOU")
        self._leaves(*(p for p in self._all("worker") if p.slot == WORKERS))
        os.kill(self.master(), signal.SIGTTOU)
        self._perhaps_another()

        def is_gone() -> bool:
            others = [p for p in self._history.of("worker") if p.slot == WORKERS and p.gone is None]
            self._leaves(*others)  # also who was still to be forked
            return not others

        self._wait(is_gone, "the other slot to go")
        self._wait(lambda: len(self._all("dispatcher")) == 1, "one dispatcher")
        self._history.windows.append(Window("slots", start, time.monotonic() + 0.5))

    def an_upgrade(self) -> None:
        """Start a new master, and end either of the two, by a signal or by force, sooner or later."""
        old = self.master()
        self._note("USR2")
        log = self._server.log.count("Master.2 accepts connections now")
        os.kill(old, signal.SIGUSR2)
        path = self._server.folder / "pid.2"
        new = int(wait_for(lambda: path.exists() and path.read_text(), "the new master"))
        if self._chance.random() < 0.7:
            self._wait(lambda: self._server.log.count("Master.2 accepts connections now") > log, "the new master")
        else:
            time.sleep(self._chance.uniform(0, 0.5))
        self._perhaps_another()
        if self._chance.random() < 0.2:
            self._note("USR2 to the new master as well")
            os.kill(new, signal.SIGUSR2)
        ended, number = self._chance.choice([old, new]), self._chance.choice([signal.SIGTERM, signal.SIGKILL])
        self._note(f"{number.name} to the {'old' if ended == old else 'new'} master")
        self._leaves(*(p for p in self._history.of("worker") if p.gone is None and p.master == ended))
        if number == signal.SIGKILL:  # the others notice, and leave as they are
            for process in self._history.processes.values():
                process.killed = process.killed or (process.gone is None and process.master == ended)
        os.kill(ended, number)
        self._perhaps_another()
        self._server.process.poll()

        def is_over() -> bool:
            left = [p for p in self._history.of("worker") if p.gone is None and p.master == ended]
            self._leaves(*left)
            self._server.process.poll()
            return not left and not Path(f"/proc/{ended}").exists()

        self._wait(is_over, "a master and its workers to end")
        if ended == new and number == signal.SIGKILL:
            path.unlink()
        self._wait(lambda: not path.exists(), "pid.2 to go")

    def _perhaps_another(self) -> None:
        """In the middle of something else, maybe let a process die or stand still."""
        if self._chance.random() < 0.4:
            time.sleep(self._chance.uniform(0, 0.5))
            self._chance.choice(
                [
                    self.a_killed_worker,
                    self.a_killed_dispatcher,
                    self.a_worker_that_stands_still,
                    self.a_dispatcher_that_stands_still,
                    self.a_worker_told_to_end,
                ]
            )()

    def _ask(self, path: str) -> None:
        self._note(path)
        client = self._chance.choice(addresses(CLIENTS))
        with contextlib.suppress(Exception):  # it does not matter what becomes of this one
            request(self._port, path, source=client, headers={"X-Forwarded-For": client})

    def inject(self) -> None:
        """Do one of them."""
        self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0](self)
        if self._chance.random() < 0.7:
            self.settle()
        time.sleep(self._chance.expovariate(3))

    def settle(self) -> None:
        """Wait until all is well again."""
        since = time.monotonic()

        def is_well() -> bool:
            slots = {p.slot for p in self._all("worker") if p.leaving is None}
            if slots != set(range(WORKERS)) or not self._all("dispatcher"):
                return False
            answers = 0
            for record in reversed(self._load.records):
                if record.end < since or answers >= 20:
                    break
                answers += record.start >= since and not record.failed
            return answers >= 20

        self._wait(is_well, "a worker in each slot, a dispatcher, and 20 answers")

    def close(self) -> None:
        for process in self._hostile:
            process.kill()
            process.wait()


#: The faults, and how often they come.
WEIGHTS: dict[Callable[[Faults], None], float] = {
    Faults.a_killed_worker: 4,
    Faults.a_worker_that_stands_still: 3,
    Faults.a_worker_that_hangs: 0.5,
    Faults.a_worker_told_to_end: 3,
    Faults.a_killed_dispatcher: 4,
    Faults.a_dispatcher_that_stands_still: 3,
    Faults.a_dispatcher_that_hangs: 0.3,
    Faults.a_killed_status_server: 1,
    Faults.a_master_that_stands_still: 1,
    Faults.a_dispatcher_killed_while_workers_end: 3,
    Faults.a_child_that_is_ended: 2,
    Faults.a_full_table_of_descriptors: 2,
    Faults.workers_that_crash_at_boot: 1,
    Faults.hostile_clients: 3,
    Faults.logs_reopened: 1,
    Faults.a_reload: 2,
    Faults.a_slot_more_and_less: 1.5,
    Faults.an_upgrade: 3,
}


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def zombies(parent: int) -> list[int]:
    """Return the children of a process that nobody has waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, its_parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if state == "Z" and int(its_parent) == parent:
                found.append(int(entry.name))
    return found


@dataclass
class Outcome:
    requests: int
    faults: int
    findings: list[Finding]


def soak(by: str, front: str, seconds: float, chance: random.Random, kept: Path) -> Outcome:
    """Run one configuration for so many seconds.

    Args:
        kept: where its log is left, if something is found
    """
    options = [*OPTIONS[by], "-w", str(WORKERS), "--graceful-timeout", str(GRACE), "--timeout", str(TIMEOUT)]
    options += ["--keep-alive", "75" if front else "5", "--sticky-header-timeout", "3", "--pid", "pid"]
    options += ["--sticky-status", "127.0.0.1:0"]
    if front == "haproxy by PROXY":
        options += ["--proxy-protocol", "--proxy-allow-from", "127.0.0.1"]
    if chance.random() < 0.5:
        options += ["--max-requests", "400", "--max-requests-jitter", "300"]
    # Behind a proxy, the client's address is what the proxy says.
    seen_by = "ip" if front and by == "header" else by
    findings: list[Finding] = []
    history = History()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(*STICKY, *options, "soak_app:app", config=CONFIG))
        watch = Watch(server, history)
        watch.start()
        stack.callback(watch.close)
        stack.callback(_end, server)
        wait_until_ready(server, WORKERS)
        port = server.port
        if front:
            folder = server.folder / "front"
            folder.mkdir()
            start, text = FRONTS[front]
            stack.enter_context(contextlib.redirect_stdout(None))  # its log, at the end
            port = stack.enter_context(start(folder, port, text))
        status = int(server.wait_for_log(r"Status at: http://.*:(\d+)$").group(1))
        before = figures(server.pid, history)
        command = [
            str(TESTS / "clients" / "load.py"),
            str(port),
            seen_by,
            f"--rate={RATE}",
            f"--clients={CLIENTS}",
            "--mixed",
        ]
        load = Load(server, by, command)
        stack.callback(load.kill)
        sessions = Load(server, by, [str(TESTS / "clients" / "soak_sessions.py"), str(port), by, str(SESSIONS)])
        stack.callback(sessions.kill)
        faults = Faults(server, port, load, history, chance)
        stack.callback(faults.close)
        try:
            faults.settle()
            deadline = time.monotonic() + seconds - ROUND_ENDS
            while time.monotonic() < deadline:
                faults.inject()
            faults.settle()
        except AssertionError as error:
            findings.append(Finding(f"did not recover: {error}"))
        records = [*load.stop(), *sessions.stop()]
        if front:
            del before["worker"]  # which keeps idle connections of the proxy
        findings += leaks(faults, history, before, status)
        findings += ends(server, faults)
        bound = BOUND + max((seconds for _, seconds in load.late), default=0.0)
        findings += Judge(by, bool(front), history, GRACE, bound).findings(records)
        findings += tracebacks(server)
        if findings:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(server.folder / "log", kept / "log")
            explain(findings, faults, history, kept / "findings")
        return Outcome(len(records), len(faults.done) + server.log.count("Autorestarting"), findings)


def figures(master: int, history: History) -> dict[str, tuple[int, int]]:
    """Return the descriptors and bytes that master, dispatcher and workers have, the most of each kind."""
    pids = {"master": [master]}
    for process in history.of("dispatcher"):
        pids.setdefault("dispatcher", []).extend([process.pid] if process.gone is None else [])
    for process in history.of("worker"):
        pids.setdefault("worker", []).extend([process.pid] if process.gone is None else [])
    return {
        kind: (max(map(descriptors, found), default=0), max(map(memory, found), default=0))
        for kind, found in pids.items()
    }


def leaks(faults: Faults, history: History, before: dict[str, tuple[int, int]], status: int) -> list[Finding]:
    """Return what the processes have kept, once all clients are gone."""
    found = []
    master = faults.master()
    last: dict[str, tuple[int, int]] = {}

    def is_as_before() -> bool:
        with contextlib.suppress(OSError, AssertionError):  # someone has ended since
            last.clear()
            last.update(figures(master, history))
            return all(last[kind][0] <= before[kind][0] + SPARE for kind in before)
        return False

    try:
        wait_for(is_as_before, "descriptors to be closed", RECOVERY)
    except AssertionError:
        found.append(Finding(f"descriptors, memory: {before} before, {last} afterwards"))
    for kind in ("master", "dispatcher"):
        if last[kind][1] > before[kind][1] + GROWTH:
            found.append(Finding(f"{kind} has grown from {before[kind][1] >> 10} to {last[kind][1] >> 10} KiB"))
    try:
        wait_for(lambda: not zombies(master), "zombies", 5)
    except AssertionError:
        found.append(Finding(f"nobody has waited for {zombies(master)}"))
    try:
        assert request(status, "/status").status == 200
    except Exception as error:
        found.append(Finding(f"status server: {error!r}"))
    return found


def ends(server: Server, faults: Faults) -> list[Finding]:
    """Stop the server, and return what goes on."""
    master = faults.master()
    faults._leaves(*faults._all("worker"))
    os.kill(master, signal.SIGTERM)

    def is_over() -> bool:
        server.process.poll()
        return not server.session()

    try:
        wait_for(is_over, "all processes to end", GRACE + 5)
    except AssertionError:
        return [Finding(f"still running after the end: {[(pid, _title(pid)) for pid in server.session()]}")]
    return []


def tracebacks(server: Server) -> list[Finding]:
    """Return what the log tells of exceptions."""
    # Of exceptions in the handling of others only the last one counts.
    found = re.findall(r"^Traceback .*\n(?: .*\n)*(\S.*)$(?!\n\nDuring handling)", server.log, re.MULTILINE)
    return [Finding(f"exception in the log: {line}") for line in found if not line.startswith(EXPECTED)]


def _end(server: Server) -> None:
    for pid in server.session():
        _signal(pid, signal.SIGCONT)
        _signal(pid, signal.SIGKILL)
    server.process.wait()


def explain(findings: list[Finding], faults: Faults, history: History, path: Path) -> None:
    """Write down what was found, what was done before, and who lived when."""
    start = min(p.born for p in history.processes.values())
    with path.open("w") as file:
        grouped: dict[str, list[Record]] = {}
        for finding in findings:
            grouped.setdefault(finding.what, []).extend([finding.record] if finding.record else [])
        for what, records in grouped.items():
            print(what, summary(records, start) if records else "", file=file)
        print("\nFaults", file=file)
        for at, text in faults.done:
            print(f"{at - start:9.3f} {text}", file=file)
        print("\nProcesses", file=file)
        for p in history.processes.values():
            named = {"born": p.born, "stopped": p.stopped, "leaving": p.leaving, "forced": p.forced, "gone": p.gone}
            times = [f"{name} {at - start:.3f}" for name, at in named.items() if at]
            print(f"{p.pid} {p.kind} slot {p.slot} of {p.master} killed={p.killed}", *times, file=file)
        for window in history.windows:
            print(f"{window.start - start:9.3f} {window.end - start:9.3f} {window.kind}", file=file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, nargs="?", default=1800)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", help="such as ip, or header,nginx")
    given = parser.parse_args()
    print(f"Seed {given.seed}", flush=True)
    began = time.monotonic()
    chance = random.Random(given.seed)
    rounds = [r for r in ROUNDS if not given.only or r == tuple(f"{given.only},".split(",")[:2])]
    each = max(SHORTEST, min(LONGEST, given.seconds / len(rounds)))
    requests = faults = number = 0
    findings: list[Finding] = []
    while (left := began + given.seconds - time.monotonic()) > SHORTEST / 2:
        by, front = rounds[number % len(rounds)]
        kept = TESTS.parent / "build" / "soak" / f"{given.seed}-{number}-{by}-{front or 'direct'}".replace(" ", "-")
        outcome = soak(by, front, min(each, max(left, SHORTEST)), chance, kept)
        name = by + (f" behind {front}" if front else "")
        print(
            f"  {name}: {outcome.requests} requests, {outcome.faults} faults, {len(outcome.findings)} lost", flush=True
        )
        if outcome.findings:
            print((kept / "findings").read_text(), f"Log: {kept}/log", sep="\n", flush=True)
        requests, faults, number = requests + outcome.requests, faults + outcome.faults, number + 1
        findings += outcome.findings
    seconds = time.monotonic() - began
    grouped = f"{requests:,}".replace(",", " ")
    print(f"soak: {seconds:.0f} s, {grouped} requests, {faults} faults injected, lost beyond promise: {len(findings)}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
