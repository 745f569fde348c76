"""The asgi kind: Gunicorn's own ASGI worker, which takes its connections from a channel."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from gunicorn import __version__, version_info

if version_info < (27, 0, 1):
    raise RuntimeError(f"ASGIStickyWorker needs Gunicorn 27.0.1 or newer, and this is {__version__}")

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.http2.negotiation import prior_knowledge_allowed
from gunicorn.workers.gasgi import ASGIWorker

from .asyncio_idle import LoopWithIdleTimers
from .asyncio_protocol import ANSWERING, LEAVING, RECEIVING, THROUGH, StickyProtocol
from .asyncio_worker import AsyncioStickyWorker
from .served import Served


class _WithoutProxy:
    """A configuration without PROXY headers: one may only open a connection, and this has been opened elsewhere."""

    proxy_protocol = "off"

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


class _Lasting:
    """A worker as protocols behind the gate see it: one that goes on.

    Gunicorn's protocol looks at the end of a response whether its worker does, and if not closes a connection that was
    to stay open. But its client may have sent the next request already, and the gate can hand that over.

    Args:
        worker: the true one
    """

    alive = True
    #: `count_request` counts, when a request begins.
    nr = 0
    max_requests = sys.maxsize

    def __init__(self, worker: ASGIStickyWorker) -> None:
        self._worker = worker
        self.loop = LoopWithIdleTimers(worker.loop, worker.cfg.keepalive)
        # For each request.
        self.state = worker.state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    @property
    def nr_conns(self) -> int:
        """The worker's connections."""
        return int(self._worker.nr_conns)

    @nr_conns.setter
    def nr_conns(self, value: int) -> None:
        self._worker.nr_conns = value


def _for(worker: ASGIStickyWorker, hook: Any) -> Any:
    """Return a hook that is called with a worker itself."""
    return hook and (lambda _worker, *args: hook(worker, *args))


class _Protocol(StickyProtocol, ASGIProtocol):  # type: ignore[misc]
    """Gunicorn's protocol with the gate before it."""

    cfg: Any
    worker: Any
    _pre_request: Any
    _post_request: Any
    _sticky_worker: ASGIStickyWorker
    _request_ready: Any

    def __init__(self, worker: ASGIStickyWorker, served: Served, /) -> None:
        super().__init__(worker, served, worker=worker)
        self.app = worker.application(served)
        if self._stage is not THROUGH:
            self.worker = worker.lasting
            self._pre_request, self._post_request = _for(worker, self._pre_request), _for(worker, self._post_request)

    def connection_made(self, transport: Any) -> None:
        """Begin (`asyncio.BaseProtocol.connection_made`)."""
        if self.cfg.protocol == "uwsgi" or prior_knowledge_allowed(self.cfg, self._served.info.address):
            self._pass()
        super().connection_made(transport)

    def _pass(self) -> None:
        """Let what follows pass the gate."""
        self._stage, self.worker = THROUGH, self._sticky_worker

    async def _handle_http2_connection(self, *args: Any, **kwargs: Any) -> None:
        # It would refuse the first request, too, if the worker drains by now.
        self.worker = self._sticky_worker.lasting
        await super()._handle_http2_connection(*args, **kwargs)

    def _start_http2_stream(self, *args: Any) -> None:
        self.worker = self._sticky_worker
        super()._start_http2_stream(*args)

    def _setup_callback_parser(self) -> None:
        cfg = self.cfg
        if self._served.info.unread:
            self.cfg = _WithoutProxy(cfg)
        super()._setup_callback_parser()
        self.cfg = cfg

    _parse = ASGIProtocol.data_received

    def _has_begun(self) -> bool:
        return self._current_request is not None

    def _body_length(self) -> int | None:
        request = self._current_request
        return None if request.chunked else request.content_length

    def _has_more(self) -> bool:
        return bool(self._callback_parser.remaining())

    def _stop_idle_timer(self) -> None:
        self._cancel_keepalive_timer()

    def _on_headers_complete(self) -> Any:
        result = ASGIProtocol._on_headers_complete(self)
        if self._proxy_protocol != "off" and self._served.proxy is None:
            self._served.proxy = getattr(self._callback_parser, "proxy_protocol_info", None)
        request = self._current_request
        if self._h2c_upgrade_settings is not None or (request.may_upgrade() and self._is_websocket_upgrade(request)):
            self._pass()
        elif self._stage is not THROUGH and self._sticky_worker.count_request():
            self._keepalive = 0  # as the worker drains already, the response says that it closes
        return result

    def _on_message_complete(self) -> None:
        ASGIProtocol._on_message_complete(self)
        if self._stage is RECEIVING:
            self._stage = ANSWERING

    def _start_http1(self, buffered: bytes = b"") -> None:
        super()._start_http1(buffered)
        ready = _RequestReady(self)
        if self._request_ready.is_set():
            ready.set()
        self._request_ready = ready

    def _arm_keepalive_timer(self) -> None:
        if self._head is None and self._stage is not LEAVING:  # else another timer is set
            ASGIProtocol._arm_keepalive_timer(self)

    def _effective_peername(self, peername: Any) -> Any:
        return self._served.source or super()._effective_peername(peername)

    def _let_go(self) -> None:
        # What still runs of the application goes on, see `ASGIProtocol.connection_lost`.
        self._closed, self._task = True, None
        super()._let_go()
        self._request_ready.set()


