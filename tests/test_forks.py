"""An application that forks: what its child does, and how it ends, is nothing to the worker."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.harness import Server, wait_for
from support.kinds import KINDS, Kind, each_kind, one_each

from gunicorn_sticky.status.snapshot import find

pytestmark = pytest.mark.features

CONFIG = """
def post_worker_init(worker):
    import forks
    forks.WORKER = worker
"""
SIGNALS = ["SIGTERM", "SIGQUIT", "SIGINT", "SIGUSR1", "SIGABRT"]


@pytest.fixture(scope="module")
def server(kind: Kind) -> Iterator[Server]:
    options = ("-w", "1", "--keep-alive", "30", "--sticky-cluster-socket", "cluster", "--sticky-by", "session")
    with Server(*kind.args, *options, kind.app("forks"), config=CONFIG) as server:
        server.wait_for_log(r"Slot 0: ready")
        yield server


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)


def ask(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    return dict(json.loads(connection.getresponse().read()))


def state(server: Server) -> Any:
    """Return what the arbiter and others know of the worker."""
    (found,) = find(server.pid)
    status = found.status()
    (slot,) = status["slots"]
    (worker,) = slot["workers"]
    return [status["in_charge"], slot["state"], slot["minted"], slot["refused"], worker["pid"], worker["state"]]


PATHS = [
    "/terminate/",
    *[f"/process/{what}" for what in (*SIGNALS, "speak", "fork", "fail", "leave", "wait")],
    *[f"/fork/{what}" for what in (*SIGNALS, "speak", "fork", "fail", "leave", "wait")],
]
FEW = ["/terminate/", "/process/SIGTERM", "/process/speak", "/fork/SIGTERM", "/fork/fork", "/fork/fail", "/fork/speak"]


@pytest.mark.parametrize(
    ("kind", "path"), one_each([(path,) for path in PATHS], [(path,) for path in FEW], group="forks"), scope="module"
)
def test_a_child(server: Server, path: str):
    (release := server.folder / "release").unlink(missing_ok=True)
    before = state(server)
    idle, busy, own = connect(server), connect(server), connect(server)
    pid = ask(idle, "/who/")["pid"]
    busy.request("GET", "/hold/")
    answer = ask(own, path)
    assert answer["pid"] == pid
    assert answer["code"] is not None
    if path.endswith(("speak", "/fork")):
        assert answer["code"] == 0, server.log
    for n in range(20):  # the child, if it still lives, reads none of these
        assert ask((idle, own)[n % 2], "/who/")["pid"] == pid
        assert json.loads(server.get("/who/").body)["pid"] == pid
    release.touch()
    assert json.loads(busy.getresponse().read())["pid"] == pid
    for connection in (idle, busy, own):
        connection.close()
    assert state(server) == before
    assert server.alive("worker") == [pid]


@each_kind(KINDS[:1], group="forks")
def test_while_a_child_lives_the_worker_serves(server: Server):
    (server.folder / "release").unlink(missing_ok=True)
    idle, busy = connect(server), connect(server)
    pid = ask(idle, "/who/")["pid"]
    others = set(server.session())
    busy.request("GET", "/process/stay")
    children = wait_for(lambda: set(server.session()) - others, "the child")
    for _ in range(50):
        assert ask(idle, "/who/")["pid"] == pid
        assert json.loads(server.get("/who/").body)["pid"] == pid
    assert children <= set(server.session())
    (server.folder / "over").touch()
    assert json.loads(busy.getresponse().read()) == {"pid": pid, "code": 0}
    for connection in (idle, busy):
        connection.close()
