"""What sticky sessions cost: CPU seconds of the server per 10 000 requests, against Gunicorn's stock gevent worker.

All servers run side by side and are loaded in turn, round by round, so that each figure has a partner from the same
seconds. CPU seconds are those of all processes of a server; the client's do not count.

    python benchmarks/cost.py [--requests N] [--rounds N] [--workers N]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness import STICKY, Server, addresses, request

SERVERS = {
    "stock gevent": ("-k", "gevent"),
    "sticky by ip": STICKY,
    "sticky by header": (*STICKY, "--sticky-proxy"),
}
CLIENTS = addresses(64)
THREADS = 16
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(server: Server) -> float:
    total = 0
    for pid in [server.pid, *server.children()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def read_response(client: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)


def load(port: int, count: int, keep_alive: bool) -> None:
    """Send `count` requests from `THREADS` threads, from many addresses."""

    def run(share: list[str]) -> None:
        for client in share:
            requests = count // len(CLIENTS)
            head = f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n"
            while requests > 0:
                with socket.create_connection(("127.0.0.1", port), source_address=(client, 0)) as connection:
                    for _ in range(requests if keep_alive else 1):
                        last = "" if keep_alive else "Connection: close\r\n"
                        connection.sendall(f"{head}{last}\r\n".encode())
                        read_response(connection)
                        requests -= 1

    threads = [threading.Thread(target=run, args=[CLIENTS[n::THREADS]]) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    running: dict[str, Server] = {}
    try:
        for name, args in SERVERS.items():
            running[name] = Server(*args, "-w", options.workers, "hello:app")
        for server in running.values():
            for client in CLIENTS:
                assert request(server.port, source=client, headers={"X-Forwarded-For": client}).status == 200
        for keep_alive in (False, True):
            print("keep-alive:" if keep_alive else "new connection per request:")
            costs: dict[str, list[float]] = {name: [] for name in running}
            for _ in range(options.rounds):
                for name, server in running.items():
                    before = cpu_seconds(server)
                    load(server.port, options.requests, keep_alive)
                    costs[name].append((cpu_seconds(server) - before) * 10_000 / options.requests)
            stock = costs["stock gevent"]
            for name, seconds in costs.items():
                ratio = statistics.median(own / other for own, other in zip(seconds, stock, strict=True))
                print(f"  {name:18} {statistics.median(seconds):6.2f} CPU s per 10 000 requests, {ratio:5.2f} x stock")
    finally:
        for server in running.values():
            server.__exit__(None, None, None)


if __name__ == "__main__":
    main()
