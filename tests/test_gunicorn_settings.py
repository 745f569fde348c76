"""Gunicorn's own settings: with our arbiter they do what they do with Gunicorn's, and clients keep their worker."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harness import APPS, BIN, PATIENCE, STICKY, Server, addresses, daemon, descriptors, wait_for
from support.proxies import reserved_port

pytestmark = [pytest.mark.features, pytest.mark.xdist_group("gunicorn_settings")]

CLIENTS = addresses(12)
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def spread(server: Server) -> dict[str, int]:
    """Return the slot of each client, and see that they use all of two workers, again and again."""
    before = server.slots(CLIENTS)
    assert set(before.values()) == {0, 1}
    assert server.slots(CLIENTS) == before
    return before


def status(pid: int, field: str) -> list[str]:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return line.split()[1:]


def processes(server: Server) -> list[int]:
    """Return the pids of master, workers and dispatcher."""
    server.slots(CLIENTS)
    wait_for(lambda: server.alive("dispatcher"), "the dispatcher")
    return [server.pid, *server.alive("worker"), *server.alive("dispatcher")]


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with all settings that can be tested by only looking, and the folder that they name."""
    folder = tmp_path_factory.mktemp("settled")
    (folder / "here").mkdir()
    (folder / "here" / "mine.py").write_text("from process import app")
    config = f"""
asgi_lifespan = "off"
asgi_loop = "asyncio"
chdir = "{folder}/here"
keepalive = 10
proc_name = "shop"
pythonpath = "{folder}/there,/nowhere"
root_path = "/shop"
threads = 4
worker_tmp_dir = "{folder}"
workers = 2
wsgi_app = "mine:app"
"""
    with Server(*STICKY, config=config) as server:
        spread(server)
        yield server, folder


# --- the process ---


def test_daemon():
    with reserved_port() as port:
        with daemon(*STICKY, "-w", "2", "whoami:app", bind=f"127.0.0.1:{port}") as server:
            before = spread(server)
            assert Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("Booting dispatcher", count=2)
            wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
            assert server.slots(CLIENTS) == before
            pid = server.folder / "pid"
        assert not pid.exists()
        socket.create_server(("127.0.0.1", port)).close()


def test_standard_output_of_a_daemon():
    """-R; without it there is none."""
    args = ("-w", "1", "--log-level", "debug", "-R", "--error-logfile", "-")
    with Server(*STICKY, "--daemon", "--pid", "pid", *args, "whoami:app") as server:
        pid = int(wait_for(lambda: (server.folder / "pid").exists() and (server.folder / "pid").read_text(), "the pid"))
        try:
            server.wait_for_log("Booting dispatcher")
            assert server.who()
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the daemon's end")


def test_pid_file():
    with Server(*STICKY, "-w", "2", "--pid", "pid", "whoami:app") as server:
        spread(server)
        pid = server.folder / "pid"
        assert pid.read_text() == f"{server.pid}\n"
        second = Server(*STICKY, "-w", "2", "--pid", str(pid), "whoami:app")
        with second:
            assert second.process.wait(PATIENCE) == 1
            assert f"Already running on PID {server.pid}" in second.log
        assert pid.read_text() == f"{server.pid}\n"
        assert server.stop() == 0
        assert not pid.exists()


def test_user_and_group(settled: tuple[Server, Path]):
    """Workers and dispatcher are theirs, the master is not."""
    root = os.geteuid() == 0
    entry = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
    args = ["--user", entry.pw_name, "--group", str(entry.pw_gid)]
    # A Python that only its owner can read is no good for others: what they will need is imported before.
    modules = settled[0].who()["modules"]
    config = f"""
import contextlib, importlib
for module in {modules}:
    with contextlib.suppress(ImportError):
        importlib.import_module(module)
"""
    for groups in (None, [str(entry.pw_gid)]) if root else (None,):  # only root may set groups
        more = ["--initgroups"] if groups else []
        with Server(*STICKY, "-w", "1", *args, *more, "--preload", "process:app", config=config) as server:
            assert server.who()["slot"] == 0
            master, *others = processes(server)
            assert len(others) == 2
            for pid in others:
                assert status(pid, "Uid") == [str(entry.pw_uid)] * 4
                if groups:
                    assert status(pid, "Groups") == groups
                else:
                    assert status(pid, "Gid") == [str(entry.pw_gid)] * 4
            assert status(master, "Uid") == [str(os.geteuid())] * 4


