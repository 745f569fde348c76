"""Upgrades that go wrong halfway, one after the other: after each step, every request is answered by whom it should be.

A session whose worker lives, and belongs to a master that was not killed, is answered by that worker; any other one's
request is answered soon, by anybody.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.harness import STICKY, Server, daemon, wait_for
from support.under_load import times

pytestmark = pytest.mark.load

#: Seconds that an answer may take on a busy machine: less than those after which anybody gives up (--timeout).
SOON = 25.0
WORKERS = 2
OPTIONS = ("-w", str(WORKERS), "--pid", "pid", "--keep-alive", "60", "--graceful-timeout", "10")
BY_SESSION = (*STICKY, *OPTIONS, "--sticky-by", "session", "--sticky-session-keys", "query:session_id", "sessions:app")
#: Waits until the test has seen the new master.
BROKEN = """
import os
from waiting import wait_until
wait_until(lambda: os.path.exists("seen"))
raise RuntimeError("a broken configuration")
"""


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Chain:
    """A server, its masters, and the sessions that it has given."""

    def __init__(self, server: Server) -> None:
        self.server = server
        #: The masters: the old one, and the new one or 0.
        self.old, self.new = server.pid, 0
        #: Those that were not told to let their workers drain.
        self.killed: set[int] = set()
        self.sessions: list[dict[str, Any]] = []
        #: Connections that a proxy keeps open.
        self.kept: list[http.client.HTTPConnection] = []
        self.port = server.port

    # --- requests ---

    def _answer(self, connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
        connection.request("GET", path)
        response = connection.getresponse()
        return dict(json.loads(response.read())) | {"status": response.status}

    def _ask(self, path: str, kept: bool = False, lossy: bool = False) -> dict[str, Any]:
        """Send a request, and again if it was in the hands of a killed process, or its connection was closed."""
        deadline = time.monotonic() + SOON
        while True:
            reused = kept and bool(self.kept)
            connection = self.kept.pop(0) if reused else http.client.HTTPConnection("127.0.0.1", self.port)
            connection.timeout = max(deadline - time.monotonic(), 0.1)
            if connection.sock:
                connection.sock.settimeout(connection.timeout)
            try:
                answer = self._answer(connection, path)
            except TimeoutError:
                raise AssertionError(f"no answer to {path}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: Gunicorn's own answer
                connection.close()
                may_be_closed = reused and not isinstance(error, ValueError)
                # Workers that drain are cut off after graceful_timeout, as these sessions are always in use.
                if not (may_be_closed or lossy or "Worker graceful timeout" in self.server.log):
                    raise
                assert time.monotonic() < deadline, path
                continue
            if kept and len(self.kept) < 4:
                self.kept.append(connection)
            else:
                connection.close()
            return answer

    def check(self, lossy: bool) -> None:
        """Use all sessions, on new connections and on those that led to other workers, and have new ones."""
        for session, kept in itertools.product(list(self.sessions), (False, True)):
            answer = self._ask(f"/use?session_id={session['id']}", kept, lossy)
            if answer["pid"] == session["pid"]:
                assert answer["status"] == 200
            elif session["slot"] < WORKERS and session["master"] not in self.killed:
                # What leads to the workers of slots that have been added since is known to their own master only.
                assert not is_running(session["pid"]), f"{answer} for {session}"
        for kept in (False, True, False, True):
            session = self._ask("/new", kept, lossy)
            with contextlib.suppress(OSError):
                self.sessions.append(session | {"master": parent(session["pid"])})
        alive = [session for session in self.sessions if is_running(session["pid"])]
        gone = [session for session in self.sessions if session not in alive]
        self.sessions = gone[-4:] + alive[:8] + alive[8:][-8:]

    # --- steps ---

    def upgrade(self, until: str = "charge") -> None:
        """Start a new master, and wait until it has been forked, has read its configuration, or accepts."""
        if self.new:
            os.kill(self.old, signal.SIGUSR2)  # refused
            return
        count = self.server.log.count("Master.2 accepts")
        os.kill(self.old, signal.SIGUSR2)
        self.new = wait_for(self._executed, "a new master")
        if until == "start":
            self.server.wait_for_log(rf"\[{self.new}\] \[INFO\] Starting gunicorn")
        elif until == "charge":
            self.server.wait_for_log(r"Master\.2 accepts connections now", count=count + 1)

    def _executed(self) -> int:
        """Return the pid of the new master, or 0 if there is none yet."""
        for pid in Path(f"/proc/{self.old}/task/{self.old}/children").read_text().split():
            with contextlib.suppress(OSError):
                # (SPT_NOENV keeps setproctitle from putting titles there.)
                if f"GUNICORN_PID={self.old}\0" in Path(f"/proc/{pid}/environ").read_text():
                    return int(pid)
        return 0

    def broken_upgrade(self) -> None:
        """Start a new master that cannot read its configuration."""
        if self.new:
            return
        self.server.configure(BROKEN)
        self.upgrade("fork")
        seen = self.server.folder / "seen"
        seen.touch()
        wait_for(lambda: not is_running(self.new), "the new master to end")
        seen.unlink()
        self.server.configure("")
        self._new_is_gone()

    def _new_is_gone(self) -> None:
        gone, self.new = self.new, 0
        wait_for(lambda: not Path(f"/proc/{gone}").exists(), "the old master to see that")

    def end_new(self, number: int) -> None:
        """End the new master, if there is one."""
        if not self.new:
            return
        os.kill(self.new, number)
        if number != signal.SIGTERM:
            self.killed.add(self.new)
        else:
            self.check(False)  # while it drains
        gone = self.new
        wait_for(lambda: not is_running(gone), "the new master to end")
        self._new_is_gone()

    def end_old(self, number: int) -> None:
        """End the old master, if there is a new one."""
        if not self.new:
            return
        gone = self.old
        os.kill(gone, number)
        if number != signal.SIGTERM:
            self.killed.add(gone)
        else:
            self.check(False)
        wait_for(lambda: not is_running(gone), "the old master to end")
        self.old, self.new = self.new, 0
        self.server.pid = self.old
        wait_for(self._is_promoted, "the new master's promotion")

    def _is_promoted(self) -> bool:
        try:
            return (self.server.folder / "pid").read_text().strip() == str(self.old)
        except OSError:
            return False

    def signal_old(self, number: int) -> None:
        os.kill(self.old, number)

    def stop_and_resume_old(self) -> None:
        """Let the old master's workers end, and start others."""
        for number in (signal.SIGWINCH, signal.SIGHUP):
            os.kill(self.old, number)
            wait_for(lambda: self._has_dispatcher() == (number == signal.SIGHUP), "the old master to do so")  # noqa: B023

    def _has_dispatcher(self) -> bool:
        with contextlib.suppress(OSError):
            return any(parent(pid) == self.old for pid in self.server.booted("dispatcher") if is_running(pid))
        return False

    def signal_new(self, number: int) -> None:
        if self.new and self.is_in_charge():
            os.kill(self.new, number)

    def is_in_charge(self) -> bool:
        """Tell whether the new master has accepted connections."""
        return f"[{self.new}] [INFO] Master.2 accepts" in self.server.log

    def kill(self, kind: str) -> None:
        """Kill a worker of each master, or their dispatchers."""
        for master in filter(None, (self.old, self.new)):
            for pid in self.server.booted(kind):
                with contextlib.suppress(OSError):  # it ends by itself
                    if is_running(pid) and parent(pid) == master:
                        os.kill(pid, signal.SIGKILL)
                        break

    def kill_worker_and_dispatcher(self) -> None:
        """A worker dies, and so does whoever routes what it has not taken."""
        for pid in self.server.booted("dispatcher"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.kill("worker")
        self.kill("dispatcher")
        for pid in self.server.booted("dispatcher"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def chain() -> Iterator[Chain]:
    with daemon(*BY_SESSION, env={"SPT_NOENV": "1"}) as server:
        own = Chain(server)
        try:
            for _ in range(3):
                own.check(False)
            yield own
        finally:
            print(server.log)
            for connection in own.kept:
                connection.close()
            for master in filter(None, (own.new, own.old)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(master, signal.SIGQUIT)


TERM, QUIT, KILL = signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL
HUP, TTIN, TTOU = signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU

CHAINS: dict[str, list[tuple[Any, ...]]] = {
    "a new master is killed, or ends, after the one before it was promoted": [
        (Chain.upgrade,),
        (Chain.end_old, TERM),
        (Chain.upgrade,),
        (Chain.end_new, KILL),
        (Chain.upgrade,),
        (Chain.end_new, TERM),
    ],
    "the old master ends before the new one is ready": [
        (Chain.upgrade, "fork"),
        (Chain.end_old, TERM),
        (Chain.upgrade, "start"),
        (Chain.end_old, KILL),
        (Chain.upgrade, "fork"),
        (Chain.end_old, KILL),
    ],
    "new masters fail": [
        (Chain.broken_upgrade,),
        (Chain.upgrade, "fork"),
        (Chain.end_new, KILL),
        (Chain.upgrade, "start"),
        (Chain.end_new, TERM),
        (Chain.upgrade,),
        (Chain.upgrade,),
        (Chain.end_new, QUIT),
    ],
    "workers and dispatchers die in between": [
        (Chain.upgrade,),
        (Chain.kill, "worker"),
        (Chain.kill, "dispatcher"),
        (Chain.kill_worker_and_dispatcher,),
        (Chain.end_new, KILL),
        (Chain.kill_worker_and_dispatcher,),
    ],
    "the way back": [
        (Chain.upgrade,),
        (Chain.stop_and_resume_old,),
        (Chain.end_new, TERM),
        (Chain.signal_old, TTIN),
        (Chain.upgrade, "start"),
        (Chain.signal_old, TTOU),
        (Chain.signal_new, TTIN),
        (Chain.signal_new, TTOU),
    ],
}

#: What may follow what, in any order.
STEPS = [
    *((Chain.upgrade, until) for until in ("fork", "start", "charge", "charge")),
    (Chain.broken_upgrade,),
    *((Chain.end_new, number) for number in (TERM, QUIT, KILL)),
    *((Chain.end_old, number) for number in (TERM, TERM, QUIT, KILL)),
    *((Chain.signal_old, number) for number in (HUP, TTIN, TTOU)),
    *((Chain.signal_new, number) for number in (TTIN, TTOU)),  # after HUP, Gunicorn fails for the old one's pid file
    *((Chain.kill, kind) for kind in ("worker", "dispatcher")),
    (Chain.kill_worker_and_dispatcher,),
    (Chain.stop_and_resume_old,),
]
KILL_CHILDREN = (Chain.kill, Chain.kill_worker_and_dispatcher)
NEED_A_NEW_MASTER = (Chain.end_new, Chain.end_old, Chain.signal_new)


def run(steps: Iterable[tuple[Any, ...]]) -> None:
    with chain() as own:
        for step, *arguments in steps:
            if step in NEED_A_NEW_MASTER and not own.new:
                own.upgrade("start")
            print(f"{time.monotonic():.3f} {step.__name__} {arguments}", flush=True)
            step(own, *arguments)
            own.check(lossy=step in KILL_CHILDREN or bool({QUIT, KILL} & set(arguments)))


@pytest.mark.parametrize("name", CHAINS)
def test_every_session_is_answered_after_each_step(name: str):
    run(CHAINS[name])


@pytest.mark.parametrize("seed", range(times(1, 50)))
def test_every_session_is_answered_after_steps_in_any_order(seed: int):
    run(random.Random(seed).choices(STEPS, k=8))
