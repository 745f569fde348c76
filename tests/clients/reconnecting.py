"""Socket.IO clients that stay: python-socketio as it is, with cookies, and reconnecting by itself.

Takes the URL and the number of clients, reads commands from stdin, each a JSON list on a line, and answers each with a
line of JSON.
"""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import requests
import socketio

TIMEOUT = 60
MODES = {"polling": ["polling"], "upgrade": ["polling", "websocket"], "websocket": ["websocket"]}


class Client:
    def __init__(self, url, mode):
        self.url = url
        self.mode = mode
        session = requests.Session()
        session.trust_env = False
        self.sio = socketio.Client(http_session=session, request_timeout=TIMEOUT, handle_sigint=False)
        self.workers = []
        self.losses = 0
        self.heard: list[str] = []
        self.sio.on("connect", self.on_connect)
        self.sio.on("disconnect", self.on_disconnect)
        self.sio.on("said", self.heard.append)

    def on_connect(self):
        with contextlib.suppress(socketio.exceptions.SocketIOError):  # lost again meanwhile
            self.workers.append(self.sio.call("who", timeout=TIMEOUT))

    def on_disconnect(self, reason):
        self.losses += 1

    def connect(self):
        self.sio.connect(self.url, transports=MODES[self.mode], wait_timeout=TIMEOUT)

    def status(self):
        return {
            "mode": self.mode,
            "transport": self.sio.connected and self.sio.transport(),
            "workers": self.workers,
            "losses": self.losses,
            "heard": self.heard,
        }


url, number = sys.argv[1], int(sys.argv[2])
clients = [Client(url, list(MODES)[n % len(MODES)]) for n in range(number)]
with ThreadPoolExecutor(number) as pool:
    list(pool.map(Client.connect, clients))
for line in sys.stdin:
    match json.loads(line):
        case ["status"]:
            answer = [client.status() for client in clients]
        case ["say", who, text]:
            answer = clients[who].sio.emit("say", text)
    print(json.dumps(answer), flush=True)
