"""How a server is, as `gunicorn-sticky status` shows it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.harness import BIN, PATIENCE, STICKY, Response, Server, addresses, clean_env, wait_for
from support.status import run, sigstop, status

from gunicorn_sticky.shared.board import Board
from gunicorn_sticky.shared.metrics import Metrics
from gunicorn_sticky.status import command as monitor
from gunicorn_sticky.status import terminal as table
from gunicorn_sticky.status.snapshot import Server as Status
from gunicorn_sticky.status.snapshot import _memory, _opened, find

pytestmark = pytest.mark.features

CLIENTS = addresses(24)


def total(server: Server, name: str) -> int:
    return sum(slot[name] for slot in status(server)["slots"])


#: What is said of a control socket whose owner is no server of ours.
NOT_OURS = "No Gunicorn of this user is running with GeventStickyWorker (root may use --user)\n"
#: Tests that share a server, and leave it as it is.
shared = pytest.mark.xdist_group("status")


@pytest.fixture(scope="module")
def quiet() -> Iterator[Server]:
    options = ("--sticky-by", "session", "--keep-alive", "60")
    with Server(*STICKY, "-w", "3", *options, "whoami:app", control_socket=True) as server:
        server.wait_for_log("Control socket")
        wait_for(lambda: status(server)["state"] == "ok", "all workers")
        yield server


# --- what is counted ---


def test_requests_and_connections():
    with Server(*STICKY, "-w", "2", "--keep-alive", "60", "whoami:app") as server, ExitStack() as stack:
        server.slots(CLIENTS)
        wait_for(lambda: total(server, "requests") == len(CLIENTS), "all requests to be counted")
        seen = status(server)
        assert seen["state"] == "ok"
        assert seen["in_charge"]
        assert seen["dispatcher"]["accepted"] == seen["dispatcher"]["keys"]["ip"] == len(CLIENTS)
        for slot in seen["slots"]:
            assert slot["requests"] == slot["dispatched"] > 0
            (worker,) = slot["workers"]
            assert worker["state"] == "ready"
            assert worker["pid"] in server.alive("worker")
            assert worker["memory_bytes"] > 1 << 20
            assert 0 < worker["age"] < 60
        kept = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) for _ in range(6)]
        for client in kept:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(9) == b"HTTP/1.1 "
        slots = wait_for(
            lambda: (found := status(server))["imbalance"] == 2 and found["slots"], "six connections at one worker"
        )
        assert sorted(slot["workers"][0]["connections"] for slot in slots) == [0, 6]
        stack.close()
        wait_for(lambda: not any(slot["workers"][0]["connections"] for slot in status(server)["slots"]), "their end")


def test_sessions_and_handovers():
    with Server(*STICKY, "-w", "2", "--sticky-by", "session", "--keep-alive", "60", "sio_app:app") as server:
        wait_for(lambda: status(server)["state"] == "ok", "all workers")
        sids = []
        for _ in range(8):
            body = server.get("/socket.io/?EIO=4&transport=polling").body
            sids.append(json.loads(body[1:])["sid"])
        assert total(server, "minted") >= len(sids)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as kept:
            for sid in sids:
                kept.request("POST", f"/socket.io/?EIO=4&transport=polling&sid={sid}", body="3")
                assert Response(kept.getresponse()).status == 200
        seen = status(server)
        # Who hands over counts it afterwards, when the next worker may have answered already.
        handed = total(server, "taken_over")
        wait_for(lambda: total(server, "handed_over") == handed, "all of them to be counted")
        assert 0 < handed == seen["dispatcher"]["handed_back"]
        assert seen["dispatcher"]["keys"]["session"] == 1
        assert seen["dispatcher"]["keys"]["ip"] == len(sids)


def test_sources_of_the_key_and_refusals():
    options = ("--sticky-proxy", "--sticky-header-timeout", "3")
    with Server(*STICKY, "-w", "1", *options, "whoami:app") as server:
        assert server.get(headers={"X-Forwarded-For": "10.0.0.1"}).status == 200
        assert server.get().status == 400
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as silent:
            silent.sendall(b"GET")
            wait_for(lambda: status(server)["dispatcher"]["peeking"] == 1, "a head to be waited for")
            assert silent.recv(12) == b"HTTP/1.1 408"
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as kept:
            kept.sendall(
                b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
            )
            answers = b""
            while b"HTTP/1.1 400" not in answers:
                answers += kept.recv(4096)
        dispatcher = status(server)["dispatcher"]
        assert dispatcher["refused"] == {400: 1, 408: 1, 431: 0, 503: 0}
        assert dispatcher["keys"] == {"ip": 0, "proxy": 0, "header": 2, "session": 0, "cookie": 0}
        assert total(server, "refused") == 1


def test_counters_go_on_when_processes_are_replaced():
    with Server(*STICKY, "-w", "2", "whoami:app") as server:
        server.slots(CLIENTS)
        for kind in ("worker", "dispatcher"):
            before = server.alive(kind)
            os.kill(before[0], signal.SIGKILL)
            wait_for(lambda: len(set(server.alive(kind)) - set(before)) == 1, "a successor")  # noqa: B023
            wait_for(lambda: status(server)["state"] == "ok", "the server to be well again")
        server.slots(CLIENTS)
        wait_for(lambda: total(server, "requests") == 2 * len(CLIENTS), "all requests to be counted")
        seen = status(server)
        assert seen["dispatcher"]["accepted"] == 2 * len(CLIENTS)
        assert seen["dispatcher"]["pid"] in server.alive("dispatcher")
        assert sum(slot["restarts"] for slot in seen["slots"]) == 1


# --- states ---


def test_states_of_slots():
    config = """
