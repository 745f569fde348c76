"""Socket.IO clients that come and go: python soak_sessions.py PORT ip|header|session|cookie COUNT

Each connects, asks its worker who it is for a few seconds, and leaves. Prints a line about each connecting and each
question, as load.py does, with the kind "sio". Ends when its standard input does.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.harness import addresses, wait_for
from support.sio_client import Client

#: How many questions a client asks, and the seconds between two of them.
QUESTIONS, PAUSE = 12, 0.3
#: Seconds to wait for an answer.
PATIENCE = 20.0
TRANSPORTS = ("polling", "websocket", "polling,websocket")

port, by, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
done = threading.Event()


def record(source: str, opened: float, kept: bool, start: float, outcome: str, pid: int | None) -> None:
    values: dict[str, Any] = {"client": source, "kind": "sio", "kept": kept, "split": False, "seconds": 0.0}
    values |= {"slot": None, "last_slot": None, "began": None, "retry_after": -1.0, "opened": opened}
    values |= {"start": start, "end": time.monotonic(), "outcome": outcome}
    values |= {"pid": pid, "last_pid": pid, "owner": pid}
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def ask(client: Client) -> dict[str, Any]:
    """Ask a client's worker who it is. (The library's own `call` goes on waiting when the connection is lost.)"""
    answers: list[dict[str, Any]] = []
    client.emit("where", callback=answers.append)
    wait_for(lambda: answers or not client.connected, "an answer", PATIENCE)
    if not answers:
        raise ConnectionError("lost")
    return answers[0]


def run(source: str) -> None:
    chance = random.Random(source)
    headers = {"X-Forwarded-For": source} if by == "header" else {}
    while not done.is_set():
        opened = time.monotonic()
        client, pid, start = None, None, opened
        try:
            own = source if by == "ip" else None
            client = Client(port, chance.choice(TRANSPORTS), source=own, headers=headers, patience=PATIENCE)
            pid = client.pid
            record(source, opened, False, opened, "200", pid)
            for _ in range(QUESTIONS):
                if done.wait(PAUSE):
                    break
                start = time.monotonic()
                outcome = "200" if ask(client)["pid"] == pid else "wrong"
                record(source, opened, True, start, outcome, pid)
        except Exception as error:  # whatever the libraries raise when their connection is lost
            record(source, opened, client is not None, start, f"{type(error).__name__}: {error}"[:200], pid)
            done.wait(PAUSE)
        finally:
            if client is not None:
                client.close()


logging.disable()
threads = [threading.Thread(target=run, args=[source]) for source in addresses(1000)[-count:]]
for thread in threads:
    thread.start()
sys.stdin.read()
done.set()
for thread in threads:
    thread.join()
