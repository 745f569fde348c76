"""Starts the chat with all that it needs on one machine: ``python demo.py [gunicorn's options]``.

PORT chooses the port. A few bots make up for the visitors that a single machine does not have.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import requests
import socketio

HERE = Path(__file__).parent
BOTS = 4
LINES = (
    "Everybody here comes from {key}. My session id tells that I belong to slot {slot}.",
    "I only use long polling. Each request is a new connection, and all of them find process {pid}.",
    "If you stop me with “kill -9 {pid}”, I come back at once, on whichever slot has the fewest clients.",
)


class Bot:
    """A participant that says a line from time to time and answers people."""

    def __init__(self, url, number):
        session = requests.Session()
        session.trust_env = False  # no proxy from the environment
        session.headers["Connection"] = "close"  # each request is a new connection
        self._url = url
        self._number = number
        self._me = {}
        self._welcomed = threading.Event()
        self._lines = itertools.cycle(LINES[number % len(LINES) :] + LINES[: number % len(LINES)])
        self._client = socketio.Client(http_session=session, reconnection_delay_max=1, handle_sigint=False)
        self._client.on("welcome", self._welcome)
        self._client.on("said", self._answer)

    def connect(self):
        """Become a client, and return the slot of the worker that serves it."""
        self._welcomed.clear()
        auth = {"name": f"Bot {self._number}", "bot": True}
        # The server may be slow to start, and with retry, an attempt that fails is repeated.
        self._client.connect(self._url, auth=auth, transports=["polling"], wait_timeout=10, retry=True)
        self._welcomed.wait()
        return self._me["slot"]

    def disconnect(self):
        self._client.disconnect()

    def _welcome(self, me):
        self._me = me
        self._welcomed.set()

    def _answer(self, message):
        if not message["bot"]:
            time.sleep(0.5 + 0.4 * self._number)
            self._say("Heard you on slot {slot}, in process {pid}.")

    def talk(self):
        self._say(next(self._lines))

    def _say(self, line):
        if self._client.connected and self._me:
            self._client.emit("say", line.format(**self._me))


def settle(bots):
    """Connect each bot to a worker of its own, as far as there are so many."""
    slots = {bots[0].connect()}
    deadline = time.monotonic() + 20
    for bot in bots[1:]:
        while (slot := bot.connect()) in slots and time.monotonic() < deadline:  # the others are still booting
            bot.disconnect()
            time.sleep(0.1)
        slots.add(slot)


def run_bots(url):
    bots = [Bot(url, number) for number in range(BOTS)]
    settle(bots)
    print(f"\n  The chat is at {url} (stop it with Ctrl-C)\n", flush=True)
    while True:
        for bot in bots:
            bot.talk()
            time.sleep(5)


def main():
    # The address gunicorn.conf.py has, opened here: a port in use is told at once, and gunicorn inherits the socket.
    port = int(os.environ.get("PORT") or 8000)
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"Cannot listen on port {port} ({os.strerror(error.errno or 0)}). Choose another one: PORT={port + 1}")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    # SIGTERM ends it in the same way as Ctrl-C, which a shell may have told background jobs to ignore.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", *sys.argv[1:], "chat:app"],
        cwd=HERE,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # Ctrl-C is for this process only: gunicorn's workers would get it twice
    )
    try:
        threading.Thread(target=run_bots, args=[url], daemon=True).start()
        while server.poll() is None:  # not wait(), which a signal that another thread gets would not interrupt
            time.sleep(0.2)
        return server.returncode
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.send_signal(signal.SIGINT)  # at once, without waiting for open sessions
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
