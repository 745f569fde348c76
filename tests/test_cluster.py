"""ClusterManager end to end: the Socket.IO servers of all workers act as one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.harness import APPS, STICKY, TESTS, Server, npm_ci, wait_for
from support.masters import ANOTHER_VERSION
from support.sio_client import Client
from support.under_load import times

APP = "cluster_app:app"
#: By session, clients from one address go to all workers. Who polls and is busy for longer than a connection is kept
#: alive may just send a request when it ends.
OPTIONS = (*STICKY, "--sticky-by", "session", "--sticky-balance", "round-robin", "--keep-alive", "60")


class Site(Server):
    """A server, and clients of it. It ends without waiting for them, or for those that poll."""

    def __init__(self, *args: str, **kwargs: Any) -> None:
        self._clients: list[Client] = []
        super().__init__(*args, **kwargs)

    def connect(self, *args: Any, **kwargs: Any) -> Client:
        client = Client(self.port, *args, **kwargs)
        self._clients.append(client)
        return client

    def connect_to(self, workers: Callable[..., bool], *args: Any, **kwargs: Any) -> Client:
        """Connect to one of the workers that are wanted."""

        def wanted() -> Client | None:
            client = self.connect(*args, **kwargs)
            if workers(client):
                return client
            client.close()
            return None

        return wait_for(wanted, "a client of the worker that is wanted")

    def one_each(self, workers: int, transport: str = "websocket") -> list[Client]:
        """Connect a client to each worker, and return them by slot."""
        return [self.connect_to(lambda client, slot=slot: client.slot == slot, transport) for slot in range(workers)]

    def leave(self) -> None:
        """Close all clients."""
        while self._clients:
            self._clients.pop().close()

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.send_signal(signal.SIGQUIT)
        self.leave()
        super().__exit__(*exception)


def serve(*args: str, workers: int = 2, app: str = APP, **kwargs: Any) -> Site:
    return Site(*OPTIONS, "-w", str(workers), *args, app, **kwargs)


def heard(speaker: Client, clients: Sequence[Client]) -> list[list[tuple[Any, ...]]]:
    """Return what each client has heard since the last time, up to now: all that `speaker`'s worker has emitted."""
    speaker.do("emit", "end")
    found = []
    for client in clients:
        client.wait_for("end")
        found.append([event for event in client.heard if event[0] != "end"])
        client.heard.clear()
    return found


def wait_to_hear(client: Client, event: tuple[Any, ...]) -> None:
    wait_for(lambda: event in client.heard, f"{event} to be heard")


def said(client: Client, by: int) -> list[int]:
    """Return the numbers of the messages of a worker that a client has heard."""
    return [event[2] for event in client.heard if event[:2] == ("said", by)]


# --- what a manager does ---


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_the_clients_of_two_workers_hear_each_other(options: tuple[str, ...]):
    with serve(*options) as site:
        a, b = site.one_each(2)
        assert a.pid != b.pid
        a.do("emit", "everybody", 1)
        assert heard(a, [a, b]) == [[("everybody", 1)]] * 2
        b.do("enter_room", b.sid, "room")
        a.do("emit", "room", 2, room="room")
        assert heard(a, [a, b]) == [[], [("room", 2)]]
        assert a.do("call", "question", "answer", to=b.sid) == (b.sid, "answer")
        assert b.do("call", "question", "answer", to=a.sid) == (a.sid, "answer")


#: What to start for each kind of worker.
KINDS: dict[str, dict[str, Any]] = {
    "gevent": {},
    "threads": {"options": ("-k", "gunicorn_sticky.ThreadStickyWorker", "--threads", "100"), "mode": "threading"},
    "uvicorn": {"options": ("-k", "gunicorn_sticky.UvicornStickyWorker"), "app": "cluster_asgi_app:app"},
    "asgi": {"options": ("-k", "gunicorn_sticky.ASGIStickyWorker"), "app": "cluster_asgi_app:app"},
}


def serve_kind(workers: int, *more: str, options: tuple[str, ...] = (), app: str = APP, mode: str = "gevent") -> Site:
    return serve(*options, *more, workers=workers, app=app, env={"ASYNC_MODE": mode})


