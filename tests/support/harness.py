"""Starts the real gunicorn and speaks to it. Nothing here sleeps and hopes: `wait_for` waits for a condition."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from gunicorn.config import Config

T = TypeVar("T")
ServerT = TypeVar("ServerT", bound="Server")

TESTS = Path(__file__).parent.parent
APPS = TESTS / "apps"
BIN = Path(sys.executable).parent
STICKY = ("-k", "gunicorn_sticky.GeventStickyWorker")
#: Gunicorn's parser in C waits for the end of a request line that is too long already, and then says nothing.
PARSER = ("--http-parser", "python") if "http_parser" in Config().settings else ()
#: Configuration that lets who is refused read the answer, and send a large body, for as long as a busy machine takes.
LINGERING = "from gunicorn_sticky.shared import refusals\nrefusals.LINGER = 60.0\n"
#: Seconds that anything may take on a busy machine.
PATIENCE = 30.0


def wait_for(condition: Callable[[], T | Literal[False] | None], what: str, timeout: float = PATIENCE) -> T:
    """Return the first true value of ``condition()``; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)  # to ask costs processor time, which those need who are waited for


def npm_ci(folder: Path) -> None:
    """Install what package-lock.json names, once for all test processes and until it changes."""
    wanted = (folder / "package-lock.json").read_text()
    installed = folder / "node_modules" / "installed.json"
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != wanted:
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
            installed.write_text(wanted)
    finally:
        os.close(lock)


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would configure gunicorn."""
    dropped = ("WEB_CONCURRENCY", "PORT", "GUNICORN_CMD_ARGS", "GUNICORN_STICKY_HOOK")
    return {k: v for k, v in os.environ.items() if k not in dropped} | dict(extra or {})


def stat(pid: str) -> list[str]:
    """Return state, parent, process group and session of a process; of one that has ended, the state is Z."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "", "", ""]


