"""What servers cost before anybody asks for much: memory, by process, and the time that they take to start.

- memory: PSS of the processes, after some requests, with an application that does nothing. The status server is that of
  a server of its own, as another process beside the others has its part of what they share.
- an open WebSocket: what all processes of a server grow by, with Engine.IO, divided by how many are open.
- start-up: the seconds from a server's start to its first answer. The request waits in the listener meanwhile.

Stock and sticky servers stand side by side while their memory is measured: pages that both have are shared by both.

    python benchmarks/footprint.py [--rounds N] [--only KINDS]
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

from client import address
from contender import HERE, memory
from kind import KINDS, Kind, some
from support.harness import PATIENCE, Server, request, wait_for

WORKERS = 2
#: After these all that a request needs has been loaded.
REQUESTS = 100
#: WebSockets that are open when it is measured what more of them take.
FIRST = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
UPGRADE = (
    b"GET /engine.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcy4uLg==\r\n\r\n"
)
#: Servers, and the options that make them so.
SERVERS = {"stock": (), "sticky": (), "sticky with status": ("--sticky-status", "127.0.0.1:0")}

Figures = defaultdict[str, list[float]]


def command(kind: Kind, name: str, app: str) -> tuple[str, ...]:
    args = kind.args(sticky=name.startswith("sticky"))
    return *args, *SERVERS[name], "-w", str(WORKERS), "--keep-alive", "75", app


def serve(kind: Kind, name: str, app: str) -> Server:
    return Server(*command(kind, name, app), env={"PYTHONPATH": str(HERE)})


def wait_for_workers(server: Server) -> None:
    """Wait until each worker has answered some requests."""

    def all_answer() -> bool:
        bodies = {server.get(source=address(n), headers={"X-Forwarded-For": address(n)}).body for n in range(REQUESTS)}
        return len(bodies) == WORKERS

    wait_for(all_answer, "answers of all workers")


def megabytes(server: Server, title: str) -> float:
    """Return the memory of a process, or the mean of all that have its title."""
    pids = [pid for pid, found in server.children().items() if re.match(rf"gunicorn: {title}\b", found)]
    return memory(pids) / len(pids) / 1e6


def processes(kind: Kind, figures: Figures) -> None:
    """Measure the memory of each process of the servers."""
    with ExitStack() as stack:
        running = {name: stack.enter_context(serve(kind, name, kind.empty)) for name in SERVERS}
        for server in running.values():
            wait_for_workers(server)
        stock, sticky, status = running.values()
        request(int(status.wait_for_log(r"Status at: http://.*:(\d+)$")[1]), "/status")
        figures["stock worker"].append(megabytes(stock, "worker"))
        figures["worker"].append(megabytes(sticky, "worker"))
        figures["dispatcher"].append(megabytes(sticky, "dispatcher"))
        figures["status server"].append(megabytes(status, "status"))
        figures["stock master"].append(memory([stock.pid]) / 1e6)
        figures["master"].append(memory([sticky.pid]) / 1e6)


def opened(server: Server, number: int, stack: ExitStack) -> None:
    """Open some WebSockets, until the end of `stack`, and wait for their first messages."""
    for n in range(number):
        source = (address(n), 0)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE, source))
        client.sendall(UPGRADE)
        data = b""
        while not data.endswith(b"}"):
            received = client.recv(65536)
            assert received, data
            data += received


def websockets(kind: Kind, figures: Figures) -> None:
    """Measure what an open WebSocket takes."""
    for name, figure in (("stock", "stock WebSocket"), ("sticky", "WebSocket")):
        with serve(kind, name, kind.app) as server, ExitStack() as stack:
            opened(server, FIRST, stack)
            before = memory(server.session())
            opened(server, kind.sockets, stack)
            figures[figure].append((memory(server.session()) - before) / kind.sockets / 1e3)


def seconds_to_answer(kind: Kind, name: str) -> float:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE))
        client.sendall(REQUEST)
        fd, env = listener.fileno(), {"PYTHONPATH": str(HERE)}
        start = time.perf_counter()
        stack.enter_context(Server(*command(kind, name, kind.empty), env=env, bind=f"fd://{fd}", pass_fds=[fd]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        return time.perf_counter() - start


def starts(kind: Kind, figures: Figures) -> None:
    """Measure how long servers take to start."""
    for name, figure in (("stock", "stock start-up"), ("sticky", "start-up")):
        figures[figure].append(seconds_to_answer(kind, name))


def main(arguments: Sequence[str] = ()) -> dict[str, Figures]:
    """Measure, print each kind's figures by round, and return them: MB, of a WebSocket kB, of a start-up seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="KINDS", help="kinds of workers, with commas between them")
    options = parser.parse_args(arguments)
    found = {}
    for kind in some(options.only, KINDS):
        figures = found[kind.name] = Figures(list)
        for _ in range(options.rounds):
            processes(kind, figures)
            websockets(kind, figures)
            starts(kind, figures)
        print(f"{kind.name}:", dict(figures), flush=True)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