class _RequestReady(asyncio.Event):
    """What tells Gunicorn's protocol that it has a request; cleared when it is answered, and the parser is reset."""

    def __init__(self, protocol: _Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def clear(self) -> None:
        """Expect the next request, which may be here already."""
        asyncio.Event.clear(self)
        if not self._protocol._closed:
            self._protocol.response_is_complete()


class _Listener:
    """What Gunicorn's worker makes a server for."""

    sock = None

    def __str__(self) -> str:
        return "inbox"

    def close(self) -> None:
        """Do nothing."""


class _Server:
    """What Gunicorn's worker has in the place of `asyncio.Server`."""

    def __init__(self, worker: ASGIStickyWorker) -> None:
        self._worker = worker
        #: What drains.
        self._task: Any = None

    def close(self) -> None:
        """Begin to drain, and count as a connection meanwhile, so that the worker waits for that."""
        self._worker.nr_conns += 1
        self._task = self._worker.loop.create_task(self._worker.wait())

    async def wait_closed(self) -> None:
        """Do nothing: the worker waits for its connections."""


class ASGIStickyWorker(AsyncioStickyWorker, ASGIWorker):  # type: ignore[misc]
    """A worker class for ``-k``: Gunicorn's ASGI worker with sticky sessions.

    Raises:
        gunicorn.errors.HaltServer: made by an arbiter that is not ours
    """

    async def _serve(self) -> None:
        #: This worker, as protocols see it.
        self.lasting = _Lasting(self)
        ASGIProtocol._check_h1c_protocol_available()  # keeps what it finds in the class that it is called on
        if self._seat:
            self.sockets = [_Listener()]
            self.loop.create_server = self._create_server
        await super()._serve()

    async def _create_server(self, _factory: Any, ssl: Any = None, **_kwargs: Any) -> _Server:
        """Do in the place of `asyncio.loop.create_server`."""
        self._application, self._ssl = self.asgi, ssl
        self._open()
        return _Server(self)

    async def wait(self) -> None:
        """Drain, and count as a connection no more."""
        await self.drain(lambda: self._quick_shutdown)
        self.nr_conns -= 1

    def notify(self) -> None:
        """Show that this worker is alive, and end at once if its master is not."""
        super().notify()
        self._quick_shutdown |= self.is_orphan()

    def _cleanup(self) -> None:
        # Gunicorn's tasks get a second to end. A WebSocket would have five, to wait for a goodbye that nobody reads any
        # more, and so would all who wait for this worker's end.
        self._quick_shutdown = True
        super()._cleanup()

    def _new_protocol(self, served: Served) -> Any:
        return _Protocol(self, served)

    def handle_exit_signal(self) -> None:
        """Drain on SIGTERM (`gunicorn.workers.gasgi.ASGIWorker.handle_exit_signal`)."""
        self.handle_exit(signal.SIGTERM, None)

    def handle_quit_signal(self) -> None:
        """End at once on SIGQUIT and SIGINT (`gunicorn.workers.gasgi.ASGIWorker.handle_quit_signal`)."""
        self._is_told = True
        super().handle_quit_signal()
