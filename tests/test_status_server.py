"""The status by HTTP: `sticky_status`."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harness import APPS, PATIENCE, STICKY, Server, addresses, descriptors, request, wait_for
from support.masters import ANOTHER_VERSION, Master
from support.proxies import reserved_port
from support.status import Site, sigstop, well

from gunicorn_sticky.status.server import is_addressed

pytestmark = pytest.mark.features
#: Tests that share a server, and leave it as it is.
shared = pytest.mark.xdist_group("status_server")

CLIENTS = addresses(24)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with well(address="localhost:0") as site:
        site.wait_for_log(r"Slot \d: ready", count=2)  # which the status may tell earlier
        yield site


#: What the arbiter loads, where gevent cannot be.
WITHOUT_GEVENT = """
import sys
sys.modules["gevent"] = None
import gunicorn_sticky.arbiter.arbiter, gunicorn_sticky.arbiter.upgrade, gunicorn_sticky.status.gunicornc
"""


def test_only_its_own_process_needs_gevent():
    subprocess.run([sys.executable, "-c", WITHOUT_GEVENT], check=True)


# --- what it answers ---


@shared
def test_figures(site: Site):
    def requests() -> int:
        return sum(slot["requests"] for slot in site.status()["slots"])

    requests_before, accepted_before = requests(), site.status()["dispatcher"]["accepted"]
    site.slots(CLIENTS)
    wait_for(lambda: requests() == requests_before + len(CLIENTS), "requests to be counted")
    seen = site.status()
    assert seen["pid"] == site.pid
    assert seen["dispatcher"]["accepted"] == accepted_before + len(CLIENTS)
    before = seen["time"]
    assert 0 < site.status()["time"] - before < PATIENCE
    site.send_signal(signal.SIGTTIN)
    wait_for(lambda: [slot["state"] for slot in site.status()["slots"]] == ["ready"] * 3, "a third slot")
    site.send_signal(signal.SIGTTOU)
    wait_for(lambda: len(site.status()["slots"]) == len(site.alive("worker")) == 2, "its end")
    wait_for(lambda: len(site.alive("dispatcher")) == 1, "one dispatcher")


@shared
@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html; charset=utf-8"), ("/status", "application/json"), ("/healthz", "text/plain")]
)
def test_paths(site: Site, path: str, kind: str):
    response = site.ask(path)
    assert (response.status, response.headers["Content-Type"]) == (200, kind)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.body
    head = site.ask(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) > 0
    assert site.ask(path, method="POST", body=b"a=b").status == 405
    assert site.ask(path + "x").status == 404


def test_health():
    config = """
import os
from waiting import wait_until

def post_fork(server, worker):
    wait_until(lambda: not os.path.exists("hold"))
"""
    with well(config=config) as site:
        (site.folder / "hold").touch()
        for state, status in (("degraded", 200), ("down", 503)):
            ready = [w["pid"] for slot in site.status()["slots"] for w in slot["workers"] if w["state"] == "ready"]
            os.kill(ready[0], signal.SIGKILL)
            site.wait_for_state(state)
            response = site.ask("/healthz")
            assert (response.status, response.body.decode()) == (status, f"{state}\n")
        (site.folder / "hold").unlink()
        site.wait_for_state("ok")
        assert site.ask("/healthz").body == b"ok\n"


@shared
def test_it_answers_while_everything_stands_still(site: Site):
    with sigstop([site.pid, *site.alive("worker")]):
        (dispatcher,) = site.alive("dispatcher")
        os.kill(dispatcher, signal.SIGKILL)
        wait_for(lambda: site.status()["dispatcher"]["pid"] is None, "the dispatcher's end to be seen")
        assert site.ask("/").status == 200
        assert site.status()["state"] == "degraded"
    site.wait_for_state("ok")


@shared
def test_a_page_elsewhere_cannot_read_it_by_a_name_of_its_own(site: Site):
    """DNS rebinding: the browser names the page's host, whatever address that has by now."""
    port = site.status_port
    for host in (
        "127.0.0.1",
        f"127.0.0.1:{port}",
        "LocalHost:9180",
        f"[::1]:{port}",
        socket.gethostname(),
        "app:1",
    ):
        assert site.ask("/status", headers={"Host": host}).status == 200, host
    for path in ("/", "/status", "/metrics", "/healthz", "/none"):
        for host in ("attacker.example", f"127.0.0.1.attacker.example:{port}", "a.b:c", "[::1].a", "1.2.3.4, a.b"):
            response = site.ask(path, headers={"Host": host})
            assert response.status == 421
            assert b"sticky_status" in response.body
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as old:
        old.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert old.recv(100).startswith(b"HTTP/1.1 200")
    site.wait_for_log(r"\[WARNING\] Refused to show the status as 'attacker\.example': 421 \(setting: sticky_status\)")