@pytest.fixture(scope="module", params=KINDS)
def three_workers(request: pytest.FixtureRequest) -> Iterator[Site]:
    with serve_kind(workers=3, **KINDS[request.param]) as site:
        yield site


@pytest.fixture
def three(three_workers: Site) -> Iterator[list[Client]]:
    """A client on each of three workers."""
    yield three_workers.one_each(3)
    three_workers.leave()


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_rooms_and_single_clients(three: list[Client]):
    a, b, c = three
    for client, room in ((a, "x"), (b, "x"), (b, "y"), (c, "y")):
        client.do("enter_room", client.sid, room)
    a.do("emit", "x", room="x")
    a.do("emit", "y", to="y")
    a.do("emit", "both", room=["x", "y"])
    a.do("emit", "nobody", room="z")
    a.do("emit", "one", to=c.sid)
    a.do("emit", "two", to=[a.sid, b.sid])
    a.do("emit", "not a", skip_sid=a.sid)
    a.do("emit", "only a", skip_sid=[b.sid, c.sid])
    a.do("emit", "not b in x", room="x", skip_sid=b.sid)
    assert [[name for name, *_ in events] for events in heard(a, three)] == [
        ["x", "both", "two", "only a", "not b in x"],
        ["x", "y", "both", "two", "not a"],
        ["y", "both", "one", "not a"],
    ]


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_rooms_of_clients_of_other_workers(three: list[Client]):
    a, b, c = three
    a.do("enter_room", b.sid, "room")
    a.do("enter_room", c.sid, "room")
    a.do("emit", "both", room="room")
    assert heard(a, three) == [[], [("both",)], [("both",)]]
    a.do("leave_room", b.sid, "room")
    a.do("emit", "only c", room="room")
    assert heard(a, three) == [[], [], [("only c",)]]
    b.do("close_room", "room")
    b.do("emit", "nobody", room="room")
    assert heard(b, three) == [[], [], []]


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_a_client_of_another_worker_is_disconnected(three: list[Client]):
    a, b, c = three
    a.do("disconnect", b.sid)
    wait_for(lambda: not b.connected, "the disconnection")
    a.do("emit", "left")
    assert heard(a, [a, c]) == [[("left",)]] * 2
    assert b.count("left") == 0


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_namespaces(three_workers: Site, three: list[Client]):
    others = [
        three_workers.connect_to(lambda client, pid=pid: client.pid == pid, namespaces=["/", "/other"])
        for pid in [client.pid for client in three]
    ]
    three[0].do("emit", "here")
    three[0].do("emit", "there", 1, namespace="/other")
    assert heard(three[0], three) == [[("here",)]] * 3
    wait_for(lambda: all(len(other.heard) == 3 for other in others), "all of it")
    for other in others:
        # Namespaces are apart, so that nothing is said about the order between them.
        assert sorted(other.heard) == [("/other", "there", 1), ("end",), ("here",)]


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_payloads(three: list[Client]):
    payloads = [
        "",
        "Zo\u00eb \U0001f600 \0",
        [1, 2.5, None, True],
        {"a": {"b": [{}]}},
        bytes(range(256)),
        {"one": b"1", "list": [b"2", {"three": b""}]},
        "x" * 500_000,
        bytes(500_000),
    ]
    a = three[0]
    for payload in payloads:
        a.do("emit", "payload", payload)
    a.call("say")  # more than one argument
    for events in heard(a, three):
        assert events == [*(("payload", payload) for payload in payloads), ("said", a.pid, events[-1][2], None, "")]


@pytest.mark.xdist_group("cluster")
@pytest.mark.programs
def test_callbacks(three: list[Client]):
    for asking, asked in itertools.product(three, three):
        answer = asking.do("call", "question", {"from": asking.slot}, to=asked.sid)
        assert answer == (asked.sid, {"from": asking.slot})
    assert heard(three[0], three) == [[("question", {"from": asking.slot}) for asking in three]] * 3


@pytest.mark.programs
def test_flask_socketio():
    with serve(app="cluster_flask_app:app") as site:
        a, b = site.one_each(2)
        for text in ("first", "second"):  # one of each worker, or both of one
            assert site.get(f"/announce?text={text}").status == 204
        for client in (a, b):
            client.wait_for("news", 2)
            assert sorted(client.heard) == [("news", "first"), ("news", "second")]
            client.call("join", "room")
            client.heard.clear()
        a.call("shout", "room", "third")
        b.call("shout", "room", "fourth")
        a.wait_for("news")
        b.wait_for("news")
        assert (a.heard, b.heard) == ([("news", "fourth")], [("news", "third")])