def test_a_user_that_there_is_not():
    with Server(*STICKY, "-w", "2", "--user", "nobody-of-that-name", "whoami:app") as server:
        assert server.process.wait(PATIENCE) == 1
        assert "No such user" in server.log


def test_umask():
    """It counts for Unix sockets."""
    args = ("-w", "1", "--umask", "027", "--sticky-proxy", "whoami:app")
    with Server(*STICKY, *args, bind="unix:socket") as server:
        server.wait_for_log("Listening at")
        assert oct((server.folder / "socket").stat().st_mode)[-3:] == "750"
        assert server.stop() == 0
        assert not (server.folder / "socket").exists()


def test_folder_and_python_path(settled: tuple[Server, Path]):
    server, folder = settled
    who = server.who()
    assert who["folder"] == str(folder / "here")
    assert {str(folder / "there"), "/nowhere"} <= set(who["path"])
    assert {os.readlink(f"/proc/{pid}/cwd") for pid in processes(server)} == {str(folder / "here")}


def test_a_reload_changes_environment_and_pid_file():
    config = "raw_env = ['FIRST={0}']\npidfile = 'pid{0}'\nworkers = 2"
    with Server(*STICKY, "process:app", config=config.format(1)) as server:
        before = spread(server)
        assert server.who()["environ"]["FIRST"] == "1"
        assert (server.folder / "pid1").exists()
        old = set(server.alive("worker"))
        server.configure(config.format(2))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")
        who = server.who()["environ"]
        assert who["FIRST"] == "2"
        assert "GUNICORN_STICKY_SECRET" not in who
        assert (server.folder / "pid2").read_text() == f"{server.pid}\n"
        assert not (server.folder / "pid1").exists()
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert server.slots(CLIENTS) == before


