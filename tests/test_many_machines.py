"""Many machines, as docs/many-machines.md has them: its HAProxy in front, a real Redis, and 2 workers on each host."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.harness import BIN, STICKY, TESTS, Server, wait_for
from support.machine import Machine
from support.socketio import MODES

from gunicorn_sticky.routing.session_ids import Ids

PAGE = TESTS.parent / "docs" / "many-machines.md"
CROWD = [str(BIN / "python"), str(TESTS / "clients" / "reconnecting.py")]
WORKERS = 2
CLIENTS = 60
#: The addresses of the page. Clients are where the balancer is.
BALANCER = "10.0.0.1"
HOSTS = {"a": "10.0.0.2", "b": "10.0.0.3"}
REDIS_CLI = ("redis-cli", "-h", BALANCER)
SIO = "/socket.io/?EIO=4&transport=polling"


@dataclass
class Host:
    url: str
    server: Server


@dataclass
class Site:
    """A machine for Redis, the balancer and the clients, and a cable from there to each host."""

    front: Machine
    hosts: dict[str, Host]


@contextmanager
def program(machine: Machine, name: str, *args: str, ready: Callable[[], bool]) -> Iterator[None]:
    """Run a program of Debian, which may have it where ordinary users do not look."""
    command = machine.command(shutil.which(name) or f"/usr/sbin/{name}", *args)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def is_ready() -> bool:
        assert process.poll() is None, f"{name} has ended"
        return ready()

    try:
        wait_for(is_ready, name)
        yield
    finally:
        process.kill()
        process.wait()


def kill(server: Server) -> None:
    """End all processes of a server at once."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def ask(machine: Machine, *args: str) -> list[tuple[str, int]]:
    """Return bodies and statuses of what curl gets; 0 without an answer."""
    command = machine.command("curl", "--silent", "--max-time", "20", "--write-out", " %{http_code}\n", *args)
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    return [(line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in output.splitlines()]


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        front = stack.enter_context(Machine())
        hosts = {}
        for name, address in HOSTS.items():
            machine = stack.enter_context(Machine())
            front.connect(machine, f"to-{name}", BALANCER, address)
            server = Server(
                *(*STICKY, "--sticky-by", "session", "--keep-alive", "75", "-w", str(WORKERS), "broker_sio_app:app"),
                command=machine.command(str(BIN / "gunicorn")),
                config="def post_worker_init(worker): worker.log.info('Ready')",
                env={"MACHINE": name, "REDIS_URL": f"redis://{BALANCER}"},
                bind="0.0.0.0:8000",
            )
            stack.enter_context(server)
            stack.callback(kill, server)  # it would wait for clients that are in no hurry
            hosts[name] = Host(f"http://{address}:8000", server)
        for host in hosts.values():
            host.server.wait_for_log("Ready", count=WORKERS)
        yield Site(front, hosts)


@contextmanager
def redis(machine: Machine) -> Iterator[None]:
    """Run Redis, without anything on disk."""
    ping = machine.command(*REDIS_CLI, "ping")

    def answers() -> bool:
        return subprocess.run(ping, capture_output=True).returncode == 0

    with program(machine, "redis-server", "--bind", BALANCER, "--protected-mode", "no", "--save", "", ready=answers):
        yield


def wait_for_subscribers(machine: Machine, number: int) -> None:
    """Wait until so many workers listen to Redis; each begins to when its first client has come."""
    count = (*REDIS_CLI, "pubsub", "numsub", "socketio")
    wait_for(lambda: int(machine.run(*count).split()[-1]) == number, f"{number} workers to listen to Redis")


@contextmanager
def haproxy(machine: Machine, folder: Path) -> Iterator[str]:
    """Run HAProxy with the configuration of the page, as it stands there, and yield its URL."""
    (text,) = re.findall(r"^```haproxy\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    url = f"http://{BALANCER}/"
    with program(machine, "haproxy", "-db", "-f", str(file), ready=lambda: ask(machine, url)[0][1] == 404):
        yield url


class Crowd:
    """tests/clients/reconnecting.py."""

    def __init__(self, machine: Machine, url: str, number: int = CLIENTS) -> None:
        command = machine.command(*CROWD, url, str(number))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _command(self, *command: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def status(self) -> list[dict[str, Any]]:
        """Return what each client knows."""
        return list(self._command("status"))

    def located(self) -> list[dict[str, Any]]:
        """Wait until all clients know where they are, and return what each of them knows."""
        wait_for(lambda: all(client["workers"] for client in self.status()), "all clients")
        return self.status()

    def say(self, client: int, text: str) -> None:
        """Let a client say something, which its server tells everybody."""
        self._command("say", client, text)

    def heard(self, text: str, clients: list[int]) -> None:
        """Wait until all of these clients have heard it."""

        def all_heard() -> bool:
            status = self.status()
            return all(text in status[client]["heard"] for client in clients)

        wait_for(all_heard, f"{text!r} at {len(clients)} clients")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


def killed(site: Site) -> None:
    kill(site.hosts["a"].server)


def unplugged(site: Site) -> None:
    """Nothing goes in or out any more, and nobody is told."""
    site.front.ip("link", "set", "to-a", "down")


@pytest.mark.programs
@pytest.mark.load
@pytest.mark.parametrize("lose", [killed, unplugged])
def test_broadcasts_and_the_loss_of_a_host(site: Site, tmp_path: Path, lose: Callable[[Site], None]):
    with redis(site.front), haproxy(site.front, tmp_path) as url, Crowd(site.front, url) as crowd:
        before = crowd.located()
        assert [client["transport"] for client in before] == [MODES[client["mode"]][-1] for client in before]
        assert {client["mode"] for client in before} == set(MODES)
        everybody = list(range(CLIENTS))
        of = {name: [n for n in everybody if before[n]["workers"][0][0] == name] for name in HOSTS}
        assert min(map(len, of.values())) >= CLIENTS / 4, of
        workers = {tuple(client["workers"][0]) for client in before}
        assert workers == {(name, str(slot)) for name in HOSTS for slot in range(WORKERS)}

        wait_for_subscribers(site.front, len(workers))
        said = [f"from {name}" for name in HOSTS]
        for name, text in zip(HOSTS, said, strict=True):
            crowd.say(of[name][0], text)
            crowd.heard(text, everybody)

        lose(site)

        def all_back() -> bool:
            said.append(f"meanwhile {len(said)}")
            crowd.say(of["b"][0], said[-1])
            crowd.heard(said[-1], of["b"])
            status = crowd.status()
            return all(status[n]["transport"] and status[n]["workers"][-1][0] == "b" for n in of["a"])

        wait_for(all_back, "the clients of the lost host")
        for speaker in (of["a"][0], of["b"][0]):
            said.append(f"after it, from {speaker}")
            crowd.say(speaker, said[-1])
            crowd.heard(said[-1], everybody)
        after = crowd.status()
        for n in of["b"]:
            assert after[n]["losses"] == 0, after[n]
            assert after[n]["workers"] == before[n]["workers"]
            assert Counter(after[n]["heard"]) == Counter(said)
        for n in of["a"]:
            assert after[n]["losses"] >= 1, after[n]
            assert after[n]["transport"] == before[n]["transport"]
            # What was said meanwhile is lost for some of them, but nothing comes twice.
            assert not Counter(after[n]["heard"]) - Counter(said), after[n]


@pytest.mark.programs
def test_the_loss_of_redis(site: Site, tmp_path: Path):
    """Meanwhile events reach the clients of one worker. Nobody is disconnected, and nothing has to be restarted."""
    number = 40
    with haproxy(site.front, tmp_path) as url, ExitStack() as first:
        first.enter_context(redis(site.front))
        with Crowd(site.front, url, number) as crowd:
            homes = [client["workers"][0] for client in crowd.located()]
            workers = len(set(map(tuple, homes)))
            wait_for_subscribers(site.front, workers)
            first.close()
            crowd.say(0, "without Redis")
            crowd.heard("without Redis", [n for n, home in enumerate(homes) if home == homes[0]])
            with redis(site.front):
                wait_for_subscribers(site.front, workers)
                crowd.say(0, "with Redis")
                crowd.heard("with Redis", list(range(number)))
                assert [client["losses"] for client in crowd.status()] == [0] * number


@pytest.mark.programs
def test_a_session_of_another_machine_is_unknown(site: Site):
    number = 40
    ids = {}
    for name, host in site.hosts.items():
        answers = ask(site.front, *[host.url + SIO] * number)
        ids[name] = [json.loads(body[1:])["sid"] for body, _status in answers]
    assert len({*ids["a"], *ids["b"]}) == 2 * number

    def post(name: str, sids: list[str]) -> list[tuple[str, int]]:
        """Connect each session to a namespace."""
        return ask(site.front, "--data", "40", *[f"{site.hosts[name].url}{SIO}&sid={sid}" for sid in sids])

    foreign = post("b", ids["a"])
    assert [status for _body, status in foreign] == [400] * number
    assert {re.sub("session .*", "session", body) for body, _status in foreign} == {'"Invalid session'}
    # Nobody's session has got anything of that, and all of them go on.
    for name, sids in ids.items():
        assert post(name, sids) == [("OK", 200)] * number
        answers = ask(site.front, *[f"{site.hosts[name].url}{SIO}&sid={sid}" for sid in sids])
        assert [(body[:9], status) for body, status in answers] == [('40{"sid":', 200)] * number


def test_no_machine_reads_the_ids_of_another():
    """Each master has a secret of its own, and all of them count their workers alike."""
    # One in 2 ** 24 is read by chance, and then names a worker that most likely does not exist. Secrets and texts are
    # fixed, so these are the same every time.
    machines = [Ids(bytes([number]) * 16) for number in range(5)]
    for n in range(2000):
        for home in machines:
            identifier = home.tag(f"{n:020}", 1 + n % WORKERS).encode()
            readers = [machine for machine in machines if machine.owner(identifier) is not None]
            assert readers == [home]
