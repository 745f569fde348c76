"""The clients of scaling.py, in processes of their own: WebSockets that stay, and sessions that come and go.

    python scaling_client.py stay '{"port": 8000, "count": 5000, "offset": 0}'
    python scaling_client.py visit '{"ports": [8000], "rate": 1000, "seconds": 5}'

A session is two requests: one begins it, the next one carries its id. They share a connection, but every fifth next
request comes on the connection of an earlier session, which is another worker's: a tenth of all requests make the
connection change hands.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
from typing import Any

from client import Connection, Load, Steps, Wrong, address, now
from footprint import UPGRADE

#: Of all requests, those that make a connection change hands.
SHARE = 0.1
#: That many visit at a time. With a multiple of the number of workers, which take turns, each would meet its own again.
CLIENTS = 61
#: WebSockets that are opened at once.
BATCH = 32
#: Seconds that one may take.
PATIENCE = 60


class Visits(Load):
    def __init__(self, **options: Any) -> None:
        super().__init__(workload="new", clients=CLIENTS, **options)
        self.session = self.visit
        #: The worker of each connection that is kept.
        self.owners: dict[int, bytes] = {}
        self.sessions_ended = 0
        self.handovers: list[float] = []

    def visit(self, number: int, source: str, due: float) -> Steps:
        """Begin a session, and end it on its own connection, or on that of the one before; but not after the run."""
        if now() > self.end:
            return
        earlier, owner = self.kept.get(number), self.owners.get(number)
        own = self.kept[number] = Connection(self, source)
        _head, body = yield from self.exchange(own, self.head(source, "/begin"))
        self.answered(due)
        self.requests += 1
        worker, sid = body.split()
        self.owners[number] = worker
        used, since = own, now()
        if earlier and owner != worker and len(self.handovers) < SHARE * self.requests:
            used = earlier
        _head, body = yield from self.exchange(used, self.head(source, f"/end?sid={sid.decode()}"))
        if body != b"known":
            raise Wrong("a session is not known where its id leads")
        self.requests += 1
        self.sessions_ended += 1
        if used is earlier:
            self.handovers.append(now() - since)
        if earlier:
            earlier.close()

    def report(self) -> dict[str, Any]:
        """Run, and return what has been seen."""
        seen = self.run()
        self.latencies = sorted(self.handovers)
        handover = {"handovers": len(self.handovers), "handover p50": self.quantile(0.5)}
        return seen | handover | {"sessions": self.sessions_ended}


def opened(port: int, number: int) -> socket.socket:
    """Begin to open a WebSocket."""
    client = socket.create_connection(("127.0.0.1", port), PATIENCE, (address(number), 0))
    client.sendall(UPGRADE)
    return client


def stay(port: int, count: int, offset: int) -> None:
    """Open WebSockets, say so, wait for the end of the input, and say how many have not been closed until then."""
    clients: list[socket.socket] = []
    for start in range(0, count, BATCH):
        batch = [opened(port, offset + number) for number in range(start, min(start + BATCH, count))]
        for client in batch:
            data = b""
            while not data.endswith(b"}"):
                received = client.recv(65536)
                assert received, data
                data += received
        clients += batch
    print("open", flush=True)
    sys.stdin.read()
    ends = select.poll()
    for client in clients:
        ends.register(client, select.POLLRDHUP)
    print(count - len(ends.poll(0)))


if __name__ == "__main__":
    gc.disable()
    options = json.loads(sys.argv[2])
    if sys.argv[1] == "stay":
        stay(**options)
    else:
        print(json.dumps(Visits(**options).report()))
