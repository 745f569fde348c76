"""What docs/scaling.md says of Socket.IO: what clients that stay cost workers and HAProxy, and publications Redis.

Clients are WebSockets of Socket.IO, spread over the workers of one Gunicorn by session. They answer heartbeats, and
hear broadcasts, which each worker makes for its own clients: so their figures are the same with any client manager.

    python benchmarks/socketio_clients.py [--clients N] [--rounds N]
"""

from __future__ import annotations

import argparse
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import socketio
from compare import machine, output_of, versions
from contender import HAPROXY, HERE, cpu_seconds, kib_in, memory
from report import Spread
from support.harness import STICKY, Server, descriptors, wait_for
from support.proxies import reserved_port

WORKERS = 2
PING_INTERVAL = 5
#: Seconds to count heartbeats in.
CALM = 2 * PING_INTERVAL
#: Bytes, and number, of broadcasts that follow each other at once, and of those that come alone.
SIZE, BURST, ALONE = 200, 20, 10
#: Redis: connections that listen, and publications.
SUBSCRIBERS, PUBLICATIONS = 400, 1000


def masked(text: bytes) -> bytes:
    """Return a frame of a client, with a mask of zeros (RFC 6455)."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text


class Client:
    """A WebSocket that has joined the default namespace."""

    def __init__(self, port: int) -> None:
        self.heard = self.beats = 0
        self._data = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        while b"\r\n\r\n" not in self._data:
            self._data += self.socket.recv(65536)
        assert self._data.startswith(b"HTTP/1.1 101"), self._data
        self._data = self._data.partition(b"\r\n\r\n")[2]
        self.socket.sendall(masked(b"40"))
        self.joined = False
        while not self.joined:
            self.read()

    def read(self) -> None:
        """Take what has come, and answer heartbeats."""
        data = self.socket.recv(65536)
        assert data, "closed"
        self._data += data
        while len(self._data) >= 2:
            start, size = 2, self._data[1]
            if size == 126:
                start, size = 4, int.from_bytes(self._data[2:4], "big")
            if len(self._data) < start + size:
                return
            packet, self._data = self._data[start : start + size], self._data[start + size :]
            if packet == b"2":
                self.beats += 1
                self.socket.sendall(masked(b"3"))
            elif packet.startswith(b"42"):
                self.heard += 1
            elif packet.startswith(b"40"):
                self.joined = True


class Clients:
    def __init__(self) -> None:
        self.all: list[Client] = []
        self._epoll = select.epoll()
        self._by_fd: dict[int, Client] = {}

    def add(self, port: int, number: int) -> None:
        for _ in range(number):
            client = Client(port)
            self.all.append(client)
            self._by_fd[client.socket.fileno()] = client
            self._epoll.register(client.socket, select.EPOLLIN)

    def serve(self, until: Callable[[], bool], patience: float = 30) -> None:
        deadline = time.monotonic() + patience
        while not until():
            assert time.monotonic() < deadline
            for fd, _ in self._epoll.poll(0.01):
                self._by_fd[fd].read()

    def serve_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.serve(lambda: time.monotonic() >= end)

    def broadcast(self, speakers: list[Client], count: int) -> None:
        """Let the workers of some clients broadcast, and wait until all clients have heard that."""
        wanted = sum(client.heard for client in self.all) + count * len(self.all)
        for client in speakers:
            client.socket.sendall(masked(b'42["broadcast",%d,%d]' % (count, SIZE)))
        self.serve(lambda: sum(client.heard for client in self.all) >= wanted)

    def close(self) -> None:
        for client in self.all:
            client.socket.close()


def kernel_memory() -> int:
    """Return the bytes of the kernel's objects, such as sockets."""
    return kib_in(Path("/proc/meminfo"), "Slab") * 1024


def measure(port: int, processes: list[int], number: int) -> dict[str, float]:
    """Return what clients of a port cost some processes."""

    def files() -> int:
        return sum(len(descriptors(pid)) for pid in processes)

    clients = Clients()
    clients.add(port, 10 * WORKERS)  # so that all modules are loaded
    before = [memory(processes), kernel_memory(), files(), cpu_seconds(processes)]
    clients.add(port, number)
    clients.serve_for(1)
    after = [memory(processes), kernel_memory(), files(), cpu_seconds(processes)]
    user, kernel, opened, used = [(b - a) / number for a, b in zip(before, after, strict=True)]
    figures = {
        "memory of a process before, MB": before[0] / len(processes) / 1e6,
        "memory, kB a client": user / 1000,
        "the kernel's, of all ends of all connections, kB a client": kernel / 1000,
        "open files a client": opened,
        "connection and handshakes, µs of CPU": used * 1e6,
    }

    beats, cpu = sum(client.beats for client in clients.all), cpu_seconds(processes)
    clients.serve_for(CALM)
    beats = sum(client.beats for client in clients.all) - beats
    figures["heartbeat, µs of CPU"] = (cpu_seconds(processes) - cpu) / beats * 1e6

    speakers: list[Client] = []
    while len(speakers) < WORKERS:
        # Who has heard nothing yet is with a worker that has not spoken yet.
        speakers.append(next(client for client in clients.all if not client.heard))
        speakers[-1].socket.sendall(masked(b'42["broadcast",1,1]'))
        clients.serve_for(0.5)
    for name, rounds, count in (("alone", ALONE, 1), (f"{BURST} at once", 1, BURST)):
        cpu, start = cpu_seconds(processes), time.monotonic()
        for _ in range(rounds):
            clients.broadcast(speakers, count)
        seconds = time.monotonic() - start
        deliveries = rounds * count * len(clients.all)
        figures[f"delivery of broadcasts, {name}, µs of CPU"] = (cpu_seconds(processes) - cpu) / deliveries * 1e6
        figures[f"deliveries of broadcasts, {name}, a second"] = deliveries / seconds
    clients.close()
    return figures


