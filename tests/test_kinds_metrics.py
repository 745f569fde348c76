"""What is counted is the same for each kind of worker, and wherever it is told: status, statsd and /metrics."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import parser
from support.connections import Connection
from support.harness import Server, addresses, request, wait_for
from support.kinds import Kind, each_kind
from support.statsd import Agent, agent

pytestmark = pytest.mark.features

CLIENTS = addresses(24)
#: After what `ask` does.
EXPECTED = {
    "slot.requests": 24 + 6,
    "slot.dispatched": 24 + 1,
    "slot.handed_over": 2,
    "slot.taken_over": 2,
    "slot.refused": 1,
    "dispatcher.accepted": 24 + 2,
    "dispatcher.handed_back": 2,
    "dispatcher.keys.header": 24 + 1,
    "dispatcher.refused.400": 1,
}
#: The series of these at /metrics.
SERIES = {
    "slot.requests": "slot_requests_total",
    "slot.dispatched": "slot_dispatched_connections_total",
    "slot.handed_over": "slot_handed_over_connections_total",
    "slot.taken_over": "slot_taken_over_connections_total",
    "slot.refused": "slot_refusals_total",
    "dispatcher.accepted": "dispatcher_accepted_connections_total",
    "dispatcher.handed_back": "dispatcher_handed_back_connections_total",
    "dispatcher.keys.header": "dispatcher_keys_total",
    "dispatcher.refused.400": "dispatcher_refusals_total",
}


def ask(server: Server) -> Connection:
    """Send a request on 24 new connections and six on one that is kept alive and moves twice; two more are refused."""
    slots = {client: server.who(headers={"X-Forwarded-For": client})["slot"] for client in CLIENTS}
    here, there = (next(client for client in CLIENTS if slots[client] == slot) for slot in (0, 1))
    kept = Connection(server.port)
    for client in (here, here, there, there, there, here):
        kept.socket.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n".encode())
        assert kept.answer()["key"] == client
    assert server.get().status == 400
    return kept


def of_status(port: int) -> dict[str, int]:
    found = json.loads(request(port, "/status").body)
    sums = {name: sum(slot[name.partition(".")[2]] for slot in found["slots"]) for name in EXPECTED if "slot." in name}
    dispatcher: Any = found["dispatcher"]
    return {
        **sums,
        "dispatcher.accepted": dispatcher["accepted"],
        "dispatcher.handed_back": dispatcher["handed_back"],
        "dispatcher.keys.header": dispatcher["keys"]["header"],
        "dispatcher.refused.400": dispatcher["refused"]["400"],
    }


def of_prometheus(port: int) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for family in parser.text_string_to_metric_families(request(port, "/metrics").body.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return {name: sums[f"gunicorn_sticky_{series}"] for name, series in SERIES.items()}


def of_statsd(heard: Agent) -> dict[str, int]:
    sums = Counter[str]()
    for name, value in heard.read().counters.items():
        sums[re.sub(r"^slot\.\d+", "slot", name)] += value
    return {name: sums[name] for name in EXPECTED}


@each_kind()
def test_all_tell_the_same(kind: Kind):
    with (
        agent(("127.0.0.1", 0)) as (heard, host),
        Server(
            *(*kind.args, "--sticky-proxy", "-w", "2", "--keep-alive", "30"),
            *("--statsd-host", host, "--sticky-status", "127.0.0.1:0", kind.app("whoami")),
        ) as server,
        ThreadPoolExecutor() as pool,
    ):
        port = int(server.wait_for_log(r"Status at: http://.*:(\d+)$").group(1))
        asked = pool.submit(ask, server)
        wait_for(lambda: heard.read() and asked.done(), "all answers")  # who sends to an agent that is full waits
        kept = asked.result()
        kept.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.socket.recv(13) == b"HTTP/1.1 400 "
        kept.close()
        wait_for(lambda: of_status(port) == EXPECTED, f"{EXPECTED}, not {of_status(port)}")
        assert of_prometheus(port) == EXPECTED
        wait_for(lambda: of_statsd(heard) == EXPECTED, f"{EXPECTED}, not {of_statsd(heard)}")
        wait_for(lambda: not sum(heard.read().gauges[f"slot.{slot}.connections"] for slot in (0, 1)), "no connection")
