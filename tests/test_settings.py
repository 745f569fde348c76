"""The settings: their defaults, what they accept, and what is refused before anything is bound."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import Config
from gunicorn.errors import ConfigError
from support.harness import APPS, BIN, PATIENCE, STICKY, Response, Server, clean_env, wait_for

from gunicorn_sticky.configuration import affinity, check, cookie_name

pytestmark = pytest.mark.features

FORWARDED = {"X-Forwarded-For": "203.0.113.7"}
#: Takes a listening socket, as systemd would hand one over: its address, then gunicorn's arguments.
INHERIT = """
import os, socket, sys
path = sys.argv.pop(1)
listener = socket.socket(socket.AF_UNIX) if path else socket.socket()
listener.bind(path or ("127.0.0.1", 0))
listener.listen()
listener.set_inheritable(True)
os.execv(sys.argv[1], [*sys.argv[1:], "--bind", f"fd://{listener.fileno()}"])
"""


def print_config(*args: str, config: str = "", folder: Path) -> dict[str, str]:
    """Return what `gunicorn --print-config` says about our settings."""
    (folder / "gunicorn.conf.py").write_text(config)
    command = [str(BIN / "gunicorn"), "--print-config", *args, "whoami:app"]
    env = clean_env({"PYTHONPATH": str(APPS)})
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if name.startswith("sticky_")}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Read a configuration as the command `gunicorn` does, but in this process."""
    file = tmp_path / "gunicorn.conf.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)

    def load(*args: str, config: str = "") -> Config:
        file.write_text(config)
        monkeypatch.setattr(sys, "argv", ["gunicorn", "--config", str(file), *STICKY, *args, "whoami:app"])
        return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").cfg

    return load


def refuses(*args: str, **kwargs: Any) -> str:
    """Start a server that must not start, and return what it has printed."""
    with Server(*STICKY, "-w", "1", *args, "whoami:app", **kwargs) as server:
        assert server.process.wait(PATIENCE) == 1, server.log
        log = server.log
    assert "Listening at" not in log
    assert "Booting" not in log
    return log


def refuses_in_one_line(*args: str, **kwargs: Any) -> str:
    line = refuses(*args, **kwargs).strip()
    assert line.startswith("Error: ")
    assert "\n" not in line
    return line