def test_names_of_the_status_server():
    for host in (
        "",
        "localhost",
        "10.0.0.5:80",
        "[2001:db8::1]",
        "app",
        "status.example.com.:9180",
        "STATUS.example.com",
    ):
        assert is_addressed(host, ["status.example.com", "web1"]), host
    for host in ("example.com", "localhost.example.com", "10.0.0.5.example.com", "[::1", "a:b", "a.b,web1", "::1"):
        assert not is_addressed(host, ["status.example.com", "web1"]), host


GARBAGE = {
    "no request": b"garbage",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "version": b"GET / HTTP/9.9",
    "path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1",
    "long header": b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000,
    "many headers": b"GET / HTTP/1.1" + b"\r\nA: b" * 2000,
    "length": b"POST / HTTP/1.1\r\nContent-Length: -5",
    "no length": b"POST / HTTP/1.1\r\nContent-Length: many",
}


@shared
def test_garbage_is_refused_and_not_logged(site: Site):
    port, before = site.status_port, site.log
    for what, head in GARBAGE.items():
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(head + b"\r\n\r\n")
            assert re.match(rb"HTTP/1\.1 (400|414) ", client.recv(1000)), what
    assert site.ask("/healthz").body == b"ok\n"
    assert site.log == before


@shared
def test_silent_clients_are_sent_away(site: Site):
    """More connections than it serves at once, none of which ever sends a whole request."""
    with contextlib.ExitStack() as stack:
        port = site.status_port
        for number in range(120):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            client.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else b"")
        assert site.ask("/healthz").body == b"ok\n"


# --- its process ---


@shared
def test_a_killed_one_is_replaced_and_no_connection_is_refused(site: Site):
    port = site.status_port
    (before,) = site.alive("status server")
    os.kill(before, signal.SIGKILL)
    assert request(port, "/healthz").body == b"ok\n"
    site.wait_for_log("Status server .* has died")
    assert site.status_port == port
    assert site.alive("status server") != [before]


def test_one_that_hangs_is_replaced():
    with well("-w", "1", "--timeout", "10") as site:
        (before,) = site.alive("status server")
        os.kill(before, signal.SIGSTOP)
        site.wait_for_log(rf"STATUS SERVER TIMEOUT \(pid:{before}\)")
        assert site.ask("/healthz").body == b"ok\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_master(number: int):
    with reserved_port() as port, well("-w", "1", address=f"127.0.0.1:{port}") as site:
        site.send_signal(number)
        site.process.wait(PATIENCE)
        wait_for(lambda: not site.session(), "all processes to end")
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("kind", ["dispatcher", "status server"])
def test_a_process_whose_master_dies_before_it_has_started(kind: str, tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import os\n"
        "from gunicorn.glogging import Logger\n"
        "from waiting import wait_until\n"
        "class Slow(Logger):\n"
        "    def info(self, message, *args, **kwargs):\n"
        "        super().info(message, *args, **kwargs)\n"
        f"        if message.startswith('Booting') and args[0] == {kind!r}:\n"
        "            wait_until(lambda: os.getppid() != self.master)\n"
        "    master = os.getpid()\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{APPS}"}
    with Site("-w", "1", "--logger-class", "slow.Slow", env=environment) as site:
        site.wait_for_log(f"Booting {kind} with pid")
        site.send_signal(signal.SIGKILL)
        site.process.wait(PATIENCE)
        wait_for(lambda: not site.session(), "all processes to end")


def test_one_that_is_told_to_end_before_it_serves():
    """It asks for the name of its host first, which takes a while."""
    config = (
        "import gevent.socket, os, sys\n"
        "from waiting import wait_until\n"
        "def slowly(name):\n"
        "    print('Asking', file=sys.stderr, flush=True)\n"
        "    wait_until(lambda: os.path.exists('told'))\n"
        "    return name\n"
        "gevent.socket.getfqdn = slowly\n"
    )
    with Site("-w", "1", config=config) as site:
        site.wait_for_log("Asking")
        [pid] = site.alive("status server")
        os.kill(pid, signal.SIGTERM)
        (site.folder / "told").touch()
        site.wait_for_log(r"Status server \(pid:\d+\) has ended")
        site.wait_for_log("Status at", count=2)
        assert "Exception in the status server" not in site.log


def test_the_end_of_all_processes_at_once_is_no_fault():
    """As Ctrl-C and systemd do, with `KillMode=control-group`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with well() as site:
            os.killpg(site.pid, number)
            assert site.process.wait(PATIENCE) == 0
            assert "[ERROR]" not in site.log


@shared
def test_nobody_else_has_its_socket_and_it_has_nobody_elses(site: Site):
    def sockets(pid: int) -> set[str]:
        return {link for link in descriptors(pid) if link.startswith("socket:")}

    (own,) = wait_for(lambda: site.alive("status server"), "the status server")
    site.slots(CLIENTS)
    others = [*site.alive("worker"), *site.alive("dispatcher")]
    wait_for(lambda: len(sockets(own)) == 1, "answers to be sent")
    assert sockets(own) < sockets(site.pid)
    assert not any(sockets(own) & sockets(pid) for pid in others)


def test_it_gives_up_privileges_and_reopens_logs():
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    # The Python that runs the tests may be one that only its owner can read: the workers keep theirs, and what gevent
    # would import late is here already.
    config = """
