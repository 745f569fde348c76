"""Many clients of tests/apps/cluster_app.py: python crowd.py PORT WEBSOCKETS POLLERS ENDS

Prints a line of JSON when all are connected: the pids of their workers. When each has heard the event "end" ENDS times,
it prints another one: what each client has heard with the event "said".
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from gevent.pool import Pool  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.sio_client import Client  # noqa: E402

#: Seconds that all of it may take, beside other tests.
PATIENCE = 120.0

port, websockets, pollers, ends = map(int, sys.argv[1:])
transports = ["websocket"] * websockets + ["polling"] * pollers
clients = Pool(20).map(lambda transport: Client(port, transport), transports)
print(json.dumps([client.pid for client in clients]), flush=True)
for client in clients:
    client.wait_for("end", ends, PATIENCE)
print(json.dumps([[args for event, *args in client.heard if event == "said"] for client in clients]))
