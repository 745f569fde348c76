"""TLS and HTTP/2 in Gunicorn: by address, and a connection stays where it began."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from support.harness import PATIENCE, STICKY, Server, addresses, descriptors, wait_for
from support.kinds import KINDS, Kind, each_kind

pytestmark = pytest.mark.features

CLIENTS = addresses(6)


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and certificates of it for the server and for a client."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *key, "-subj", "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client", "other"):
        openssl(folder, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def options(tls: Path) -> tuple[str, ...]:
    # A client may take its time for the handshake; until its request comes, its connection is idle.
    return ("--certfile", str(tls / "server.pem"), "--keyfile", str(tls / "server.key"), "--keep-alive", "30")


def curl(tls: Path, *args: str, sources: Sequence[str] = CLIENTS[:1]) -> subprocess.CompletedProcess[str]:
    """Let one curl, as each takes its time to start, send the same from each address, over a connection of its own."""
    once = ("--silent", "--show-error", "--fail-early", "--cacert", str(tls / "ca.pem"), *args)
    command = [word for source in sources for word in ("--next", "--interface", source, *once)]
    return subprocess.run(["curl", *command[1:]], capture_output=True, text=True, timeout=PATIENCE)


def whos(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return what tests/apps/whoami.py has answered: one object after the other."""
    assert done.returncode == 0, done.stderr
    decoder, found, text = json.JSONDecoder(), [], done.stdout
    while text:
        who, end = decoder.raw_decode(text)
        found.append(who)
        text = text[end:]
    return found


def slots(tls: Path, port: int, *args: str) -> dict[str, int]:
    """Let each client send a request, one after the other, over a connection of its own."""
    found = {}
    for client, who in zip(CLIENTS, whos(curl(tls, *args, f"https://127.0.0.1:{port}/", sources=CLIENTS)), strict=True):
        assert (who["key"], who["REMOTE_ADDR"], who["wsgi.url_scheme"]) == (client, client, "https")
        found[client] = who["slot"]
    return found


@each_kind()
def test_clients_are_spread_and_stay_with_their_worker(tls: Path, kind: Kind):
    with Server(*kind.args, "-w", "4", *options(tls), kind.app("whoami")) as server:
        before = slots(tls, server.port)
        assert len(set(before.values())) > 1
        assert slots(tls, server.port) == before


def test_handshake_at_once(tls: Path):
    with Server(*STICKY, "-w", "2", *options(tls), "--do-handshake-on-connect", "whoami:app") as server:
        before = slots(tls, server.port)
        assert slots(tls, server.port) == before


def test_ciphers_are_those_that_were_asked_for(tls: Path):
    cipher = "ECDHE-ECDSA-AES256-GCM-SHA384"
    with Server(*STICKY, "-w", "2", *options(tls), "--ciphers", cipher, "whoami:app") as server:
        context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client,
            context.wrap_socket(client, server_hostname="localhost") as wrapped,
        ):
            used = wrapped.cipher()
            assert used is not None
            assert used[0] == cipher


def test_certificates_of_clients(tls: Path):
    asked = ("--ca-certs", str(tls / "ca.pem"), "--cert-reqs", "2")
    with Server(*STICKY, "-w", "2", *options(tls), *asked, "whoami:app") as server:
        url = f"https://127.0.0.1:{server.port}/"
        assert curl(tls, url).returncode != 0
        mine = ("--cert", str(tls / "client.pem"), "--key", str(tls / "client.key"))
        assert slots(tls, server.port, *mine) == slots(tls, server.port, *mine)


def test_the_ssl_context_hook(tls: Path):
    config = f"""
def ssl_context(conf, default_ssl_context_factory):
    context = default_ssl_context_factory()
    context.load_cert_chain({str(tls / "other.pem")!r}, {str(tls / "other.key")!r})
    return context
"""
    with Server(*STICKY, "-w", "2", *options(tls), "whoami:app", config=config) as server:
        assert "CN=other" in subject(tls, server.port)


def subject(tls: Path, port: int) -> str:
    done = curl(tls, "--verbose", f"https://127.0.0.1:{port}/")
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stderr.splitlines() if "subject:" in line)


def test_a_reload_takes_a_new_certificate(tls: Path):
    config = "certfile = '{0}/{1}.pem'\nkeyfile = '{0}/{1}.key'\nworkers = 2\nkeepalive = 30\n"
    with Server(*STICKY, "whoami:app", config=config.format(tls, "server")) as server:
        before = slots(tls, server.port)
        assert "CN=server" in subject(tls, server.port)
        server.configure(config.format(tls, "other"))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: "CN=other" in subject(tls, server.port), "the new certificate")
        assert slots(tls, server.port) == before


def test_a_certificate_that_is_not_there(tls: Path):
    with Server(*STICKY, "-w", "2", "--certfile", str(tls / "none.pem"), "whoami:app") as server:
        assert server.process.wait(PATIENCE) == 1
        assert "none.pem" in server.log
        assert "Booting" not in server.log


@each_kind()
def test_what_does_not_speak_tls_does_no_harm(tls: Path, kind: Kind):
    with Server(*kind.args, "-w", "2", *options(tls), kind.app("whoami")) as server:
        before, workers = slots(tls, server.port), server.alive("worker")
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in client.recv(100)
        assert slots(tls, server.port) == before
        assert server.alive("worker") == workers