def who_at(address: str | tuple[str, int], tls: bool = False, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Ask tests/apps/whoami.py over a Unix socket or over TLS."""
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(PATIENCE)
    client.connect(address)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_socket(client)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = client
    try:
        connection.request("GET", "/", headers=headers or {})
        return dict(json.loads(Response(connection.getresponse()).body))
    finally:
        connection.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return gunicorn's options for a self-signed certificate."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-subj", "/CN=localhost", "-days", "2", "-out", cert, "-keyout", key]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return ["--certfile", cert, "--keyfile", key]


# --- each setting alone ---


def test_defaults(tmp_path):
    shown = print_config(folder=tmp_path)
    assert "sticky_connection" in shown.pop("sticky_connection")
    assert shown == {
        "sticky_balance": "least-connections",
        "sticky_by": "ip",
        "sticky_cluster_socket": "None",
        "sticky_cookie": "None",
        "sticky_cookie_samesite": "lax",
        "sticky_header": "x-forwarded-for",
        "sticky_header_timeout": "10",
        "sticky_ignore_missing_header": "False",
        "sticky_ipv6_prefix": "64",
        "sticky_proxy": "None",
        "sticky_session_keys": "['query:sid', 'query:session_id', 'query:client_id', 'header:mcp-session-id']",
        "sticky_slot_header": "False",
        "sticky_status": "None",
        "sticky_sync": "False",
        "sticky_sync_event": "sticky-sessions:sync",
        "sticky_sync_timeout": "30",
        "sticky_trusted_proxies": "['*']",
    }


def test_good_values_on_the_command_line(tmp_path):
    switches = ["--sticky-proxy", "--sticky-ignore-missing-header", "--sticky-sync", "--sticky-slot-header"]
    names = ["--sticky-by=header", "--sticky-header=CF-Connecting-IP", "--sticky-sync-event=ready: go"]
    numbers = ["--sticky-header-timeout=1", "--sticky-sync-timeout=3600", "--sticky-ipv6-prefix=128"]
    names += ["--sticky-cluster-socket=unix:/run/a.sock", "--sticky-status=[::1]:9180"]
    lists = ["--sticky-session-keys=query:s.d, header:Mcp-Session-Id,cookie:sid"]
    names += ["--sticky-cookie-samesite=None"]
    lists += ["--sticky-trusted-proxies=10.0.0.0/8, ::1", "--sticky-balance=round-robin", "--sticky-cookie=__Host-w"]
    shown = print_config(*switches, *names, *numbers, *lists, folder=tmp_path)
    del shown["sticky_connection"]
    assert shown == {
        "sticky_balance": "round-robin",
        "sticky_by": "header",
        "sticky_cluster_socket": "/run/a.sock",
        "sticky_cookie": "__Host-w",
        "sticky_cookie_samesite": "none",
        "sticky_header": "cf-connecting-ip",
        "sticky_header_timeout": "1",
        "sticky_ignore_missing_header": "True",
        "sticky_ipv6_prefix": "128",
        "sticky_proxy": "True",
        "sticky_session_keys": "['query:s.d', 'header:Mcp-Session-Id', 'cookie:sid']",
        "sticky_slot_header": "True",
        "sticky_status": "[::1]:9180",
        "sticky_sync": "True",
        "sticky_sync_event": "ready: go",
        "sticky_sync_timeout": "3600",
        "sticky_trusted_proxies": "['10.0.0.0/8', '::1']",
    }


def test_good_values_in_the_config_file(tmp_path):
    config = """
sticky_balance = "hash"
sticky_by = "session"
sticky_cluster_socket = "a.sock"
sticky_cookie = "w"
sticky_cookie_samesite = "Strict"
sticky_header = "Forwarded"
sticky_header_timeout = 2
sticky_ignore_missing_header = True
sticky_ipv6_prefix = 1
sticky_session_keys = ["header:x-sid", "query:sid"]
sticky_slot_header = True
sticky_status = "9180"
sticky_sync = "true"
sticky_sync_event = "x"
sticky_sync_timeout = "4"
sticky_trusted_proxies = ""
def sticky_connection(worker, connection):
    pass
"""
    assert print_config(config=config, folder=tmp_path) == {
        "sticky_balance": "hash",
        "sticky_by": "session",
        "sticky_cluster_socket": "a.sock",
        "sticky_cookie": "w",
        "sticky_cookie_samesite": "strict",
        "sticky_connection": "<sticky_connection()>",
        "sticky_header": "forwarded",
        "sticky_header_timeout": "2",
        "sticky_ignore_missing_header": "True",
        "sticky_ipv6_prefix": "1",
        "sticky_proxy": "None",
        "sticky_session_keys": "['header:x-sid', 'query:sid']",
        "sticky_slot_header": "True",
        "sticky_status": "127.0.0.1:9180",
        "sticky_sync": "True",
        "sticky_sync_event": "x",
        "sticky_sync_timeout": "4",
        "sticky_trusted_proxies": "[]",
    }


BAD = [
    ("sticky_by", "magic"),
    ("sticky_by", ""),
    ("sticky_balance", "fair"),
    ("sticky_balance", ""),
    ("sticky_cookie", ""),
    ("sticky_cookie", "a=b"),
    ("sticky_cookie", "two words"),
    ("sticky_cookie_samesite", ""),
    ("sticky_cookie_samesite", "lax; Domain=example.com"),
    ("sticky_header", ""),
    ("sticky_header", "two words"),
    ("sticky_header", "x-client:"),
    ("sticky_header", "größe"),
    ("sticky_header_timeout", "0"),
    ("sticky_header_timeout", "-1"),
    ("sticky_header_timeout", "soon"),
    ("sticky_ipv6_prefix", "0"),
    ("sticky_ipv6_prefix", "129"),
    ("sticky_ipv6_prefix", "half"),
    ("sticky_session_keys", ""),
    ("sticky_session_keys", ","),
    ("sticky_session_keys", "sid"),
    ("sticky_session_keys", "query:"),
    ("sticky_session_keys", "body:sid"),
    ("sticky_session_keys", "query:sid,cookie:a=b"),
    ("sticky_status", "localhost"),
    ("sticky_status", "127.0.0.1:"),
    ("sticky_status", "::1:9180"),
    ("sticky_status", ":65536"),
    ("sticky_sync_event", ""),
    ("sticky_sync_timeout", "0"),
    ("sticky_sync_timeout", "-1"),
    ("sticky_sync_timeout", "1.5"),
    ("sticky_trusted_proxies", "proxy.example"),
    ("sticky_trusted_proxies", "10.0.0.1/8"),
    ("sticky_trusted_proxies", "10.0.0.1,999.0.0.1"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_on_the_command_line(load, capsys, name, value):
    with pytest.raises(SystemExit) as end:
        load(f"--{name.replace('_', '-')}={value}")
    assert end.value.code == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("Error: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *BAD,
        ("sticky_by", 1),
        ("sticky_by", None),
        ("sticky_balance", None),
        ("sticky_cluster_socket", 1),
        ("sticky_cookie", 1),
        ("sticky_cookie_samesite", None),
        ("sticky_cookie_samesite", False),
        ("sticky_header", None),
        ("sticky_header", b"x-client"),
        ("sticky_header_timeout", None),
        ("sticky_header_timeout", 0.5),
        ("sticky_ipv6_prefix", 0),
        ("sticky_ipv6_prefix", None),
        ("sticky_proxy", "perhaps"),
        ("sticky_session_keys", []),
        ("sticky_session_keys", ["query:sid", "sid"]),
        ("sticky_session_keys", None),
        ("sticky_status", 9180),
        ("sticky_trusted_proxies", 1),
        ("sticky_ignore_missing_header", "perhaps"),
        ("sticky_slot_header", "perhaps"),
        ("sticky_sync", 1),
        ("sticky_sync_event", None),
        ("sticky_sync_timeout", 0),
        ("sticky_connection", "missing.module"),
        ("sticky_connection", None),
    ],
)
def test_bad_value_in_the_config_file(load, capsys, name, value):
    with pytest.raises(SystemExit) as end:
        load(config=f"{name} = {value!r}\n")
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Invalid value for {name}: {value}")
    assert "\nError: " in said
    assert "Traceback" not in said


def test_hook_that_takes_the_wrong_arguments(load, capsys):
    with pytest.raises(SystemExit):
        load(config="def sticky_connection(connection):\n    pass\n")
    assert "Invalid value for sticky_connection" in capsys.readouterr().err


def test_a_server_with_a_bad_value_does_not_start():
    refuses_in_one_line("--sticky-by=magic")
    refuses_in_one_line(env={"GUNICORN_CMD_ARGS": "--sticky-by magic"})
    log = refuses(config="sticky_by = 'magic'\n")
    assert "Invalid value for sticky_by: magic" in log
    assert "\nError: " in log
    assert "Traceback" not in log


def test_the_hook_of_the_config_file_is_called():
    config = "def sticky_connection(worker, connection):\n    worker.log.info('hook of %s', connection.key)\n"
    with Server(*STICKY, "-w", "1", "whoami:app", config=config) as server:
        server.who(source="127.0.0.9")
        server.wait_for_log("hook of 127.0.0.9")


# --- settings together ---


def cookie_name_of(**options: Any) -> str:
    cfg = Config()
    for name, value in options.items():
        cfg.set(name, value)
    return cookie_name(cfg)


def test_servers_on_one_host_name_have_cookies_of_their_own():
    servers: list[dict[str, Any]] = [
        {"bind": "0.0.0.0:8000"},
        {"bind": "0.0.0.0:8001"},
        {"bind": "unix:/run/a.sock"},
        {"bind": ["0.0.0.0:8000", "0.0.0.0:8001"]},
        {"bind": "0.0.0.0:8000", "default_proc_name": "shop:app"},
        {"bind": "0.0.0.0:8000", "proc_name": "shop"},
        {"bind": "unix:/run/\udcff.sock"},
    ]
    names = [cookie_name_of(**options) for options in servers]
    assert len(set(names)) == len(names)
    assert names == [cookie_name_of(**options) for options in servers]  # also after a restart
    assert all(re.fullmatch("gunicorn_sticky_[0-9a-f]{6}", name) for name in names)
    assert cookie_name_of(bind="0.0.0.0:8000", sticky_cookie="w") == "w"


@pytest.mark.parametrize(
    ("args", "config"),
    [
        (["--sticky-proxy", "--sticky-by=ip"], ""),
        ([], "sticky_proxy = True\nsticky_by = 'ip'\n"),
        ([], "sticky_proxy = False\nsticky_by = 'header'\n"),
        ([], "sticky_proxy = True\nsticky_by = 'session'\n"),
        ([], "sticky_proxy = True\nsticky_by = 'cookie'\n"),
        (["--sticky-by=ip"], "sticky_proxy = True\n"),
    ],
)
def test_contradiction_of_by_and_proxy(load, args, config):
    with pytest.raises(ConfigError, match=r"^sticky_proxy = .* contradicts sticky_by = "):
        check(load(*args, config=config))


@pytest.mark.parametrize(
    ("args", "config", "by_header"),
    [
        (["--sticky-proxy"], "", True),
        (["--sticky-proxy", "--sticky-by=header"], "", True),
        ([], "sticky_by = 'header'\n", True),
        ([], "sticky_proxy = False\n", False),
        ([], "sticky_proxy = False\nsticky_by = 'ip'\n", False),
        ([], "sticky_header = 'x-forwarded-for'\n", False),
    ],
)
def test_by_and_proxy(load, args, config, by_header):
    cfg = load(*args, config=config)
    check(cfg)
    assert affinity(cfg).by == ("header" if by_header else "ip")


def test_a_server_whose_settings_contradict_does_not_start(certificate):
    line = refuses_in_one_line("--sticky-by=ip", config="sticky_proxy = True\n")
    assert "sticky_proxy" in line
    assert "sticky_by" in line
    assert "TLS" in refuses_in_one_line("--sticky-by=header", *certificate)


def test_unix_socket_has_no_address(load, tmp_path):
    path = tmp_path / "socket"
    with pytest.raises(ConfigError, match="sticky_by = 'header'"):
        check(load("--bind", f"unix:{path}"))
    assert "sticky_by = 'header'" in refuses_in_one_line("--bind", f"unix:{path}")  # beside one of TCP
    assert not path.exists()


@pytest.mark.parametrize("by", ["session", "cookie"])
def test_unix_socket_by_session(tmp_path, by):
    path = f"{tmp_path}/socket"
    with Server(*STICKY, "-w", "1", f"--sticky-by={by}", "whoami:app", bind=f"unix:{path}") as server:
        server.wait_for_log("Listening at")
        assert who_at(path)["key"] == ""  # a new session, of nobody that has an address


def inherited(path: str) -> dict[str, Any]:
    return {"command": [sys.executable, "-c", INHERIT, path, str(BIN / "gunicorn")], "bind": None}


def test_inherited_unix_socket_has_no_address(tmp_path):
    with Server(*STICKY, "--pid", f"{tmp_path}/pid", "whoami:app", **inherited(f"{tmp_path}/socket")) as server:
        assert server.process.wait(PATIENCE) == 1, server.log
        assert "\nError: a Unix socket has no client address" in server.log
        assert "Traceback" not in server.log
        assert "Booting" not in server.log
        assert not (tmp_path / "pid").exists()


def test_inherited_unix_socket_by_header(tmp_path):
    path = f"{tmp_path}/socket"
    with Server(*STICKY, "-w", "1", "--sticky-proxy", "whoami:app", **inherited(path)) as server:
        server.wait_for_log("Listening at")
        assert who_at(path, headers=FORWARDED)["key"] == FORWARDED["X-Forwarded-For"]


def test_inherited_tcp_socket():
    with Server(*STICKY, "-w", "1", "whoami:app", **inherited("")) as server:
        assert server.who(source="127.0.0.9")["key"] == "127.0.0.9"


@pytest.mark.parametrize("by", ["header", "session", "cookie"])
def test_tls_hides_the_head(load, certificate, by):
    with pytest.raises(ConfigError, match=f"{by!r} .* TLS"):
        check(load(f"--sticky-by={by}", *certificate))


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
def test_tls_hides_the_proxy_header(load, certificate, mode):
    with pytest.raises(ConfigError, match=r"TLS.* proxy_protocol"):
        check(load(f"--proxy-protocol={mode}", *certificate))


def test_tls_by_ip(certificate):
    with Server(*STICKY, "-w", "1", *certificate, "whoami:app") as server:
        who = who_at(("127.0.0.1", server.port), tls=True)
        assert (who["key"], who["wsgi.url_scheme"]) == ("127.0.0.1", "https")


# Older versions of Gunicorn do not know HTTP/2 without TLS.
CLEARTEXT = ["http2_cleartext"] if "http2_cleartext" in Config().settings else []


@pytest.mark.parametrize("by", ["header", "session", "cookie"])
@pytest.mark.parametrize("name", ["protocol", *CLEARTEXT])
def test_only_heads_of_http_1_are_read(load, name, by):
    value = "'uwsgi'" if name == "protocol" else True
    with pytest.raises(ConfigError, match=f"{by!r} .* {name}"):
        check(load(config=f"{name} = {value}\nsticky_by = '{by}'\n"))


@pytest.mark.parametrize("by", ["ip", "header", "session", "cookie"])
def test_reuse_port(load, by):
    with pytest.raises(ConfigError, match="reuse_port"):
        check(load("--reuse-port", f"--sticky-by={by}"))


@pytest.mark.parametrize("by", ["ip", "header", "session"])
def test_proxy_protocol(by):
    """The client that the PROXY header names is the key, where nothing else is."""
    args = [f"--sticky-by={by}", "--sticky-ignore-missing-header", "--proxy-protocol=auto"]
    with Server(*STICKY, "-w", "1", *args, "whoami:app") as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        client.sendall(b"PROXY TCP4 203.0.113.9 192.0.2.1 5 80\r\n")
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client
        with contextlib.closing(connection):
            connection.request("GET", "/")
            answer = json.loads(Response(connection.getresponse()).body)
        assert answer["key"] == "203.0.113.9"


def test_only_trusted_proxies_name_clients():
    headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7, 10.1.2.3"}
    args = ["--sticky-by=header", "--sticky-trusted-proxies=127.0.0.9,10.0.0.0/8"]
    with Server(*STICKY, "-w", "1", *args, "whoami:app") as server:
        assert server.who(headers=headers, source="127.0.0.9")["key"] == "203.0.113.7"
        assert server.who(headers=headers, source="127.0.0.8")["key"] == "127.0.0.8"


def test_check_config():
    with Server(*STICKY, "--sticky-proxy", "--check-config", "whoami:app") as server:
        assert server.process.wait(PATIENCE) == 0
        assert server.log == ""
    refuses_in_one_line("--check-config", "--sticky-by=magic")


def test_settings_that_were_not_loaded_with_gunicorns_own():
    cfg = Config()
    del cfg.settings["sticky_by"]
    with pytest.raises(ConfigError, match="start-up hook did not run"):
        check(cfg)


def test_what_is_none_may_be_said_to_be_none():
    cfg = Config()
    names = [name for name, setting in cfg.settings.items() if name.startswith("sticky_") and setting.get() is None]
    assert "sticky_cookie" in names
    for name in names:
        cfg.set(name, None)
        assert cfg.settings[name].get() is None


# --- more workers than there can be ---


def test_too_many_workers():
    line = refuses_in_one_line("--workers=1025")
    assert "workers = 1025" in line
    assert "1024" in line


@pytest.mark.parametrize(("by", "limit", "most"), [("ip", 60, 5), ("session", 70, 3)])
def test_more_workers_than_files_can_be_open(by, limit, most):
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', str(BIN / "gunicorn")]
    with Server(*STICKY, f"--sticky-by={by}", "-w", str(most), "whoami:app", command=limited) as server:
        server.wait_for_log(r"Slot \d+: ready", most)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"Slot \d+: ready", 2 * most)
        assert server.get().status == 200
    with Server(*STICKY, f"--sticky-by={by}", "-w", str(most + 1), "whoami:app", command=limited) as server:
        assert server.process.wait(PATIENCE) == 1
        assert f"workers = {most + 1}" in server.log
        assert "ulimit -n" in server.log
        assert "Listening" not in server.log


# --- after a reload ---


def test_reload_to_another_worker_class_stays_sticky():
    config = "worker_class = '{}'\nworkers = 1\n"
    with Server("whoami:app", config=config.format(STICKY[1])) as server:
        before = server.who(source="127.0.0.9")
        server.configure(config.format("sync"))
        server.send_signal(signal.SIGHUP)
        line = server.wait_for_log(r".*\[ERROR\].*").group()
        assert "GeventStickyWorker" in line
        assert "sync" in line
        wait_for(lambda: server.who()["pid"] != before["pid"], "the new worker")
        after = server.who(source="127.0.0.9")
        assert (after["slot"], after["key"]) == (0, "127.0.0.9")
        assert server.stop() == 0


def test_reload_to_a_contradiction_stops_in_order():
    config = f"worker_class = '{STICKY[1]}'\nworkers = 1\nsticky_by = 'ip'\n"
    with Server("whoami:app", config=config) as server:
        server.who()
        server.configure(config + "sticky_proxy = True\n")
        server.send_signal(signal.SIGHUP)
        assert server.process.wait(PATIENCE) == 1
        assert "contradicts" in server.log
        assert "Traceback" not in server.log
        assert "Shutting down: Master" in server.log
        (worker,) = server.booted("worker")
        assert f"Worker exiting (pid: {worker})" in server.log


def test_reload_cannot_make_a_server_sticky():
    config = "worker_class = '{}'\nworkers = 1\n"
    with Server("whoami:app", config=config.format("gevent")) as server:
        server.who()
        server.configure(config.format(STICKY[1]))
        server.send_signal(signal.SIGHUP)
        assert server.process.wait(PATIENCE) == 1
        assert "restart" in server.log
        assert "Traceback" not in server.log


# --- elsewhere ---


def test_one_worker_where_descriptors_cannot_be_passed():
    config = "import sys\nsys.platform = 'darwin'\nworkers = 3\n"
    with Server(*STICKY, "--sticky-proxy", "whoami:app", config=config) as server:
        assert server.get().status == 200
        assert "darwin" in server.wait_for_log(r".*\[WARNING\] Sticky sessions need Linux.*").group()
        assert len(server.children()) == 1
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("Booting worker", 2)
        wait_for(lambda: server.alive("worker") == server.booted("worker")[1:], "the old worker's end")
        assert server.get().status == 200
        assert len(server.children()) == 1
        assert server.stop() == 0
