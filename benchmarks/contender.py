"""What is compared: servers and proxies, each with as many workers, and the CPU time that all their processes take."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.harness import BIN, PATIENCE, STICKY, Server, npm_ci  # noqa: E402

#: The client is not to wait for a processor: latencies would be its own.
NICE = ("nice", "-n", "5")
#: What stickiness would be if it cost nothing: each client knows its Gunicorn.
CHOSEN = "N Gunicorns, clients choose"
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
    """Return what all threads of some processes have run for: unlike the times in /proc/PID/stat, not in ticks."""
    tasks = (task for pid in processes for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


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
    """Starts all of them, side by side, when entered."""

    def __init__(self, folder: Path, workers: int, wanted: Sequence[str]) -> None:
        self._folder = folder
        self._workers = workers
        self._wanted = wanted
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Contender] = {}

    def __enter__(self) -> dict[str, Contender]:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return {name: self._running[name] for name in self._wanted}

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        several = ("-w", str(self._workers))
        self._gunicorn("stock", "-k", "gevent", *several)
        self._gunicorn("stock again", "-k", "gevent", *several)
        self._gunicorn("stock -w 1", "-k", "gevent", "-w", "1")
        self._gunicorn("sticky by ip", *STICKY, *several)
        self._gunicorn("sticky by header", *STICKY, "--sticky-proxy", *several)
        self._gunicorn("sticky by session", *STICKY, "--sticky-by", "session", *several)
        singles = [self._gunicorn(f"single {n}", "-k", "gevent", "-w", "1") for n in range(self._workers)]
        ports, sessions = (server.ports[0] for server in singles), (server.sessions for server in singles)
        self._running[CHOSEN] = Contender(CHOSEN, tuple(ports), frozenset().union(*sessions))
        self._nginx("nginx + N Gunicorns", singles, "ip_hash;")
        self._nginx("nginx keepalive + N Gunicorns", singles, "ip_hash;", keepalive=True)
        self._nginx("nginx keepalive + stock", [self._running["stock"]], keepalive=True)
        self._nginx("nginx keepalive + sticky by header", [self._running["sticky by header"]], keepalive=True)
        self._haproxy("HAProxy + N Gunicorns", singles)
        if not set(NODE).isdisjoint(self._wanted):
            npm_ci(HERE / "node")
        for name in NODE:
            if name in self._wanted:
                port = self._port()
                self._program(name, port, [], "node", str(HERE / "node" / "app.mjs"), name, str(port), several[1])

    def _gunicorn(self, name: str, *args: str) -> Contender:
        # Longer than any proxy keeps an idle connection, and longer than any run.
        command = [*NICE, str(BIN / "gunicorn")]
        server = Server("--keep-alive", "75", *args, "app:app", command=command, env={"PYTHONPATH": str(HERE)})
        self._stack.enter_context(server)
        self._running[name] = Contender(name, (server.port,), frozenset([server.pid]))
        return self._running[name]

    def _nginx(self, name: str, upstream: Sequence[Contender], *options: str, keepalive: bool = False) -> None:
        lines = [*options, *(f"server 127.0.0.1:{server.ports[0]};" for server in upstream)]
        if keepalive:
            lines.append("keepalive 32;")
        self._proxy(name, upstream, NGINX, lines, ["nginx", "-e", "stderr", "-c"], idle="" if keepalive else "close")

    def _haproxy(self, name: str, upstream: Sequence[Contender]) -> None:
        lines = [f"server s{n} 127.0.0.1:{server.ports[0]}" for n, server in enumerate(upstream)]
        self._proxy(name, upstream, HAPROXY, lines, ["haproxy", "-db", "-f"])

    def _proxy(
        self, name: str, upstream: Sequence[Contender], text: str, lines: list[str], command: list[str], **values: str
    ) -> None:
        if name not in self._wanted:
            return
        port = self._port()
        folder = self._subfolder(name)
        config = folder / "config"
        joined = "\n    ".join(lines)
        config.write_text(text.format(workers=self._workers, folder=folder, port=port, upstream=joined, **values))
        # Debian has them where ordinary users do not look.
        program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        self._program(name, port, upstream, program, *command[1:], str(config))

    def _program(self, name: str, port: int, upstream: Sequence[Contender], *command: str) -> None:
        session = self._stack.enter_context(_program(self._subfolder(name), *command))
        sessions = frozenset([session]).union(*(server.sessions for server in upstream))
        self._running[name] = Contender(name, (port,), sessions)

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
