"""The server hooks: the same ones, in the same order and with the same arguments as under Gunicorn's own arbiter."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections import Counter

import pytest
from support.harness import PATIENCE, STICKY, Server, request, wait_for
from support.kinds import KINDS, Kind, each_kind

pytestmark = pytest.mark.features

#: uvicorn calls no hooks for requests, neither its own worker nor ours.
HOOKED = [kind for kind in KINDS if kind.has_all]
#: Writes a line for each call: who called, the hook's name, and what can be told of its arguments.
RECORD = """
import os
MASTER = os.getpid()

def record(name, *about):
    who = "master" if os.getpid() == MASTER else str(os.getpid())
    with open("calls", "a") as calls:
        print(who, name, *about, file=calls)

def on_starting(server): record("on_starting", server.pid == MASTER, len(server.LISTENERS))
def on_reload(server): record("on_reload", server.pid == MASTER, len(server.LISTENERS))
def when_ready(server): record("when_ready", server.pid == MASTER, len(server.LISTENERS))
def nworkers_changed(server, new, old): record("nworkers_changed", new, old)
def pre_fork(server, worker): record("pre_fork", worker.age, worker.pid)
def post_fork(server, worker): record("post_fork", worker.age, worker.pid == os.getpid())
def post_worker_init(worker): record("post_worker_init", worker.age, bool(getattr(worker, "wsgi", None) or worker.asgi))
def pre_request(worker, req): record("pre_request", worker.age, req.method, req.path)
def post_request(worker, req, environ, resp):
    record("post_request", worker.age, req.path, *([resp.status] if resp else []))
