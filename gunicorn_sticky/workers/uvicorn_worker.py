"""The uvicorn kind: the worker of the package uvicorn-worker, which takes its connections from a channel."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn
import uvicorn_worker
from gunicorn.arbiter import Arbiter
from gunicorn.errors import ConfigError
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from . import asgi
from .asyncio_idle import LoopWithIdleTimers
from .asyncio_worker import AsyncioStickyWorker
from .served import Served
from .uvicorn_protocols import http

if TYPE_CHECKING:
    from .seat import Seat


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


if _number(uvicorn.__version__) < (0, 23):  # a WebSocket by wsproto has no extensions in its scope, but None
    raise RuntimeError(f"UvicornStickyWorker needs uvicorn 0.23 or newer, and this is {uvicorn.__version__}")
if _number(uvicorn_worker.__version__) < (0, 4) and _number(uvicorn.__version__) >= (0, 36):
    raise RuntimeError(
        f"uvicorn {uvicorn.__version__} needs uvicorn-worker 0.4 or newer, and this is {uvicorn_worker.__version__}: "
        "pip install --upgrade uvicorn-worker"
    )


class _Server(Server):
    """uvicorn's server, without listeners, for as long as its worker lives."""

    def __init__(self, worker: UvicornStickyWorker) -> None:
        super().__init__(worker.config)
        self._worker = worker

    async def startup(self, sockets: Any = None) -> None:
        """Start the application, and take connections (`uvicorn.server.Server.startup`)."""
        await super().startup(sockets=[])
        if not self.should_exit:
            self._worker.open(self)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End in order on SIGTERM, and at once on SIGINT (`uvicorn.server.Server.handle_exit`)."""
        self._worker.handle_exit(sig, frame)
        self.should_exit = True
        self.force_exit |= sig != signal.SIGTERM

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to end; called ten times a second (`uvicorn.server.Server.on_tick`)."""
        if self._worker.is_orphan():
            self._worker.log.info("Parent changed, shutting down: %s", self._worker)
            self.force_exit = True
            return True
        return await super().on_tick(counter) or not self._worker.alive

    async def shutdown(self, sockets: Any = None) -> None:
        """Drain, and then end what is left (`uvicorn.server.Server.shutdown`)."""
        if not self.force_exit:
            await self._worker.drain(lambda: self.force_exit)
        if self.server_state.connections or self.server_state.tasks:
            self._worker.log.warning("Worker graceful timeout (pid:%s)", self._worker.pid)
        self.config.timeout_graceful_shutdown = 1
        await super().shutdown()


class UvicornStickyWorker(AsyncioStickyWorker, UvicornWorker):  # type: ignore[misc]
    """A worker class for ``-k``: uvicorn's with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    config: Any
    wsgi: Any
    pid: int

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        super().__init__(*args, seat=seat, **kwargs)
        self.worker_connections = self.cfg.worker_connections
        # The base counts requests, and a successor comes first.
        self.config.limit_max_requests = None
        self.config.timeout_notify = 0  # each second

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what uvicorn cannot do (`gunicorn.workers.gasgi.ASGIWorker.check_config`).

        Raises:
            gunicorn.errors.ConfigError: the configuration asks for that
        """
        for name, none in (("proxy_protocol", "off"), ("protocol", "http"), ("http2_cleartext", "off")):
            if getattr(cfg, name, None) not in (None, False, none):
                raise ConfigError(f"uvicorn has no {name}: remove it, or use ASGIStickyWorker")

    @staticmethod
    def refuser(cfg: Any) -> Callable[[bytes], bool]:
        """Return a function that tells of no request that it is refused: h11 and httptools have other limits."""
        return lambda data: False

    async def _serve(self) -> None:
        """Serve (`uvicorn_worker.UvicornWorker._serve`)."""
        self.config.app = self.wsgi
        self._server = _Server(self)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._server.handle_exit, signal.SIGQUIT, None)
        await self._server.serve()
        if not self._server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def open(self, server: Server) -> None:
        """Take connections from now on."""
        config = self.config
        self._application, self._ssl = config.loaded_app, config.ssl
        self._protocol_class = http(config.http_protocol_class)
        self._arguments = {
            "config": config,
            "server_state": server.server_state,
            "app_state": server.lifespan.state,
            "_loop": LoopWithIdleTimers(asyncio.get_running_loop(), config.timeout_keep_alive),
        }
        self._open()

    def application(self, served: Served) -> Any:
        """Return the ASGI application, as a connection's requests are to see it."""
        return asgi.with_affinity(self._application, served, self.slot, self._headers, self._count)

    def _count(self, served: Served) -> bool:
        self.load.requested(served)
        return self.count_request()

    def _new_protocol(self, served: Served) -> Any:
        return self._protocol_class(self, served, **self._arguments)