class Server:
    """A gunicorn process group, which is killed at the end of the `with` block; tests of how it stops call `stop`.

    Args:
        args: the command line after the program's name
        command: the program, by default the `gunicorn` of the running Python's environment
        config: text of a gunicorn.conf.py in the working directory
        env: additional environment variables
        bind: what to pass as --bind; None if `args` or `config` do so
        pass_fds: descriptors that the server inherits
        control_socket: whether to open one, named "control" in the working directory
    """

    def __init__(
        self,
        *args: str,
        command: Sequence[str] | None = None,
        config: str = "",
        env: Mapping[str, str] | None = None,
        bind: str | None = "127.0.0.1:0",
        pass_fds: Sequence[int] = (),
        control_socket: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gunicorn-sticky-")
        self.folder = Path(self._folder.name)
        self.config = self.folder / "gunicorn.conf.py"
        self.configure(config)
        self._log = self.folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(command or [str(BIN / "gunicorn")]),
                    *(("--bind", bind) if bind else ()),
                    *(("--control-socket", "control") if control_socket else ("--no-control-socket",)),
                    *args,
                ],
                cwd=self.folder,
                env=clean_env({"PYTHONPATH": str(APPS), "PYTHONUNBUFFERED": "1"} | dict(env or {})),
                stdout=log,
                pass_fds=pass_fds,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._session = self.process.pid

    def configure(self, config: str) -> None:
        """Write the configuration file, so that a reload reads it.

        Python keeps what it has compiled for as long as a file has the same size and second of its last change.
        """
        changed = self.config.stat().st_mtime if self.config.exists() else 0
        self.config.write_text(config)
        if changed:
            os.utime(self.config, (changed + 2, changed + 2))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, pattern: str, count: int = 1, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait until `pattern` stands in the log `count` times, and return the last match."""

        def found() -> list[re.Match[str]] | None:
            matches = list(re.finditer(pattern, self.log, re.MULTILINE))
            return matches if len(matches) >= count else None

        try:
            return wait_for(found, f"{pattern!r} in the log", timeout)[-1]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    @property
    def ports(self) -> list[int]:
        """The TCP ports of all listeners, as gunicorn logged them last."""
        match = self.wait_for_log(r"Listening at: (.*) \(\d+\)")
        return [int(port) for port in re.findall(r":(\d+)(?:,|$)", match.group(1))]

    @property
    def port(self) -> int:
        return self.ports[0]

    def get(self, path: str = "/", **kwargs: Any) -> Response:
        return request(self.port, path=path, **kwargs)

    def who(self, **kwargs: Any) -> dict[str, Any]:
        """Ask tests/apps/whoami.py who served a request."""
        response = self.get(**kwargs)
        assert response.status == 200, response
        return dict(json.loads(response.body))

    def slots(self, clients: Sequence[str]) -> dict[str, int]:
        """Return the slot that serves each client."""
        return {client: self.who(source=client)["slot"] for client in clients}

    def session(self) -> list[int]:
        """Return the pids of all processes that the server has started and that still run, whoever is their parent."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                state, _parent, _group, session = stat(entry)
                if session == str(self._session) and state != "Z":
                    found.append(int(entry))
        return found

    def children(self) -> dict[int, str]:
        """Return the processes that the master has forked: their titles, by pid."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):  # the kernel's own list of them may miss some, see proc(5)
            state, parent, *_ = stat(pid)
            if parent == str(self.pid) and state != "Z":
                with contextlib.suppress(OSError):
                    found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return found

    def booted(self, kind: str) -> list[int]:
        """Return the pids of all processes of a kind, "worker" or "dispatcher", in the order in which they said so."""
        return [int(pid) for pid in re.findall(rf"Booting {kind} with pid: (\d+)", self.log)]

    def alive(self, kind: str) -> list[int]:
        """Return the pids of those that still run."""
        children = self.children()
        return [pid for pid in self.booted(kind) if pid in children]

    @property
    def is_running(self) -> bool:
        """Whether the master, which need not be our child, is there."""
        return stat(str(self.pid))[0] != "Z"

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Stop the server with a signal and return the exit code of its master."""
        if self.process.poll() is None:
            self.send_signal(number)
        return self.process.wait(timeout)

    def _quit(self) -> None:
        """Let all processes end by themselves, the master last: coverage writes what it has seen at the end of each."""
        with contextlib.suppress(ProcessLookupError, AssertionError):
            self.send_signal(signal.SIGSTOP)  # or it would kill a status server that still writes
            for pid in set(self.session()) - {self.pid}:
                os.kill(pid, signal.SIGQUIT)
            wait_for(lambda: set(self.session()) <= {self.pid}, "all others to end by themselves", 5)
            self.send_signal(signal.SIGQUIT)
            self.send_signal(signal.SIGCONT)
            wait_for(lambda: not self.session(), "the master to end by itself", 5)

    def __enter__(self: ServerT) -> ServerT:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            if "COVERAGE_PROCESS_START" in os.environ:
                self._quit()
            os.killpg(self._session, signal.SIGKILL)
            self.process.wait()
            wait_for(lambda: not self.session(), "all processes to end, which frees the ports")
        if exception[0] is not None:
            print(self.log)
        self._folder.cleanup()


@contextlib.contextmanager
def daemon(*args: str, **kwargs: Any) -> Iterator[Server]:
    """Start a server with --daemon; `server.pid` is the daemon's."""
    background = ("--daemon", "--pid", "pid", "--error-logfile", "log")
    with Server(*background, *args, **kwargs) as server:
        assert server.process.wait(PATIENCE) == 0, server.log
        pid = server.folder / "pid"
        server.pid = int(wait_for(lambda: pid.exists() and pid.read_text(), "the daemon's pid"))
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            wait_for(lambda: not server.is_running, "the daemon's end")


class Response:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:200]!r}>"


def request(
    port: int,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
    body: Any = None,
    host: str = "127.0.0.1",
    timeout: float = PATIENCE,
    **kwargs: Any,
) -> Response:
    """Send one request over a connection of its own; `source` is the client's address (any of 127.0.0.0/8 works)."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout, source_address=(source, 0) if source else None)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}), **kwargs)
        with contextlib.closing(connection.getresponse()) as response:  # else a reset leaves the socket open
            return Response(response)
    finally:
        connection.close()


def descriptors(pid: int) -> list[str]:
    """Return what the open files of a process are."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found.append(os.readlink(entry))
    return found


def addresses(count: int) -> list[str]:
    """Return `count` different addresses of this machine that a client can connect from."""
    return [f"127.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in range(count)]
