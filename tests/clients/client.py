"""Socket.IO clients, all at once: reads what to do from stdin, prints one JSON object a client, as client.mjs does."""

import contextlib
import json
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import socketio

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.sio_client import From

TIMEOUT = 60


def run(address, task, transports):
    session = requests.Session()
    session.trust_env = False
    session.headers["Connection"] = "close"  # each request of long polling is a new TCP connection
    headers, websocket_options = {}, {}
    if task["by"] == "header":
        headers["X-Forwarded-For"] = address
        session.headers.update(headers)  # those given to connect() are not sent with later polling requests
    elif task["by"] == "ip":
        session.mount("http://", From(address))
        if "websocket" in transports:
            # websocket-client cannot be told where to connect from
            websocket_options["socket"] = socket.create_connection(
                ("127.0.0.1", task["port"]), TIMEOUT, source_address=(address, 0)
            )
    client = socketio.Client(
        http_session=session,
        websocket_extra_options=websocket_options,
        request_timeout=TIMEOUT,
        handle_sigint=False,
    )
    connects, lost = [], threading.Event()
    client.on("connect", lambda: connects.append(client.sid))
    client.on("disconnect", lambda reason: lost.set())
    result = {"address": address, "answers": []}
    try:
        client.connect(f"http://127.0.0.1:{task['port']}", headers=headers, transports=transports, wait_timeout=TIMEOUT)
        result["answers"].append(client.call("who", timeout=TIMEOUT))
        lost.wait(task["stay"])
        result["answers"].append(client.call("who", timeout=TIMEOUT))
        result["transport"] = client.transport()
    except Exception as error:
        result["error"] = repr(error)
    result["still_connected"] = client.connected and not lost.is_set()
    result["reconnects"] = max(len(connects) - 1, 0)
    with contextlib.suppress(Exception):  # it may not be connected
        client.eio.disconnect(abort=True)  # which does not wait for a poll to end
    return result


task = json.load(sys.stdin)
clients = [(address, transports) for transports, addresses in task["clients"] for address in addresses]
with ThreadPoolExecutor(len(clients)) as pool:
    json.dump(list(pool.map(lambda client: run(client[0], task, client[1]), clients)), sys.stdout)