import os
from waiting import wait_until

def post_fork(server, worker):
    wait_until(lambda: not os.path.exists("hold"))
"""
    with Server(*STICKY, "-w", "2", "whoami:app", config=config) as server:
        wait_for(lambda: status(server)["state"] == "ok", "both workers")
        (server.folder / "hold").touch()
        victim = server.who()["pid"]
        os.kill(victim, signal.SIGKILL)
        seen = wait_for(lambda: (found := status(server))["state"] == "degraded" and found, "the server to be degraded")
        wait_for(
            lambda: sorted(slot["state"] for slot in status(server)["slots"]) == ["ready", "starting"], "a successor"
        )
        assert run("--json")[0] in (1, 2)  # 2 if another test's server is down
        for slot in seen["slots"]:
            for worker in slot["workers"]:
                if worker["pid"] != victim and worker["state"] == "ready":
                    os.kill(worker["pid"], signal.SIGKILL)
        wait_for(lambda: status(server)["state"] == "down", "the server to be down")
        (server.folder / "hold").unlink()
        wait_for(lambda: status(server)["state"] == "ok", "both workers again")


def test_a_draining_worker_is_shown_beside_its_successor():
    with (
        Server(*STICKY, "-w", "1", "busy:app") as server,
        socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client,
    ):
        client.sendall(b"GET /slow?seconds=60 HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for_log("Booting dispatcher")
        wait_for(lambda: status(server)["slots"][0]["workers"][0]["connections"] == 1, "a request")
        server.send_signal(signal.SIGHUP)
        wait_for(
            lambda: (
                (found := status(server))["state"] == "ok"  # the new dispatcher may be there later than the new worker
                and [worker["state"] for worker in found["slots"][0]["workers"]] == ["ready", "draining"]
            ),
            "the old worker beside the new one",
        )


# --- the command ---


@shared
def test_one_server_by_its_control_socket(quiet: Server):
    with Server(*STICKY, "-w", "1", "whoami:app") as other:
        wait_for(lambda: status(other)["state"] == "ok", "the other server")
        code, output = run("--json", "--control", str(quiet.folder / "control"))
        assert code == 0
        assert [found["pid"] for found in json.loads(output)] == [quiet.pid]
        assert {quiet.pid, other.pid} <= {found["pid"] for found in json.loads(run("--json")[1])}


@pytest.mark.parametrize("stale", [False, True])
def test_a_control_socket_that_comes_back(tmp_path, stale: bool):
    """Its master has closed it to fork, and may have left its file."""
    path = tmp_path / "control"
    if stale:
        with socket.socket(socket.AF_UNIX) as before:
            before.bind(str(path))
    master = "import pathlib, socket, sys, time; time.sleep(0.3); path = pathlib.Path(sys.argv[1]); "
    master += "path.unlink(missing_ok=True); listener = socket.socket(socket.AF_UNIX); listener.bind(str(path)); "
    master += "listener.listen(); listener.accept()[0].recv(1)"
    with subprocess.Popen([sys.executable, "-c", master, str(path)]) as process:
        try:
            assert run("--control", str(path)) == (2, NOT_OURS)  # and not "No server at"
        finally:
            process.kill()


def test_no_server_is_down(tmp_path):
    assert run("--control", str(tmp_path / "control")) == (
        2,
        f"No server at {tmp_path / 'control'}: No such file or directory\n",
    )
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        code, output = run("--control", str(tmp_path / "other"))
    assert (code, output) == (2, NOT_OURS)


#: Something that is called as our memory is, and is not. The argument is the name of the one or the other.
FAKES = {
    "small": "fd = os.memfd_create(name); os.write(fd, b'0123456789')",
    "truncated in a loop": """
