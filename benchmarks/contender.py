"""What is compared: servers and proxies, each with as many workers, and the CPU time that all their processes take."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from kind import Kind  # noqa: E402
from support.harness import BIN, PATIENCE, Server, npm_ci  # noqa: E402

#: The client is not to wait for a processor: latencies would be its own.
NICE = ("nice", "-n", "5")
#: What stickiness would be if it cost nothing: each client knows its server.
CHOSEN = "N servers, clients choose"
NODE = (
    "@socket.io/sticky",
    "sticky-session",
    "socketio-sticky-session by ip",
    "socketio-sticky-session by header",
)

NGINX = """
daemon off;
worker_processes {workers};
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" "{idle}"; }}
    upstream app {{
        {upstream}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""

HAPROXY = """
global
    nbthread {workers}
defaults
    mode http
    option forwardfor
    timeout connect 5s
    timeout client 75s
    timeout server 75s
frontend clients
    bind 127.0.0.1:{port}
    default_backend app
backend app
    balance source
    {upstream}
"""


@dataclass(frozen=True)
class Contender:
    name: str
    #: Where clients connect to; if there are several, each client always to the same one.
    ports: tuple[int, ...]
    #: The process sessions that it consists of.
    sessions: frozenset[int]

    def processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) in self.sessions and fields[0] != "Z":
                    found.append(int(entry.name))
        return sorted(found)


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return what some processes have run for, with all their threads, also those that have ended.

    Unlike the times in /proc/PID/stat that is not in ticks: see MAKE_PROCESS_CPUCLOCK in Linux's posix-timers.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in processes)


def kib_in(path: Path, name: str) -> int:
    """Return the number in a line of what /proc tells in KiB."""
    match = re.search(rf"^{name}: *(\d+) kB", path.read_text(), re.MULTILINE)
    assert match
    return int(match[1])


def memory(processes: Sequence[int]) -> int:
    """Return the bytes of some processes, of shared pages their part (PSS)."""
    return sum(kib_in(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in processes) * 1024


@contextlib.contextmanager
def _program(folder: Path, *command: str) -> Iterator[int]:
    """Run a program in a process session of its own, and yield the session's number."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*NICE, *command], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        if process.poll() is not None:
            print(f"{command[0]} has ended:\n{(folder / 'log').read_text()}")
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Contenders:
    """Starts those that are wanted, side by side, when entered."""

    def __init__(self, folder: Path, kind: Kind, workers: int, wanted: Sequence[str]) -> None:
        self._folder = folder
        self._kind = kind
        self._workers = workers
        self._wanted = wanted
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Contender] = {}

    def __enter__(self) -> dict[str, Contender]:
        with self._stack:
            found = {name: self._get(name) for name in self._wanted}
            self._stack = self._stack.pop_all()
        return found

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _get(self, name: str) -> Contender:
        if name not in self._running:
            self._running[name] = self._start(name)
        return self._running[name]

    def _start(self, name: str) -> Contender:
        if name in NODE:
            npm_ci(HERE / "node")
            port = self._port()
            return self._program(name, port, [], "node", str(HERE / "node" / "app.mjs"), name, str(port), self._count)
        if name == CHOSEN:
            singles = self._singles()
            sessions = frozenset[int]().union(*(server.sessions for server in singles))
            return Contender(name, tuple(server.ports[0] for server in singles), sessions)
        proxy, _, servers = name.partition(" + ")
        if not servers:
            return self._gunicorn(name)
        upstream = self._singles() if servers == "N servers" else [self._get(servers)]
        if proxy == "HAProxy":
            return self._haproxy(name, upstream)
        balance = ["ip_hash;"] if len(upstream) > 1 else []
        return self._nginx(name, upstream, *balance, keepalive=proxy == "nginx keepalive")

    def _singles(self) -> list[Contender]:
        return [self._get(f"stock -w 1, {n}") for n in range(self._workers)]

    @property
    def _count(self) -> str:
        return str(self._workers)

    def _gunicorn(self, name: str) -> Contender:
        first, _, by = name.partition(" by ")
        args = self._kind.args(sticky=first == "sticky")
        args += "-w", "1" if name.startswith("stock -w 1") else self._count
        args += ("--sticky-by", by) if by else ()
        # Longer than any proxy keeps an idle connection, and longer than any run.
        args += "--keep-alive", "75", self._kind.app
        command = [*NICE, str(BIN / "gunicorn")]
        server = self._stack.enter_context(Server(*args, command=command, env={"PYTHONPATH": str(HERE)}))
        return Contender(name, (server.port,), frozenset([server.pid]))

    def _nginx(self, name: str, upstream: Sequence[Contender], *options: str, keepalive: bool) -> Contender:
        lines = [*options, *(f"server 127.0.0.1:{server.ports[0]};" for server in upstream)]
        if keepalive:
            lines.append("keepalive 32;")
        idle = "" if keepalive else "close"
        return self._proxy(name, upstream, NGINX, lines, ["nginx", "-e", "stderr", "-c"], idle=idle)

    def _haproxy(self, name: str, upstream: Sequence[Contender]) -> Contender:
        lines = [f"server s{n} 127.0.0.1:{server.ports[0]}" for n, server in enumerate(upstream)]
        return self._proxy(name, upstream, HAPROXY, lines, ["haproxy", "-db", "-f"])

    def _proxy(
        self, name: str, upstream: Sequence[Contender], text: str, lines: list[str], command: list[str], **values: str
    ) -> Contender:
        port = self._port()
        folder = self._subfolder(name)
        config = folder / "config"
        joined = "\n    ".join(lines)
        config.write_text(text.format(workers=self._workers, folder=folder, port=port, upstream=joined, **values))
        # Debian has them where ordinary users do not look.
        program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        return self._program(name, port, upstream, program, *command[1:], str(config))

    def _program(self, name: str, port: int, upstream: Sequence[Contender], *command: str) -> Contender:
        session = self._stack.enter_context(_program(self._subfolder(name), *command))
        sessions = frozenset([session]).union(*(server.sessions for server in upstream))
        return Contender(name, (port,), sessions)

    def _subfolder(self, name: str) -> Path:
        folder = self._folder / name.replace("/", "-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def _port(self) -> int:
        """Reserve a port: bound, but not listening, it is out of everyone's way but of those who ask for it."""
        reservation = self._stack.enter_context(socket.socket())
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        return int(reservation.getsockname()[1])