def worker_int(worker): record("worker_int", worker.age)
def worker_abort(worker): record("worker_abort", worker.age)
def worker_exit(server, worker): record("worker_exit", worker.age)
def child_exit(server, worker): record("child_exit", worker.age, worker.pid != os.getpid())
def pre_exec(server): record("pre_exec", os.getppid() == MASTER)
def on_exit(server): record("on_exit", server.pid == MASTER)
"""


def calls(server: Server) -> dict[str, list[str]]:
    """Return the calls of each process, in their order; workers are named by the age that their hooks tell."""
    found: dict[str, list[str]] = {}
    path = server.folder / "calls"
    for line in path.read_text().splitlines() if path.exists() else []:
        who, _, call = line.partition(" ")
        found.setdefault(who, []).append(call)
    return {who if who == "master" else f"worker {made[0].split()[1]}": made for who, made in found.items()}


def wait_for_call(server: Server, call: str, count: int = 1) -> None:
    wait_for(lambda: sum(made.count(call) for made in calls(server).values()) >= count, f"{call}: {calls(server)}")


# Gunicorn's own worker class shows that the order is Gunicorn's. What follows them was compared in the same way, and
# would take long.
both = pytest.mark.parametrize("is_sticky", [False, True], ids=["stock", "sticky"])


def args(kind: Kind, is_sticky: bool) -> tuple[str, ...]:
    return kind.args if is_sticky else ("-k", kind.stock, *kind.options)


@each_kind(HOOKED)
@both
def test_from_start_to_stop(kind: Kind, is_sticky: bool):
    with Server(*args(kind, is_sticky), "-w", "2", kind.app("whoami"), config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        assert server.get("/there").status == 200
        assert server.stop() == 0
        made = calls(server)
        lines = (server.folder / "calls").read_text().splitlines()
        dispatchers = server.booted("dispatcher")  # which call no hook
    assert len(dispatchers) == is_sticky
    assert not [line for line in lines if any(line.startswith(f"{pid} ") for pid in dispatchers)]
    (served,) = (age for age in (1, 2) if f"pre_request {age} GET /there" in made[f"worker {age}"])
    assert made["master"] == [
        "nworkers_changed 2 None",
        "on_starting True 0",
        "when_ready True 1",
        "pre_fork 1 [booting]",
        "pre_fork 2 [booting]",
        *(call for call in made["master"] if call.startswith("child_exit")),
        "on_exit True",
    ]
    assert {"child_exit 1 True", "child_exit 2 True"} <= set(made["master"])
    for age in (1, 2):
        # Gunicorn's ASGI worker shows the hook no response, unless it writes an access log.
        answer = " 200 OK" if kind.interface == "wsgi" else ""
        requests = [f"pre_request {age} GET /there", f"post_request {age} /there{answer}"]
        assert made[f"worker {age}"] == [
            f"post_fork {age} True",
            f"post_worker_init {age} True",
            *(requests if age == served else []),
            f"worker_exit {age}",
        ]


@both
def test_reload(is_sticky: bool):
    with Server(*args(KINDS[0], is_sticky), "-w", "2", "whoami:app", config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        before = len(calls(server)["master"])
        server.send_signal(signal.SIGHUP)
        for age in (1, 2):
            wait_for_call(server, f"child_exit {age} True")
        made = calls(server)
        assert made["master"][before : before + 4] == [
            "nworkers_changed 2 2",
            "on_reload True 1",
            "pre_fork 3 [booting]",
            "pre_fork 4 [booting]",
        ]
        assert sorted(made["master"][before + 4 :]) == ["child_exit 1 True", "child_exit 2 True"]
        for age in (1, 2):
            assert made[f"worker {age}"][-1] == f"worker_exit {age}"


def test_more_and_fewer_workers():
    with Server(*STICKY, "-w", "2", "whoami:app", config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        server.send_signal(signal.SIGTTIN)
        wait_for_call(server, "post_worker_init 3 True")
        server.send_signal(signal.SIGTTOU)
        wait_for(lambda: "child_exit" in calls(server)["master"][-1], "the end of a worker")
        made = calls(server)["master"][-4:]
        assert made[:3] == ["nworkers_changed 3 2", "pre_fork 3 [booting]", "nworkers_changed 2 3"]


def test_workers_that_are_interrupted():
    with Server(*STICKY, "-w", "2", "whoami:app", config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        for age, number in ((1, signal.SIGINT), (2, signal.SIGQUIT)):
            # Not in the order of the log, where the two may have changed places.
            lines = (server.folder / "calls").read_text().splitlines()
            (pid,) = (int(line.split()[0]) for line in lines if line.endswith(f"post_fork {age} True"))
            os.kill(pid, number)
            wait_for_call(server, f"post_worker_init {age + 2} True")
            wait_for_call(server, f"child_exit {age} True")
            made = calls(server)
            assert made[f"worker {age}"][-2:] == [f"worker_int {age}", f"worker_exit {age}"]
            # A sticky worker's successor need not wait for its end.
            assert sorted(made["master"][-2:]) == [f"child_exit {age} True", f"pre_fork {age + 2} [booting]"]


def test_a_worker_that_hangs():
    with Server(*STICKY, "-w", "2", "--timeout", "10", "process:app", config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        with pytest.raises((OSError, http.client.HTTPException)):
            server.get("/spin")
        server.wait_for_log("WORKER TIMEOUT")
        made = calls(server)
        (hung,) = (age for age in (1, 2) if f"pre_request {age} GET /spin" in made[f"worker {age}"])
        wait_for_call(server, "post_worker_init 3 True")
        wait_for_call(server, f"child_exit {hung} True")
        made = calls(server)
        # Whether it gets to worker_exit is a race with the SIGKILL that follows.
        assert f"worker_abort {hung}" in made[f"worker {hung}"]
        assert sorted(made["master"][-2:]) == [f"child_exit {hung} True", "pre_fork 3 [booting]"]
        assert server.get().status == 200


def test_upgrade():
    with Server(*STICKY, "-w", "2", "--pid", "pid", "whoami:app", config=RECORD) as server:
        for age in (1, 2):
            wait_for_call(server, f"post_worker_init {age} True")
        server.send_signal(signal.SIGUSR2)
        pid = server.folder / "pid.2"
        new = int(wait_for(lambda: pid.exists() and pid.read_text(), "the new master's pid"))
        server.wait_for_log("Booting worker", count=4)
        lines = (server.folder / "calls").read_text().splitlines()
        assert f"{new} pre_exec True" in lines
        assert server.stop() == 0
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not server.session(), "the new master to end")


@each_kind(HOOKED)
def test_a_request_that_moves_to_another_worker_is_seen_once(kind: Kind):
    """A proxy's connection: what is handed over has no request hooks on the worker that it leaves."""
    options = ("-w", "2", "--sticky-proxy", "--keep-alive", "60")
    with Server(*kind.args, *options, kind.app("whoami"), config=RECORD) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        served = set()
        for number in range(20):
            connection.request("GET", f"/{number}", headers={"X-Forwarded-For": f"10.0.0.{number}"})
            response = connection.getresponse()
            served.add(json.loads(response.read())["slot"])
            assert response.status == 200
        connection.close()
        assert len(served) > 1
        assert server.stop() == 0
        hooks = [call.split()[0] for made in calls(server).values() for call in made if "request" in call]
    assert Counter(hooks) == {"pre_request": 20, "post_request": 20}


@each_kind(HOOKED)
def test_an_error_in_a_request_hook_is_answered_with_500(kind: Kind):
    config = "def pre_request(worker, req):\n    if req.path == '/bad':\n        raise ValueError('of the hook')\n"
    with Server(*kind.args, "-w", "1", kind.app("whoami"), config=config) as server:
        assert request(server.port, "/bad").status == 500
        assert request(server.port, "/good").status == 200
        assert "ValueError: of the hook" in server.log


@pytest.mark.parametrize(
    ("hook", "code"),
    [
        ("on_starting(server)", 1),
        ("when_ready(server)", 1),
        ("nworkers_changed(server, new, old)", 1),
        ("pre_fork(server, worker)", 255),
        ("post_fork(server, worker)", 3),
        ("post_worker_init(worker)", 3),
    ],
)
def test_an_error_in_a_hook_ends_the_start(hook: str, code: int):
    # Where two workers fail, Gunicorn itself may meet the second failure while it stops for the first one.
    condition = "worker.age == 1" if "worker" in hook.partition("(")[2] else "True"
    config = f"def {hook}:\n    if {condition}:\n        raise ValueError('of the hook')\n"
    with Server(*STICKY, "-w", "2", "whoami:app", config=config) as server:
        assert server.process.wait(PATIENCE) == code, server.log
        assert "ValueError: of the hook" in server.log
        wait_for(lambda: not server.session(), "all processes to end")