fd = os.memfd_create(name)
def work():
    os.ftruncate(fd, size)
    os.ftruncate(fd, 0)
""",
    "garbage": "fd = os.memfd_create(name, os.MFD_ALLOW_SEALING); os.write(fd, os.urandom(size)); seal(fd)",
    "larger": "fd = os.memfd_create(name, os.MFD_ALLOW_SEALING); os.ftruncate(fd, 2 * size); seal(fd)",
    "ours, but empty": "fd = os.memfd_create(name, os.MFD_ALLOW_SEALING); os.ftruncate(fd, size); fill(fd); seal(fd)",
    "ours, but without seals": "fd = os.memfd_create(name, os.MFD_ALLOW_SEALING); os.ftruncate(fd, size); fill(fd)",
}
FAKE = """
import fcntl, os, sys, time
from gunicorn_sticky.shared import board
from gunicorn_sticky.shared import metrics
def seal(fd):
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
def fill(fd):
    if name == metrics.NAME:
        os.pwrite(fd, os.getpid().to_bytes(8, sys.byteorder), 0)
work = lambda: time.sleep(0.01)
for name, size in ((metrics.NAME, metrics.SIZE), (board.NAME, board.SIZE)):
    exec(sys.argv[1])
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
print("there", flush=True)
while os.getppid() != 1:
    work()