# --- a crowd ---

CROWD = {
    "python": [sys.executable, str(TESTS / "clients" / "crowd.py")],
    "javascript": ["node", str(TESTS / "clients" / "crowd.mjs")],
}
WORKERS = 4
#: For how many seconds nobody speaks, and how many all processes may use of them.
QUIET = 3.0
MOST_OF_QUIET = 0.15


class Crowd:
    """Clients on `WORKERS` workers, which wait for so many times the event "end".

    Most are in JavaScript, which costs less, and a third of those poll.
    """

    def __init__(self, site: Site, size: int, ends: int) -> None:
        others = size - 4
        self._programs = [
            subprocess.Popen(
                [*command, str(site.port), str(websockets), str(pollers), str(ends)], stdout=subprocess.PIPE, text=True
            )
            for command, websockets, pollers in (
                (CROWD["python"], 2, 2),
                (CROWD["javascript"], others - others // 3, others // 3),
            )
        ]
        pids = self._read()
        assert len(pids) == size
        assert len(set(pids)) == WORKERS

    def _read(self) -> list[Any]:
        lines = []
        for program in self._programs:
            assert program.stdout
            lines.append(json.loads(program.stdout.readline()))
        return list(itertools.chain(*lines))

    def heard(self) -> list[list[Any]]:
        """Return what each client has heard: by whom, number, answer to what, padding."""
        return self._read()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exception: object) -> None:
        for program in self._programs:
            program.kill()
            program.communicate()


@pytest.fixture(scope="module")
def node_modules() -> None:
    npm_ci(TESTS / "clients")


@pytest.mark.load
@pytest.mark.programs
@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    ("kind", "clients", "count"),
    [*((kind, 200, times(100, 1000)) for kind in KINDS), ("gevent", 20, 1000)],
)
def test_each_client_hears_each_broadcast_once_and_in_order(kind: str, clients: int, count: int):
    with serve_kind(workers=WORKERS, **KINDS[kind]) as site:
        speaker, *others = site.one_each(WORKERS)
        for other in others:
            other.close()
        with Crowd(site, clients, ends=1) as crowd:
            speaker.emit("say", count, callback=lambda: speaker.emit("do", "emit", ["end"], {}))
            expected = [[speaker.pid, number, None, ""] for number in range(1, count + 1)]
            assert [events for events in crowd.heard() if events != expected] == []


@pytest.mark.load
@pytest.mark.programs
@pytest.mark.usefixtures("node_modules")
def test_broadcasts_of_all_workers_at_once_come_in_order_and_no_answer_before_its_question():
    count, every = times(100, 250), 10
    with serve(workers=WORKERS) as site:
        speakers = site.one_each(WORKERS)
        with Crowd(site, 40, ends=WORKERS) as crowd:

            def answer(speaker: Client, event: str, *args: Any) -> None:
                if event == "said" and args[0] != speaker.pid and args[2] is None and args[1] % every == 0:
                    speaker.emit("say", 1, args[:2])

            for speaker in speakers:
                speaker.listener = functools.partial(answer, speaker)
                speaker.emit(
                    "say", count, callback=lambda speaker=speaker: speaker.emit("do", "emit", ["said all"], {})
                )
            for speaker in speakers:
                speaker.wait_for("said all", WORKERS, timeout=120.0)  # so that it has answered all, too
            for speaker in speakers:
                speaker.do("emit", "end")
            for speaker in speakers:
                speaker.wait_for("end", WORKERS)
            totals = {speaker.pid: len(said(speaker, speaker.pid)) for speaker in speakers}
            for events in crowd.heard():
                numbers = {speaker.pid: 0 for speaker in speakers}
                answers = 0
                for by, number, answer_to, _padding in events:
                    assert number == numbers[by] + 1
                    numbers[by] = number
                    if answer_to is not None:
                        answers += 1
                        assert answer_to[1] <= numbers[answer_to[0]]
                assert numbers == totals
                assert answers == sum(totals.values()) - WORKERS * count > 0


