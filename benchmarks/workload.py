"""What is asked of the contenders, and which of them take part."""

from __future__ import annotations

from dataclasses import dataclass

from client import MESSAGES
from contender import CHOSEN, NODE

STICKY = ("sticky by ip", "sticky by header", "sticky by session")
PROXIES = ("nginx + N Gunicorns", "HAProxy + N Gunicorns")


@dataclass(frozen=True)
class Workload:
    name: str
    #: What client.py does.
    kind: str
    #: Whom the others are compared with.
    baseline: str
    #: The baseline is one of them.
    contenders: tuple[str, ...]
    #: Those of `make bench-quick`, and of other numbers of workers than 2.
    few: tuple[str, ...]
    #: Requests, or for WebSocket messages, of one of the client's sessions.
    requests: int = 1
    #: Whether it runs with other numbers of workers than 2: where each request is a new connection.
    scales: bool = False


WORKLOADS = (
    Workload(
        "new connections",
        "new",
        "stock",
        ("stock", "stock again", *STICKY, *PROXIES, *NODE),
        ("stock", *STICKY[:2], *PROXIES, NODE[0]),
        scales=True,
    ),
    Workload(
        "keep-alive",
        "keep-alive",
        "stock",
        ("stock", "stock again", *STICKY, *PROXIES, *NODE),
        ("stock", *STICKY),
    ),
    Workload(
        "behind nginx keepalive",
        "keep-alive",
        "nginx keepalive + stock",
        (
            "nginx keepalive + stock",
            "nginx keepalive + sticky by header",
            "nginx keepalive + N Gunicorns",
            *PROXIES,
        ),
        ("nginx keepalive + stock", "nginx keepalive + sticky by header", "nginx + N Gunicorns"),
    ),
    Workload(
        "Engine.IO polling",
        "polling",
        "stock -w 1",
        ("stock -w 1", "stock", CHOSEN, *STICKY, *PROXIES, *NODE),
        ("stock -w 1", CHOSEN, "sticky by session", PROXIES[0], NODE[0]),
        requests=2 + 2 * MESSAGES,
        scales=True,
    ),
    Workload(
        "WebSocket",
        "websocket",
        "stock",
        ("stock", *STICKY, *PROXIES, *NODE),
        ("stock", "sticky by session"),
        requests=MESSAGES,
    ),
)


def cannot(workload: Workload, contender: str, workers: int) -> bool:
    """Tell whether a contender is known not to do a workload. It is tried all the same, and its errors are reported."""
    if contender == "socketio-sticky-session by header":  # made for Node 0.12
        return True
    if workload.kind == "polling":
        return contender == "stock" and workers > 1
    return workload.kind == "keep-alive" and contender == "@socket.io/sticky"
