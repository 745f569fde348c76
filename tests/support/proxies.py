"""nginx and HAProxy, with the configurations that the documentation shows."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .harness import PATIENCE, TESTS, wait_for

PAGES = TESTS.parent / "docs" / "proxies"


def configuration(page: str, number: int = 0) -> str:
    """Return a configuration that a page of the documentation shows."""
    text = (PAGES / f"{page}.md").read_text()
    blocks: list[str] = re.findall(rf"^```{page}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return blocks[number]


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, (old, text)
    return text.replace(old, new)


@contextlib.contextmanager
def running(folder: Path, command: list[str], port: int) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        wait_for(listens, f"{command[0]} to listen")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log.read_text())


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port: bound, but not listening, it is out of everyone's way but of those who ask for it."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, site: str) -> Iterator[int]:
    """Run nginx in front of the port `upstream`, and yield its own port."""
    with reserved_port() as port:
        site = changed(site, "listen 80;", f"listen 127.0.0.1:{port};")
        site = changed(site, "127.0.0.1:8000", f"127.0.0.1:{upstream}")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        (folder / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\n"
            f"events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n{paths}{site}}}\n"
        )
        # Debian has it where ordinary users do not look.
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        with running(folder, [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")], port):
            yield port


@contextlib.contextmanager
def haproxy(folder: Path, upstream: int, text: str) -> Iterator[int]:
    """Run HAProxy in front of the port `upstream`, and yield its own port."""
    with reserved_port() as port:
        text = changed(text, "bind :80\n", f"bind 127.0.0.1:{port}\n")
        text = changed(text, "127.0.0.1:8000", f"127.0.0.1:{upstream}")
        (folder / "haproxy.cfg").write_text(text)
        program = shutil.which("haproxy") or "/usr/sbin/haproxy"
        with running(folder, [program, "-db", "-f", str(folder / "haproxy.cfg")], port):
            yield port


NGINX = configuration("nginx")
NGINX_WITHOUT = changed(NGINX, "    keepalive 32;\n", "")
HAPROXY = configuration("haproxy")
HAPROXY_V2 = configuration("haproxy", 1)
HAPROXY_V1 = changed(HAPROXY_V2, "send-proxy-v2", "send-proxy")
