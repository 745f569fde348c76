"""The status by HTTP, from a process of its own: it answers also when workers, dispatcher and arbiter do not.

Only that process imports this module, after it has been forked: gevent is not for workers of other kinds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from ..shared.limited_log import LimitedLog
from .listener import StatusSocket
from .page import PAGE
from .snapshot import DOWN, Server

if TYPE_CHECKING:
    from .prometheus import StatusCollector

#: Seconds that a request may take, from its first byte, or the end of the last one, to the end of the answer.
DEADLINE = 10.0
#: Connections at a time.
MOST = 100
#: Seconds between two looks at the parent process and two heartbeats.
TICK = 1.0
#: Seconds for answers to be finished, once told to end.
LAST_CALL = 1.0

#: The page is one file; nothing that gets into it may load or send anything elsewhere.
_POLICY = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?")
_NOT_OURS = b"This server is not known by that name: use its address, or give sticky_status the name, as HOST:PORT.\n"
_NO_METRICS = 'Metrics for Prometheus need its client library: pip install "gunicorn-sticky[prometheus]"'


def run(listener: StatusSocket, server: Server, parent: int, log: Any, heartbeat: Callable[[], None]) -> None:
    """Be the process that answers (see arbiter/children.py), until SIGTERM or the end of its parent.

    Args:
        listener: where it is asked
        server: whose status it tells
        parent: the arbiter's process
        log: Gunicorn's logger
        heartbeat: called once in `TICK`
    """
    gevent.reinit()  # an application that is preloaded may have used gevent
    names = listener.address.rpartition(":")[0], socket.gethostname()
    http = WSGIServer(
        listener.socket,
        _Application(server, log, names),
        log=None,
        error_log=None,
        spawn=Pool(MOST),
        handler_class=_Handler,
    )
    http.start()  # which asks for this host's name, and waits: what is told to stop meanwhile could not start
    gevent.signal_handler(signal.SIGTERM, http.stop, LAST_CALL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    host, port = listener.socket.getsockname()[:2]
    log.info("Status at: http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if not ip_address(host.partition("%")[0]).is_loopback:
        log.warning("Whoever can reach %s sees the status: there is no password (setting: sticky_status)", host)
    gevent.spawn(_live, http, parent, heartbeat)
    http.serve_forever()


def is_addressed(host: str, names: Iterable[str]) -> bool:
    """Tell whether a request's field Host names this server.

    A page in an operator's browser can have its own name lead to our address, and then read our answers (DNS
    rebinding). So only addresses count, names without a dot, which nobody outside can have, and `names`.
    """
    found = _HOST.fullmatch(host)
    if not found:
        return False
    name = found[1].strip("[]").removesuffix(".").lower()
    with contextlib.suppress(ValueError):
        return bool(ip_address(name))
    return "." not in name or name in (known.lower() for known in names)


def _live(http: WSGIServer, parent: int, heartbeat: Callable[[], None]) -> None:
    while os.getppid() == parent:
        heartbeat()
        gevent.sleep(TICK)
    http.stop(0)


class _Handler(WSGIHandler):  # type: ignore[misc]
    def handle_one_request(self) -> Any:
        """Serve a request of a connection, for as long as that may take (`gevent.pywsgi.WSGIHandler`)."""
        with gevent.Timeout(DEADLINE, False):
            return super().handle_one_request()
        return None  # which closes the connection

    def read_request(self, raw_requestline: str) -> bool:
        """Parse a head, and return False if it is none: a 400, about which there is nothing to say in the log."""
        with contextlib.suppress(Exception):
            return bool(super().read_request(raw_requestline))
        return False


class _Application:
    """What answers.

    Args:
        server: whose status it tells
        log: Gunicorn's logger
        names: what it is called, beside its addresses
    """

    def __init__(self, server: Server, log: Any, names: Sequence[str]) -> None:
        self._server = server
        self._log = log
        self._names = names
        self._limited = LimitedLog(log)
        self._collector: StatusCollector | None = None
        try:
            # Not by the arbiter: the library looks at the environment when it is loaded, and the application may set
            # PROMETHEUS_MULTIPROC_DIR.
            from .prometheus import StatusCollector

            self._collector = StatusCollector(server)
        except ImportError:
            log.info(_NO_METRICS)
        self._answers = {"/": self._page, "/metrics": self._metrics, "/status": self._status, "/healthz": self._health}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = self._answers.get(environ["PATH_INFO"], self._missing)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = self._wrong
        if not is_addressed(environ.get("HTTP_HOST", ""), self._names):
            answer = self._misdirected
        try:
            status, kind, body = answer(environ)
        except Exception:
            self._log.exception("Exception in the status server")
            status, kind, body = "500 Internal Server Error", "text/plain", b"The log tells more.\n"
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
        ]
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _page(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        return "200 OK", "text/html; charset=utf-8", PAGE

    def _metrics(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        if self._collector is None:
            return "501 Not Implemented", "text/plain", f"{_NO_METRICS}\n".encode()
        return "200 OK", *self._collector.encoded(environ.get("HTTP_ACCEPT", ""))

    def _status(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        return "200 OK", "application/json", json.dumps(self._server.status()).encode()

    def _health(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        state = self._server.status()["state"]
        return "503 Service Unavailable" if state == DOWN else "200 OK", "text/plain", f"{state}\n".encode()

    def _misdirected(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        self._limited.warn("sticky_status", "Refused to show the status as %.100r: 421", environ["HTTP_HOST"])
        return "421 Misdirected Request", "text/plain", _NOT_OURS

    def _missing(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        return "404 Not Found", "text/plain", b"There are /, /status, /metrics and /healthz.\n"

    def _wrong(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        return "405 Method Not Allowed", "text/plain", b"There is only GET.\n"