def test_names_of_the_processes(settled: tuple[Server, Path]):
    titles = [Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0") for pid in processes(settled[0])]
    assert titles == [f"gunicorn: {kind} [shop]" for kind in ("master", "worker", "worker", "dispatcher")]


def test_application_in_the_configuration(settled: tuple[Server, Path]):
    assert "mine" in settled[0].who()["modules"]


def test_paste(tmp_path: Path):
    (tmp_path / "shop.ini").write_text("[app:main]\npaste.app_factory = paste_app:factory\n")
    with Server(*STICKY, "-w", "1", "--paste", str(tmp_path / "shop.ini")) as server:
        assert server.who()["slot"] == 0


# --- preloading and reloading ---


def test_preload():
    with Server(*STICKY, "-w", "2", "--preload", "process:app") as server:
        before = spread(server)
        assert server.who()["imported_by"] == server.pid
        old = set(server.alive("worker"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: not old & set(server.alive("worker")), "the old workers to end")
        wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
        assert server.slots(CLIENTS) == before


def test_without_preload_each_worker_imports(settled: tuple[Server, Path]):
    for client in CLIENTS:
        who = settled[0].who(source=client)
        assert who["imported_by"] == who["pid"]


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_an_application_that_cannot_be_imported(preload: list[str]):
    with Server(*STICKY, "-w", "2", "--graceful-timeout", "2", *preload, "nothing:app") as server:
        code = server.process.wait(PATIENCE)
        assert "nothing" in server.log
        assert code == 1 if preload else code in (1, 3, 4)
        wait_for(lambda: not server.session(), "all processes to end")


def test_code_reload_survives_a_syntax_error(tmp_path: Path):
    module = tmp_path / "changing.py"
    module.write_text("from process import app\n")
    args = ("--reload", "--reload-engine", "poll", "--chdir", str(tmp_path))
    with Server(*STICKY, "-w", "2", *args, "changing:app") as server:
        before = spread(server)
        module.write_text("this is no Python\n")
        clients = {slot: client for client, slot in before.items()}.values()
        # From both: who has read one text, and finds the next when it first looks at the file, notices no change.
        wait_for(lambda: {server.get(source=client).status for client in clients} == {500}, "the error")
        module.write_text("from process import app  # again\n")
        wait_for(lambda: {server.get(source=client).status for client in clients} == {200}, "the application")
        assert server.slots(CLIENTS) == before


def test_no_workers_until_there_are_some():
    with (
        Server(*STICKY, "-w", "0", "whoami:app") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client,
    ):
        client.sendall(GET)
        assert not server.booted("worker")
        server.send_signal(signal.SIGTTIN)
        assert client.recv(12) == b"HTTP/1.1 200"


# --- time and number ---


def test_folder_of_the_heartbeats(settled: tuple[Server, Path]):
    server, folder = settled
    pids = processes(server)
    assert len(pids) == 4
    for pid in pids:
        assert any(link.startswith(f"{folder}/wgunicorn-") for link in descriptors(pid)), pid


def test_a_folder_of_the_heartbeats_that_there_is_not():
    with Server(*STICKY, "-w", "2", "--worker-tmp-dir", "/nowhere", "whoami:app") as server:
        assert server.process.wait(PATIENCE) == 255
        assert "/nowhere doesn't exist" in server.log
        wait_for(lambda: not server.session(), "all processes to end")


def test_a_worker_that_stands_still_is_replaced_after_the_timeout():
    with Server(*STICKY, "-w", "2", "--timeout", "10", "whoami:app") as server:
        before = spread(server)
        victim = server.who(source=CLIENTS[0])["pid"]
        os.kill(victim, signal.SIGSTOP)
        # What has been sent to it meanwhile is served by its successor.
        assert server.who(source=CLIENTS[0])["slot"] == before[CLIENTS[0]]
        assert f"WORKER TIMEOUT (pid:{victim})" in server.log
        assert server.slots(CLIENTS) == before


def test_without_timeout_nobody_is_killed():
    with Server(*STICKY, "-w", "2", "--timeout", "0", "whoami:app") as server:
        before = spread(server)
        assert server.slots(CLIENTS) == before
        assert len(server.booted("worker")) == 2


def test_worker_connections():
    """A worker's connections beyond that wait, and are served when others end."""
    with Server(*STICKY, "-w", "2", "--worker-connections", "2", "whoami:app") as server:
        before = spread(server)
        held: list[int] = []
        threads = [
            threading.Thread(target=lambda: held.append(server.get("/hold", source=CLIENTS[0]).status))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        other = next(client for client in CLIENTS if before[client] != before[CLIENTS[0]])
        assert server.who(source=other)["slot"] == before[other]
        (server.folder / "release").touch()
        for thread in threads:
            thread.join(PATIENCE)
        assert held == [200] * 5


def test_keep_alive(settled: tuple[Server, Path]):
    connection = http.client.HTTPConnection("127.0.0.1", settled[0].port, timeout=PATIENCE)
    served = set()
    for _ in range(3):
        connection.request("GET", "/")
        served.add(json.loads(connection.getresponse().read())["pid"])
        client = connection.sock
    assert len(served) == 1
    assert client.recv(1) == b""  # closed by the server when it has waited
    connection.close()


def test_jitter_of_max_requests():
    args = ("--max-requests", "5", "--max-requests-jitter", "5", "whoami:app")
    with Server(*STICKY, "-w", "2", *args) as server:
        before = spread(server)
        restarts = "Autorestarting worker"
        wait_for(lambda: server.slots(CLIENTS) != before or server.log.count(restarts) > 1, "two restarts")
        wait_for(lambda: len(server.alive("worker")) == 2, "two workers")
        assert server.slots(CLIENTS) == before


def test_settings_of_other_worker_classes_change_nothing(settled: tuple[Server, Path]):
    server, _folder = settled
    assert "Using worker: gunicorn_sticky.GeventStickyWorker" in server.log
    assert server.who()["wsgi"]["SCRIPT_NAME"] == ""


# --- HTTP ---


def test_what_gunicorns_parser_refuses():
    limits = ("--limit-request-line", "100", "--limit-request-fields", "5", "--limit-request-field_size", "200")
    with Server(*STICKY, "-w", "1", "--sticky-proxy", *limits, "whoami:app") as server:
        client = {"X-Forwarded-For": "10.1.1.1"}
        assert server.get("/", headers=client).status == 200
        assert server.get("/" + "x" * 200, headers=client).status in (400, 414)
        assert server.get("/", headers=client | {f"X-{n}": "1" for n in range(8)}).status in (400, 431)
        assert server.get("/", headers=client | {"X-Long": "x" * 300}).status in (400, 431)
        for head in ODD_HEADS.values():
            assert answer(server, head) == b"400", head


ODD_HEADS = {
    "permit-unconventional-http-method": b"get / HTTP/1.1\r\nHost: a\r\n",
    "permit-unconventional-http-version": b"GET / HTTP/2.0\r\nHost: a\r\n",
    "permit-obsolete-folding": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n",
    "strip-header-spaces": b"GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n",
}


def answer(server: Server, head: bytes) -> bytes:
    """Send a head that lacks the client and its end, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(head + b"X-Forwarded-For: 10.1.1.1\r\nConnection: close\r\n\r\n")
        return client.recv(12)[9:]


def test_what_gunicorns_parser_may_take():
    """And no connection is kept alive, if that is set."""
    permissions = [f"--{option}" for option in ODD_HEADS]
    with Server(*STICKY, "-w", "1", "--sticky-proxy", "--keep-alive", "0", *permissions, "whoami:app") as server:
        for option, head in ODD_HEADS.items():
            assert answer(server, head) == b"200", option
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("GET", "/", headers={"X-Forwarded-For": "10.1.1.1"})
        assert connection.getresponse().read()
        assert connection.sock is None  # http.client has been told


def test_what_gunicorn_tells_the_application():
    """Also of a request that has moved from one worker to another."""
    config = """
workers = 4
keepalive = 60
sticky_proxy = True
header_map = "dangerous"
forwarder_headers = "SCRIPT_NAME"
secure_scheme_headers = {"X-SECURE": "yes"}
"""
    with Server(*STICKY, "process:app", config=config) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        slots = set()
        for number in range(12):
            headers = {"X-Forwarded-For": f"10.0.0.{number}", "X-Secure": "yes", "SCRIPT_NAME": "/shop", "A_B": "c"}
            connection.request("GET", "/shop/there", headers=headers)
            who = json.loads(connection.getresponse().read())
            slots.add(who["slot"])
            assert who["wsgi"]["wsgi.url_scheme"] == "https"
            assert (who["wsgi"]["SCRIPT_NAME"], who["wsgi"]["PATH_INFO"]) == ("/shop", "/there")
            assert who["wsgi"]["HTTP_A_B"] == "c"
        connection.close()
        assert len(slots) > 1


def test_files(settled: tuple[Server, Path]):
    expected = (APPS / "process.py").read_bytes()
    for client in CLIENTS:
        assert settled[0].get("/file", source=client).body == expected
    with Server(*STICKY, "-w", "1", "--no-sendfile", "process:app") as server:
        assert server.get("/file").body == expected


def test_trusted_proxies_of_gunicorn_are_independent_of_ours():
    args = ("--sticky-proxy", "--forwarded-allow-ips", "127.0.0.9")
    with Server(*STICKY, "-w", "1", *args, "whoami:app") as server:
        headers = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https"}
        trusted = server.who(source="127.0.0.9", headers=headers)
        other = server.who(source="127.0.0.8", headers=headers)
        assert (trusted["wsgi.url_scheme"], other["wsgi.url_scheme"]) == ("https", "http")
        assert trusted["key"] == other["key"] == "10.1.1.1"
        assert (trusted["REMOTE_ADDR"], other["REMOTE_ADDR"]) == ("127.0.0.9", "127.0.0.8")


def test_uwsgi_protocol_by_address():
    with Server(*STICKY, "-w", "2", "--protocol", "uwsgi", "--uwsgi-allow-from", "*", "whoami:app") as server:

        def slot(client: str) -> int:
            variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "SERVER_NAME": "a"}
            fields = b"".join(
                len(item).to_bytes(2, "little") + item.encode() for pair in variables.items() for item in pair
            )
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE, (client, 0)) as connection:
                connection.sendall(b"\0" + len(fields).to_bytes(2, "little") + b"\0" + fields)
                response = http.client.HTTPResponse(connection)
                response.begin()
                who = json.loads(response.read())
            assert who["key"] == client
            return int(who["slot"])

        before = {client: slot(client) for client in CLIENTS}
        assert len(set(before.values())) > 1
        assert {client: slot(client) for client in CLIENTS} == before


def test_spew():
    # What is imported before is not traced, and that is most.
    config = "import gunicorn_sticky.arbiter.arbiter, gunicorn_sticky.dispatcher.process, gevent.monkey, gevent.pywsgi"
    with Server(*STICKY, "-w", "1", "--spew", "hello:app", config=config) as server:
        assert server.get(timeout=4 * PATIENCE).status == 200
        server.wait_for_log("hello:")


# --- what only prints ---


def test_print_config():
    with Server(*STICKY, "-w", "2", "--print-config", "whoami:app") as server:
        assert server.process.wait(PATIENCE) == 0
        assert "GeventStickyWorker" in server.log
        assert "Booting" not in server.log


def test_version():
    done = subprocess.run([str(BIN / "gunicorn"), "--version"], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout[:9]) == (0, "gunicorn ")