"""


@contextlib.contextmanager
def fake(*args: str) -> Iterator[int]:
    """Run a process that has something with our memory's names."""
    with subprocess.Popen([sys.executable, "-c", FAKE, *args], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        try:
            yield process.pid
        finally:
            process.kill()


@shared
def test_what_is_only_called_as_our_memory_is(quiet: Server):
    with ExitStack() as stack:
        fakes = {name: stack.enter_context(fake(code)) for name, code in FAKES.items()}
        for _ in range(3):
            pids = {found["pid"] for found in json.loads(run("--json")[1])}
            assert quiet.pid in pids
            # Nobody can tell that one: it is the same user's.
            assert [name for name, pid in fakes.items() if pid in pids] == ["ours, but empty"]
        assert [name for name, pid in fakes.items() if list(find(pid))] == ["ours, but empty"]
        assert run("--json", "--control", str(quiet.folder / "control"))[0] == 0


@shared
@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_another_users_processes_do_not_count(quiet: Server):
    """Neither a fake's, nor one's that has given up root's privileges, and whose folder in /proc is still root's."""
    nobody = pwd.getpwnam("nobody")
    with fake(FAKES["ours, but empty"], str(nobody.pw_uid)) as pid:
        assert pid not in {found["pid"] for found in json.loads(run("--json")[1])}
        assert quiet.pid in {found["pid"] for found in json.loads(run("--json", "--user", "root")[1])}
        assert run("--user", "nobody")[0] == 2
        assert not list(find(pid))  # its memory is root's, and it is not
    assert run("--user", "nobody at all")[1].endswith("argument --user: there is no such user\n")


@shared
def test_how_many_connections_workers_have_does_not_matter(quiet: Server, monkeypatch: pytest.MonkeyPatch):
    readlink = os.readlink

    def looked_at() -> list[int]:
        found = []
        for pid in quiet.alive("worker"):
            links: list[Any] = []
            with monkeypatch.context() as patch:
                patch.setattr(os, "readlink", lambda path, links=links: [links.append(path), readlink(path)][1])
                assert len(_memory(Path("/proc", str(pid)))) == 2
            found.append(len(links))
        return found

    before = looked_at()
    with ExitStack() as stack:
        for client in CLIENTS:
            connection = http.client.HTTPConnection("127.0.0.1", quiet.port, source_address=(client, 0))
            stack.callback(connection.close)
            connection.request("GET", "/")
            connection.getresponse().read()
        workers = [worker for slot in status(quiet)["slots"] for worker in slot["workers"]]
        assert sum(worker["connections"] for worker in workers) == len(CLIENTS)
        assert looked_at() == before


def test_a_fifo_that_is_called_as_our_memory_is(tmp_path):
    """Opening it would wait for ever. Where there is such a file is a folder that another user can make a root of."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    device = os.open("/dev/null", os.O_RDONLY)
    for place in (fifo, Path(f"/proc/self/fd/{device}"), tmp_path):
        with pytest.raises(PermissionError), _opened(place, os.geteuid(), 0):
            pass
    os.close(device)


def test_a_control_socket_that_accepts_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "PATIENCE", 0.1)
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(str(tmp_path / "full"))
        server.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(tmp_path / "full"))
        with pytest.raises(SystemExit) as ended:
            monitor.main(["--control", str(tmp_path / "full")])
        assert ended.value.code == 2


@shared
def test_it_answers_while_everything_stands_still(quiet: Server):
    before = status(quiet)["dispatcher"]["accepted"]
    quiet.slots(CLIENTS)
    with sigstop([quiet.pid, *quiet.alive("worker"), *quiet.alive("dispatcher")]):
        seen = status(quiet)
    assert seen["dispatcher"]["accepted"] == before + len(CLIENTS)


@shared
@pytest.mark.parametrize("columns", [80, 200])
def test_the_table(quiet: Server, columns: int):
    wait_for(
        lambda: not sum(status(quiet)["slots"][n]["workers"][0]["connections"] for n in range(3)), "no connections"
    )
    with socket.create_connection(("127.0.0.1", quiet.port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(9)
        code, output = run("--control", str(quiet.folder / "control"), columns=columns)
    assert code == 0
    lines = output.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0] == f"Gunicorn {quiet.pid}: ok, fullest slot 3.00 times the average"
    assert lines[1].split() == ["slot", "pid", "age", "conn", "req/s", "wait", "restarts", "cpu", "mem"]
    slots = sorted(line.split()[:3] for line in lines[2:5])
    assert [slot[:2] for slot in slots] == [["0", "ready"], ["1", "ready"], ["2", "ready"]]
    assert sum("█" in line for line in lines[2:5]) == 1
    assert lines[5].startswith("Dispatcher ")


def test_the_table_of_a_master_that_is_not_active(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Of two masters, the other one accepts; and meanwhile this one's dispatcher still passes connections on."""
    monkeypatch.setattr(table, "INTERVAL", 0.01)
    metrics, board = Metrics(), Board()
    board.slots = board.count = 1
    board.other().become_active_master()
    dispatcher = metrics.dispatcher(0)
    dispatcher.starts()
    dispatcher.pid.set(os.getpid())
    metrics.master().dispatchers.set(1)

    class Busy(Status):
        def status(self) -> dict[str, Any]:
            dispatcher.accepted.inc()
            return super().status()

    assert table.show([Busy(metrics, board)], watch=False) == ["down"]
    shown = capsys.readouterr().out
    assert "down, another master accepts connections" in shown
    assert "100 connections/s" in shown
    assert "µs each" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_goes_on_until_it_is_interrupted(terminal: bool):
    read, write = pty.openpty() if terminal else os.pipe()
    with Server(*STICKY, "-w", "1", "whoami:app", control_socket=True) as server:
        server.wait_for_log("Control socket")
        wait_for(lambda: status(server)["state"] == "ok", "the worker")
        command = [str(BIN / "gunicorn-sticky"), "status", "--watch", "--control", str(server.folder / "control")]
        with subprocess.Popen(command, stdout=write, env=clean_env({"TERM": "xterm"})) as watch:
            os.close(write)
            shown = b""

            def read_until(text: bytes, count: int = 1) -> None:
                nonlocal shown
                while shown.count(text) < count:
                    more = os.read(read, 65536)  # raises, if a terminal's other end is closed
                    assert more, shown
                    shown += more

            read_until(f"Gunicorn {server.pid}".encode(), 3)
            server.send_signal(signal.SIGKILL)
            server.process.wait()
            read_until(b"down")
            watch.send_signal(signal.SIGINT)
            if terminal:
                read_until(b"\x1b[?1049l")  # back to the screen as it was
            assert watch.wait() == 2
    os.close(read)


@shared
def test_without_rich_there_is_json(quiet: Server):
    hide = "import sys; sys.modules['rich.bar'] = None; sys.argv = ['gunicorn-sticky', 'status']; "
    code = hide + "from gunicorn_sticky.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-c", code], env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "gunicorn-sticky[status]"' in done.stderr