# --- from other programs ---


#: A program that emits, as another user if it is told so. Each line that it reads has the arguments of one emit(), and
#: each that it writes says how that has ended.
PROGRAM = """
import ast, os, sys
from gunicorn_sticky import ClusterManager
manager = ClusterManager(sys.argv[1], write_only=True)
if len(sys.argv) > 2:
    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
for line in sys.stdin:
    args, options = ast.literal_eval(line)
    try:
        manager.emit(*args, **options)
    except ConnectionError as error:
        print(error, flush=True)
    else:
        print("done", flush=True)
"""

#: The same with asyncio.
ASYNC_PROGRAM = """
import ast, asyncio, sys
from gunicorn_sticky import AsyncClusterManager

async def main():
    manager = AsyncClusterManager(sys.argv[1], write_only=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        args, options = ast.literal_eval(line)
        try:
            await manager.emit(*args, **options)
        except ConnectionError as error:
            print(error, flush=True)
        else:
            print("done", flush=True)

asyncio.run(main())
"""


class Program:
    """Another program that emits."""

    def __init__(self, *args: str, code: str = PROGRAM) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def emit(self, *args: Any, **options: Any) -> str:
        """Emit, and return "done" or what has gone wrong."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{(args, options)!r}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()  # which ends what it reads


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cluster.sock")


@pytest.mark.programs
def test_managers_of_other_programs_leave_nothing_open(path: str):
    code = """
import gc, os, sys
from gunicorn_sticky import ClusterManager
def emit():
    ClusterManager(sys.argv[1], write_only=True).emit("news", 1)
    gc.collect()
    return os.listdir("/proc/self/fd")
emit()
assert len(emit()) == len(emit())
"""
    with serve("--sticky-cluster-socket", path):
        wait_for(lambda: os.path.exists(path), "the socket")
        done = subprocess.run([sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.programs
@pytest.mark.parametrize(
    ("kind", "code"),
    [("gevent", PROGRAM), ("threads", ASYNC_PROGRAM), ("uvicorn", ASYNC_PROGRAM), ("asgi", ASYNC_PROGRAM)],
    ids=["gevent", "threads-asyncio", "uvicorn-asyncio", "asgi-asyncio"],
)
def test_other_programs_emit(kind: str, code: str, path: str):
    with serve_kind(2, "--sticky-cluster-socket", path, **KINDS[kind]) as site:
        a, b = site.one_each(2)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        b.do("enter_room", b.sid, "room")
        for name in (path, f"unix:{path}"):
            with Program(name, code=code) as program:
                assert program.emit("everybody", {"binary": b"\0"}) == "done"
                assert program.emit("room", 1, room="room") == "done"
                assert program.emit("one", (2, 3), to=a.sid) == "done"
                assert program.emit("not b", None, skip_sid=b.sid) == "done"
                assert program.emit("last", None) == "done"
            a.wait_for("last")
            b.wait_for("last")
            everybody, last = ("everybody", {"binary": b"\0"}), ("last",)
            assert a.heard == [everybody, ("one", 2, 3), ("not b",), last]
            assert b.heard == [everybody, ("room", 1), last]
            a.heard.clear()
            b.heard.clear()


@pytest.mark.programs
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_emit():
    with serve("--sticky-cluster-socket", "cluster.sock") as site:
        clients, path = site.one_each(2), str(site.folder / "cluster.sock")
        site.folder.chmod(0o755)
        with Program(path, "65534") as program:
            answer = program.emit("news", None)
        assert path in answer
        assert "Permission denied" in answer
        assert heard(clients[0], clients) == [[], []]


@pytest.mark.programs
@pytest.mark.parametrize("code", [PROGRAM, ASYNC_PROGRAM], ids=["", "asyncio"])
def test_another_program_outlives_the_server(code: str, path: str):
    with Program(path, code=code) as program:
        for number in range(2):
            for _ in range(2):
                assert path in program.emit("news", number)
            with serve("--sticky-cluster-socket", path) as site:
                clients = site.one_each(2)
                assert program.emit("news", number) == "done"
                for client in clients:
                    client.wait_for("news")
                    assert client.heard == [("news", number)]


# --- when nobody speaks ---


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time of processes: /proc counts that of each thread in nanoseconds, and not in ticks."""
    found = [Path(f"/proc/{pid}/task/{thread}/schedstat") for pid in pids for thread in os.listdir(f"/proc/{pid}/task")]
    return sum(int(path.read_text().split()[0]) for path in found) / 1e9