@contextmanager
def gunicorn(**env: str) -> Iterator[Server]:
    options = ("--sticky-by", "session", "-w", str(WORKERS), "--worker-connections", "100000", "socketio_app:app")
    env |= {"PYTHONPATH": str(HERE), "PING_INTERVAL": str(PING_INTERVAL)}
    config = "def post_worker_init(worker): worker.log.info('Ready')"
    with Server(*STICKY, *options, env=env, config=config) as server:
        server.wait_for_log("Ready", count=WORKERS)
        yield server
        server.stop(signal.SIGQUIT)  # clients that stay are not waited for


@contextmanager
def program(*command: str) -> Iterator[int]:
    """Run a program, and yield its pid."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def measure_clients(number: int) -> dict[str, float]:
    with gunicorn() as server, reserved_port() as port:
        figures = {f"workers: {k}": v for k, v in measure(server.port, server.alive("worker"), number).items()}
        file = server.folder / "haproxy.cfg"
        file.write_text(HAPROXY.format(workers=1, port=port, upstream=f"server app 127.0.0.1:{server.port}"))
        with program("haproxy", "-db", "-f", str(file)) as pid:
            wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "HAProxy")
            figures |= {f"HAProxy: {k}": v for k, v in measure(port, [pid], number).items()}
    return figures


def measure_redis() -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as folder,
        program("redis-server", "--port", "0", "--unixsocket", f"{folder}/redis", "--save", "") as pid,
    ):

        def connection() -> socket.socket:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(30)
            link.connect(f"{folder}/redis")
            return link

        wait_for(lambda: Path(folder, "redis").exists(), "Redis")
        figures = measure_events(f"unix://{folder}/redis")
        subscribers = [connection() for _ in range(SUBSCRIBERS)]
        for subscriber in subscribers:
            subscriber.sendall(b"SUBSCRIBE events\r\n")
            subscriber.recv(1000)
        publisher = connection()
        cpu, start = cpu_seconds([pid]), time.monotonic()
        for _ in range(PUBLICATIONS):
            publisher.sendall(b"PUBLISH events %s\r\n" % (b"x" * SIZE))
            for link in (publisher, *subscribers):
                link.recv(1000)
        seconds, used = time.monotonic() - start, cpu_seconds([pid]) - cpu
        for link in (publisher, *subscribers):
            link.close()
    deliveries = PUBLICATIONS * SUBSCRIBERS
    return figures | {
        "Redis: publication to one subscriber, µs of CPU": used / deliveries * 1e6,
        "Redis: such deliveries a second": deliveries / seconds,
    }


def measure_events(url: str) -> dict[str, float]:
    """Return what it costs a worker to hear of events that are for none of its clients."""
    figures = {}
    manager = socketio.RedisManager(url, write_only=True)
    with gunicorn(REDIS_URL=url) as server:
        workers = server.alive("worker")
        clients = Clients()
        clients.add(server.port, 10 * WORKERS)

        def heard_by_all() -> bool:
            """Events come in turn: who has heard this one has heard those before it."""
            heard = [client.heard for client in clients.all]
            manager.emit("said", "now")
            clients.serve_for(0.2)
            return all(client.heard > before for client, before in zip(clients.all, heard, strict=True))

        for name, pause in (("alone", 0.002), ("at once", 0.0)):
            wait_for(heard_by_all, "all workers")
            cpu = cpu_seconds(workers)
            for _ in range(PUBLICATIONS):
                manager.emit("said", "x" * SIZE, room="nobody")
                time.sleep(pause)
            wait_for(heard_by_all, "all workers")
            figures[f"workers: event for clients elsewhere, {name}, µs of CPU"] = (
                (cpu_seconds(workers) - cpu) / WORKERS / PUBLICATIONS * 1e6
            )
        clients.close()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = [measure_clients(given.clients) | measure_redis() for _ in range(given.rounds)]
    print(machine(), versions(), output_of("redis-server", "--version"))
    for name in found[0]:
        print(f"| {name} | {Spread.of([figures[name] for figures in found]).text()} |")
