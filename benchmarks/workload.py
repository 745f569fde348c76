"""What is asked of the contenders, and which of them take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client import CALLS, MESSAGES
from contender import CHOSEN, NODE
from kind import KINDS, Kind

STICKY = ("sticky by ip", "sticky by header", "sticky by session")
PROXIES = ("nginx + N servers", "HAProxy + N servers")
#: What can be had without us: stickiness that costs nothing, and what others do.
OTHERS = (CHOSEN, *PROXIES)
MIXED = "behind nginx keepalive"


@dataclass(frozen=True)
class Workload:
    name: str
    #: What client.py does.
    does: str
    #: Whom the others are compared with.
    baseline: str
    #: The baseline is one of them.
    contenders: tuple[str, ...]
    #: Those of `make bench-quick`, and of other numbers of workers than 2: the fewest that tell something.
    few: tuple[str, ...]
    #: Requests, or for WebSocket messages, of one of the client's sessions.
    requests: int = 1
    #: Whether it runs with other numbers of workers than 2: where each request is a new connection.
    scales: bool = False
    interfaces: tuple[str, ...] = ("wsgi", "asgi")

    def names(self, kind: Kind, few: bool, chosen: Sequence[str] | None) -> list[str]:
        """Return who takes part: few, all, or those that are chosen, and with these the baseline.

        Node's packages do only once, as they are the same whatever kinds of workers Gunicorn has.
        """
        if kind.interface not in self.interfaces:
            return []
        if chosen:
            return [name for name in self.contenders if name in (self.baseline, *chosen)]
        return [name for name in (self.few if few else self.contenders) if name not in NODE or kind == KINDS[0]]


WORKLOADS = (
    Workload(
        "new connections",
        "new",
        "stock",
        ("stock", "stock again", *STICKY, *OTHERS, *NODE),
        ("stock", STICKY[0], CHOSEN, PROXIES[0]),
        scales=True,
    ),
    Workload(
        "keep-alive",
        "keep-alive",
        "stock",
        ("stock", "stock again", *STICKY, *OTHERS, *NODE),
        ("stock", STICKY[0]),
    ),
    Workload(
        MIXED,
        "keep-alive",
        "nginx keepalive + stock",
        (
            "nginx keepalive + stock",
            "nginx keepalive + sticky by header",
            "nginx keepalive + N servers",
            *PROXIES,
        ),
        (),
    ),
    Workload(
        "Engine.IO polling",
        "polling",
        "stock -w 1",
        ("stock -w 1", "stock", *STICKY, *OTHERS, *NODE),
        ("stock -w 1", STICKY[2]),
        requests=2 + 2 * MESSAGES,
        scales=True,
    ),
    Workload(
        "MCP calls",
        "mcp",
        "stock -w 1",
        ("stock -w 1", "stock", *STICKY, *OTHERS),
        ("stock -w 1", STICKY[2]),
        requests=3 + CALLS,
        interfaces=("asgi",),
    ),
    Workload(
        "WebSocket echo",
        "websocket",
        "stock",
        ("stock", *STICKY, *OTHERS, *NODE),
        ("stock", STICKY[2]),
        requests=MESSAGES,
    ),
)


def cannot(workload: Workload, contender: str, workers: int) -> bool:
    """Tell whether a contender is known not to do a workload. It is tried all the same, and its errors are reported."""
    if contender == "socketio-sticky-session by header":  # made for Node 0.12
        return True
    if workload.does in ("polling", "mcp"):
        return contender == "stock" and workers > 1
    return workload.does == "keep-alive" and contender == "@socket.io/sticky"