@pytest.mark.programs
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_busy_while_nobody_speaks(kind: str):
    with serve_kind(workers=WORKERS, **KINDS[kind]) as site:
        clients = site.one_each(WORKERS)
        for client in clients:
            heard(client, clients)  # so that all workers listen
        before = cpu_seconds(pids := site.session())
        time.sleep(QUIET)
        spent = cpu_seconds(pids) - before
        assert site.session() == pids
        assert spent < MOST_OF_QUIET, pids


# --- workers that stand still, or die ---


@pytest.mark.programs
def test_a_worker_that_stands_still_holds_up_nobody_and_counts_what_it_has_missed():
    count, size = 160, 64 << 10  # more than a ring holds; a quarter of that fits, so that whoever runs misses none
    with serve(workers=3) as site:
        a, b, c = site.one_each(3, transport="polling")
        for client in (b, c):
            client.do("enter_room", client.sid, "room")
        os.kill(c.pid, signal.SIGSTOP)
        try:
            for number in range(1, 5):
                a.call("say", count // 4, None, size, "room")
                b.wait_for("said", count // 4 * number)
        finally:
            os.kill(c.pid, signal.SIGCONT)
        numbers = said(b, a.pid)
        assert numbers == list(range(1, count + 1))
        dropped = int(site.wait_for_log(r"Dropped (\d+) messages").group(1))
        a.do("emit", "later")
        c.wait_for("later")
        left = said(c, a.pid)
        assert len(left) == count - dropped > 0
        assert left == numbers[dropped:]
        c.do("emit", "also heard")
        a.wait_for("also heard")
        b.wait_for("also heard")
        assert site.log.count("Dropped") == 1


@pytest.mark.programs
def test_a_worker_that_is_killed_while_it_speaks():
    with serve(workers=3) as site:
        victim, b, c = site.one_each(3)
        with talk(b, c):
            for _ in range(3):
                victim.emit("say", 100_000)
                b.wait_for("said", b.count("said") + 200)
                os.kill(victim.pid, signal.SIGKILL)
                killed = victim.pid
                victim = site.connect_to(lambda client, killed=killed: client.slot == 0 and client.pid != killed)
                victim.do("emit", "news", killed)
                for client in (b, c):
                    wait_to_hear(client, ("news", killed))
                    numbers = said(client, killed)
                    assert numbers == list(range(1, len(numbers) + 1))


# --- workers and masters that come and go ---


@contextlib.contextmanager
def talk(*clients: Client) -> Iterator[None]:
    """Let clients of different workers speak all the time; at the end each has to have heard all others."""
    over = threading.Event()

    def speak(client: Client) -> None:
        while not over.is_set():
            client.call("say")

    with ThreadPoolExecutor() as pool:
        speaking = [pool.submit(speak, client) for client in clients]
        try:
            yield
        finally:
            over.set()
        for task in speaking:
            task.result()
    for client in clients:
        client.do("emit", "end")
    for client in clients:
        client.wait_for("end", len(clients))
        for other in clients:
            assert said(client, other.pid) == said(other, other.pid) != []
        client.heard = [event for event in client.heard if event[0] != "end"]


def greet(newcomer: Client, *others: Client) -> None:
    """A client of a new worker and the others hear each other."""
    everybody = [newcomer, *others]
    for speaker in everybody:
        speaker.do("emit", "hello", [speaker.sid, newcomer.sid])
    for listener in everybody:
        for speaker in everybody:
            greeting = ("hello", [speaker.sid, newcomer.sid])
            wait_to_hear(listener, greeting)
            assert listener.heard.count(greeting) == 1


@pytest.mark.programs
def test_workers_that_are_added_and_removed():
    with serve() as site:
        a, b = site.one_each(2)
        with talk(a, b):
            site.send_signal(signal.SIGTTIN)
            added = site.connect_to(lambda client: client.slot == 2)
            greet(added, a, b)
            site.send_signal(signal.SIGTTOU)
            site.wait_for_log("Booting dispatcher", count=3)
            greet(site.connect_to(lambda client: client.slot < 2), a, b, added)


@pytest.mark.programs
def test_a_killed_dispatcher():
    with serve() as site:
        a, b = site.one_each(2)
        with talk(a, b):
            os.kill(site.booted("dispatcher")[-1], signal.SIGKILL)
            greet(site.connect(), a, b)


@pytest.mark.programs
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_a_reload(options: tuple[str, ...]):
    with serve(*options) as site:
        a, b = site.one_each(2)
        old = {a.pid, b.pid}
        with talk(a, b):
            site.send_signal(signal.SIGHUP)
            new = site.connect_to(lambda client: client.pid not in old)
            greet(new, a, b)
            other = site.connect_to(lambda client: client.pid not in {*old, new.pid})
            greet(other, new, a, b)


@pytest.mark.programs
def test_max_requests():
    with serve("--max-requests", "20") as site:
        a, b = site.one_each(2)
        with talk(a, b):
            wait_for(lambda: site.get("/socket.io/") and "Autorestarting" in site.log, "a worker that is spent")
            greet(site.connect_to(lambda client: client.pid not in (a.pid, b.pid)), a, b)


@pytest.mark.programs
def test_an_upgrade_from_another_version(path: str):
    """Nothing is inherited then, and the new master's socket takes the place of the old one's."""
    with (
        Program(path) as program,
        serve("--pid", "pid", "--sticky-cluster-socket", path, config=ANOTHER_VERSION) as site,
    ):
        site.one_each(1)
        site.send_signal(signal.SIGUSR2)
        site.wait_for_log(r"Booting worker", count=4)
        old, site.pid = site.pid, int(wait_for(lambda: (site.folder / "pid.2").read_text(), "the new master's pid"))
        os.kill(old, signal.SIGTERM)
        site.leave()
        site.process.wait()
        site.wait_for_log("Master has been promoted")
        client = site.connect()
        assert program.emit("news", "after") == "done"
        client.wait_for("news")
        site.leave()
        site.send_signal(signal.SIGTERM)
        wait_for(lambda: not site.is_running, "the new master's end")
        assert not os.path.exists(path)


@pytest.mark.programs
def test_an_upgrade(path: str):
    with Program(path) as program, serve("--pid", "pid", "--sticky-cluster-socket", path) as site:
        a, b = site.one_each(2)
        program.emit("news", "before", room=None)
        with talk(a, b):
            site.send_signal(signal.SIGUSR2)
            site.wait_for_log(r"Master\.2 accepts connections now")
            new = site.connect_to(lambda client: client.pid not in (a.pid, b.pid))
            other = site.connect_to(lambda client: client.pid not in (a.pid, b.pid, new.pid))
            greet(new, other, a, b)
            program.emit("news", "while there are two")
            for client in (new, other, a, b):
                client.wait_for("news")
        assert [event for event in a.heard if event[0] == "news"] == [
            ("news", "before"),
            ("news", "while there are two"),
        ]
        for client in (a, b):
            client.close()
        site.stop()
        with talk(new, other):
            program.emit("news", "after")
            new.wait_for("news", 2)
            other.wait_for("news", 2)


# --- where there is no cluster ---


@pytest.mark.programs
@pytest.mark.parametrize("command", [None, [sys.executable, str(APPS / "cluster_app.py")]], ids=["gevent", "python"])
def test_in_any_other_process_it_is_the_default_manager(command: list[str] | None):
    with Site("-k", "gevent", "-w", "1", APP, command=command) as site:
        a, b = site.connect(), site.connect()
        a.do("emit", "everybody", {"a": 1})
        b.do("enter_room", b.sid, "room")
        a.do("emit", "room", b"\0", room="room")
        assert heard(a, [a, b]) == [[("everybody", {"a": 1})], [("everybody", {"a": 1}), ("room", b"\0")]]
        assert a.do("call", "question", "answer", to=b.sid) == (b.sid, "answer")
        a.do("disconnect", b.sid)
        wait_for(lambda: not b.connected, "the disconnection")
        assert site.log.count("ClusterManager") == 1