# --- HTTP/2 ---


H2 = ("--http-protocols", "h2,h1")
HTTP2 = [kind for kind in KINDS if kind.http2]


def url(port: int, path: str = "/", scheme: str = "https") -> str:
    return f"{scheme}://127.0.0.1:{port}{path}"


@each_kind(HTTP2)
def test_http2(tls: Path, kind: Kind):
    with Server(*kind.args, "-w", "4", *options(tls), *H2, kind.app("whoami")) as server:
        before = slots(tls, server.port, "--http2")
        assert len(set(before.values())) > 1
        # The same worker serves a client that speaks HTTP/1.1.
        assert slots(tls, server.port, "--http1.1") == before
        version = curl(tls, "--http2", "--write-out", "%{http_version}", "--output", "/dev/null", url(server.port))
        assert version.stdout == "2"


@each_kind(HTTP2)
def test_streams_of_one_http2_connection(tls: Path, kind: Kind):
    """They are one client's, and one worker serves them all; their bodies are what was sent."""
    with Server(*kind.args, "-w", "4", *options(tls), *H2, kind.app("whoami")) as server:
        urls = [url(server.port, f"/{number}") for number in range(20)]
        found = whos(curl(tls, "--http2", "--parallel", "--data-binary", "x" * 100_000, *urls))
        assert {who["PATH_INFO"] for who in found} == {f"/{number}" for number in range(20)}
        assert {who["size"] for who in found} == {100_000}
        assert len({who["pid"] for who in found}) == 1


@each_kind(HTTP2)
def test_http2_while_workers_are_replaced(tls: Path, kind: Kind):
    with Server(*kind.args, "-w", "2", *options(tls), *H2, "--max-requests", "2", kind.app("whoami")) as server:
        before = slots(tls, server.port, "--http2")
        server.wait_for_log("Autorestarting")
        assert slots(tls, server.port, "--http2") == before
        wait_for(lambda: len(server.booted("worker")) > 2, "the successor")
        assert slots(tls, server.port, "--http2") == before


@contextlib.contextmanager
def slow_at_first(port: int, goes_on: threading.Event) -> Iterator[int]:
    """Yield the port of a relay that passes on a client's first byte, and the rest once it may."""

    def relay(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port), PATIENCE) as server, contextlib.suppress(OSError):
            server.sendall(client.recv(1))
            goes_on.wait(PATIENCE)
            other = {client: server, server: client}
            while True:
                ready = select.select(list(other), [], [], PATIENCE)[0]
                if not ready:
                    return
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    other[end].sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=relay, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def serve_what_begins_late(tls: Path, kind: Kind, *args: str) -> None:
    goes_on = threading.Event()
    every = (*options(tls), *args, "--graceful-timeout", "60", kind.app("whoami"))
    with Server(*kind.args, "-w", "1", *every) as server, slow_at_first(server.port, goes_on) as port:
        server.wait_for_log("Slot 0: ready")
        (old,) = server.alive("worker")
        before = set(descriptors(old))
        with ThreadPoolExecutor() as pool:
            try:
                version = "--http2" if args else "--http1.1"
                answer = pool.submit(curl, tls, version, f"https://127.0.0.1:{port}/")
                wait_for(lambda: any("socket:" in name for name in set(descriptors(old)) - before), "the connection")
                os.kill(old, signal.SIGTERM)
                server.wait_for_log("Slot 0: ready", count=2)  # the successor, when the old one drains
            finally:
                goes_on.set()
            (who,) = whos(answer.result())
        assert who["pid"] == old
        wait_for(lambda: old not in server.alive("worker"), "its end")


@each_kind()
def test_a_handshake_while_its_worker_drains(tls: Path, kind: Kind):
    serve_what_begins_late(tls, kind)


@each_kind(HTTP2)
def test_http2_that_begins_while_its_worker_drains(tls: Path, kind: Kind):
    serve_what_begins_late(tls, kind, *H2)


# Older versions of Gunicorn know HTTP/2 with TLS only.
if "http2_cleartext" in Config().settings:

    @pytest.mark.parametrize(
        ("kind", "allowed", "how"),
        [
            (KINDS[0], "prior-knowledge", "--http2-prior-knowledge"),
            (KINDS[0], "upgrade", "--http2"),
            *((kind, "both", "--http2") for kind in HTTP2),
        ],
        ids=str,
    )
    def test_http2_without_tls(tls: Path, kind: Kind, allowed: str, how: str):
        args = ("--http2-cleartext", allowed, "--http-protocols", "h2,h1", "--forwarded-allow-ips", "*")
        with Server(*kind.args, "-w", "4", *args, kind.app("whoami")) as server:
            found: dict[str, int] = {}
            target = (how, "--write-out", "%{stderr}%{http_version}", url(server.port, scheme="http"))
            for _ in range(2):
                answers = curl(tls, *target, sources=CLIENTS)
                assert answers.stderr == "2" * len(CLIENTS)
                for client, who in zip(CLIENTS, whos(answers), strict=True):
                    assert who["key"] == client
                    assert found.setdefault(client, who["slot"]) == who["slot"]
            assert len(set(found.values())) > 1