import gevent
gevent.config.loop, gevent.config.format_context, gevent.config.threadpool, gevent.config.resolver
def post_fork(server, worker):
    worker.cfg.set("user", None)
    worker.cfg.set("group", None)
"""
    with well("-w", "1", "--user", entry.pw_name, "--group", str(entry.pw_gid), config=config) as site:
        (pid,) = site.alive("status server")
        assert "Uid:" + f"\t{entry.pw_uid}" * 4 in Path(f"/proc/{pid}/status").read_text()
        site.send_signal(signal.SIGUSR1)
        assert site.ask("/healthz").body == b"ok\n"
        assert site.alive("status server") == [pid]


def test_with_a_preloaded_application_that_patches_the_standard_library():
    with Server(*STICKY, "-w", "1", "--preload", "--sticky-status", "127.0.0.1:0", "patched:app") as server:
        port = int(server.wait_for_log(r"Status at: http://.*:(\d+)$").group(1))
        wait_for(lambda: request(port, "/healthz").body == b"ok\n", "the server to be well")
        server.slots(CLIENTS)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Status at", count=2)
        wait_for(lambda: request(port, "/healthz").body == b"ok\n", "the server to be well again")


# --- the address ---


def nobody_listens(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


def test_an_address_in_use_stops_the_start():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Site("--pid", "pid", address=f"127.0.0.1:{port}") as site:
            assert site.process.wait(PATIENCE) == 1
            assert re.fullmatch(
                rf"\s*Error: Invalid sticky_status: 127.0.0.1:{port}: Address already in use\s*", site.log
            )
            assert not (site.folder / "pid").exists()


@shared
def test_a_name_and_ipv6(site: Site):
    assert not re.search("no password|can reach", site.log)
    with Site("-w", "1", address="[::1]:0") as other:
        port = int(other.wait_for_log(r"Status at: http://\[::1\]:(\d+)$").group(1))
        assert request(port, "/healthz", host="::1").status in (200, 503)


def test_a_warning_beyond_loopback():
    with well("-w", "1", address="0.0.0.0:0") as site:
        site.wait_for_log(r"\[WARNING\] Whoever can reach 0\.0\.0\.0 sees the status.*\(setting: sticky_status\)")


def test_a_reload_changes_the_address():
    with (
        Server(*STICKY, "-w", "1", "whoami:app") as server,
        socket.create_server(("127.0.0.1", 0)) as other,
        reserved_port() as first,
        reserved_port() as second,
    ):

        def reload(address: str) -> None:
            server.configure(f"sticky_status = {address!r}")
            known = server.booted("worker")
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: len(set(server.alive("worker")) - set(known)) == 1, "a new worker")
            wait_for(lambda: not set(server.alive("worker")) & set(known), "the old worker's end")

        server.slots(CLIENTS)
        for address, port in ((f":{first}", first), (f"localhost:{second}", second)):
            reload(address)
            wait_for(lambda: len(server.alive("status server")) == 1, "one status server")
            assert request(port, "/healthz").body == b"ok\n"
        nobody_listens(first)
        reload(f"127.0.0.1:{other.getsockname()[1]}")
        server.wait_for_log(r"\[ERROR\] Invalid sticky_status: .* Address already in use")
        assert request(second, "/healthz").body == b"ok\n"
        reload("")
        wait_for(lambda: not server.alive("status server"), "the status server's end")
        nobody_listens(second)


# --- an upgrade ---


def test_an_upgrade_and_the_way_back():
    with well("--pid", "pid") as site:
        port = site.status_port

        def master() -> int:
            return int(json.loads(request(port, "/status").body)["pid"])

        assert master() == site.pid
        new = Master(site)
        wait_for(lambda: master() == new.pid and master() == new.pid, "the new master's status")
        new.end()
        wait_for(lambda: master() == site.pid, "the old master's status")
        new = Master(site)
        site.stop()
        new.be_promoted()
        assert master() == new.pid
        new.end()


def test_an_upgrade_from_another_version():
    """Nothing is inherited then, and the old master has the address until it goes."""
    with (
        reserved_port() as port,
        well("--pid", "pid", config=ANOTHER_VERSION, address=f"127.0.0.1:{port}") as site,
    ):
        site.send_signal(signal.SIGUSR2)
        site.wait_for_log(rf"\[WARNING\] No status while the old master has 127\.0\.0\.1:{port}")
        site.wait_for_log("Booting worker", count=4)
        old, site.pid = site.pid, int(wait_for(lambda: (site.folder / "pid.2").read_text(), "the new master's pid"))
        assert site.status()["pid"] == old
        os.kill(old, signal.SIGTERM)
        site.process.wait(PATIENCE)
        site.wait_for_log("Status at", count=2)
        assert site.status()["pid"] == site.pid
        site.send_signal(signal.SIGTERM)
        wait_for(lambda: not site.is_running, "the new master's end")
