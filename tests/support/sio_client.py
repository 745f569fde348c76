"""A Socket.IO client that keeps what it hears, in the order in which it comes."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import engineio
import requests
import socketio
from requests.adapters import HTTPAdapter

from support.harness import PATIENCE, wait_for

# So many packets may wait for a client that polls while it does something else.
engineio.payload.Payload.max_decode_packets = 1_000_000


class From(HTTPAdapter):
    """Connects from a given address."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, source_address=(self.address, 0))


def disconnect(client: socketio.Client) -> None:
    """End a client, without waiting for a poll to end, and close its WebSocket, which it leaves open on an error."""
    with contextlib.suppress(Exception):  # the server may be gone
        client.eio.disconnect(abort=True)
    if client.eio.ws is not None:
        client.eio.ws.shutdown()


class Client:
    """A client of tests/apps/cluster_app.py.

    Args:
        port: the server's
        transport: "websocket" or "polling"; both, separated by a comma, to begin with one and go on with the other
        namespaces: what it connects to; what it emits itself is in "/"
        source: the address that it connects from
        headers: what it sends with each request
        patience: seconds to wait for a connection
    """

    def __init__(
        self,
        port: int,
        transport: str = "websocket",
        namespaces: Sequence[str] = ("/",),
        source: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.sid: str | None = None
        #: Event and arguments, before them the namespace unless it is "/".
        self.heard: list[tuple[Any, ...]] = []
        #: Called with each event and its arguments, if set; it must not wait for the server.
        self.listener: Callable[..., None] | None = None
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(headers or {})  # those given to connect() are not sent with later requests
        options: dict[str, Any] = {}
        if source is not None:
            self._session.mount("http://", From(source))
            if "websocket" in transport:  # websocket-client cannot be told where to connect from
                address = "127.0.0.1", port
                options["socket"] = socket.create_connection(address, PATIENCE, source_address=(source, 0))
        self._client = socketio.Client(
            http_session=self._session,
            websocket_extra_options=options,
            request_timeout=patience,
            reconnection=False,
            handle_sigint=False,
        )
        # Else it handles each message in a thread of its own, which mixes up their order.
        trigger = self._client.eio._trigger_event
        self._client.eio._trigger_event = lambda *args, run_async=False, **kwargs: trigger(*args, **kwargs)
        for namespace in namespaces:
            prefix = () if namespace == "/" else (namespace,)
            self._client.on("*", functools.partial(self._hear, *prefix), namespace=namespace)
        self._client.connect(
            f"http://127.0.0.1:{port}",
            headers=dict(headers or {}),
            transports=transport.split(","),
            namespaces=list(namespaces),
            wait_timeout=patience,
        )
        self.sid = self._client.get_sid()
        where = self.call("where")
        #: Of its worker.
        self.pid, self.slot = where["pid"], where["slot"]

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    def _hear(self, *event: Any) -> Any:
        self.heard.append(event)
        if self.listener is not None:
            self.listener(*event)
        return self.sid, *event[1:]  # for a server that wants an answer

    def emit(self, event: str, *args: Any, callback: Callable[..., None] | None = None) -> None:
        self._client.emit(event, args, callback=callback)

    def call(self, event: str, *args: Any) -> Any:
        """Emit an event to the application, and return its answer."""
        return self._client.call(event, args, timeout=PATIENCE)

    def do(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the Socket.IO server in this client's worker."""
        return self.call("do", method, list(args), options)

    def count(self, event: str) -> int:
        """Return how many times it has heard an event."""
        return sum(name == event for name, *_ in self.heard)

    def wait_for(self, event: str, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until it has heard an event so many times."""
        wait_for(lambda: self.count(event) >= count, f"{event!r} to be heard {count} times", timeout)

    def close(self) -> None:
        disconnect(self._client)
        self._session.close()
