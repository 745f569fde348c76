"""The client manager for python-socketio and Flask-SocketIO: workers hear each other without a broker."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from socketio import Manager, PubSubManager

from ..shared import current
from .cluster import Cluster
from .join_socket import Member

T = TypeVar("T", bound="Peers")


class Peers:
    """What the managers for threads, greenlets and asyncio have in common: whom they tell, and in what form.

    Args: see `ClusterManager`
    """

    name = "cluster"
    channel: str
    json: Any
    write_only: bool

    def __init__(
        self,
        path: str | None = None,
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
    ) -> None:
        if path and not write_only:
            raise ValueError("a path is for write_only=True: workers find each other without one")
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)  # type: ignore[call-arg]
        self._member = Member(path.removeprefix("unix:")) if path else None

    @property
    def host_id(self) -> str:
        """What tells this manager's messages from others: each process that was forked with it has one of its own."""
        if self._identity[0] != current.generation:
            self.host_id = uuid.uuid4().hex
        return self._identity[1]

    @host_id.setter
    def host_id(self, value: str) -> None:
        self._identity = current.generation, value

    @property
    def _peers(self) -> Cluster | Member | None:
        """Who hears what is published, or None if nobody does."""
        if self._member is not None:
            return self._member
        if current.cluster is not None:
            own: Cluster = current.cluster[0]
            return own
        if self.write_only:
            raise RuntimeError("outside of the workers write_only=True needs the path in sticky_cluster_socket")
        return None

    def _warn_of_nobody(self) -> None:
        logging.getLogger(__name__).warning(
            f"{type(self).__name__} is in no worker of gunicorn_sticky: only this process's clients hear what it emits"
        )

    def _prefix(self) -> bytes:
        return f"{self.channel}\0{self.host_id}\0".encode()

    def _encode(self, data: dict[str, Any]) -> bytes:
        return self._prefix() + bytes(self.json.dumps(data).encode())

    def _decoder(self) -> Callable[[bytes], str | None]:
        """Return what decodes messages of other managers of this channel, and of all others returns None."""
        own, channel = self._prefix(), f"{self.channel}\0".encode()

        def decode(message: bytes) -> str | None:
            if message.startswith(own) or not message.startswith(channel):
                return None
            return message[len(own) :].decode(errors="replace")  # json.loads() would look for the encoding first

        return decode

    def _tell(self, message: bytes) -> None:
        peers = self._peers
        assert peers is not None
        peers.tell(message)


def alone(default: type[Any]) -> Callable[[type[T]], type[T]]:
    """Return a decorator: where there is nobody to talk to, a manager does what python-socketio's default one does.

    What is awaited with asyncio is what either of them returns.
    """

    def decorate(manager: type[T]) -> type[T]:
        for name in ("emit", "can_disconnect", "disconnect", "enter_room", "leave_room", "close_room"):
            setattr(manager, name, _either(getattr(manager, name), getattr(default, name)))
        return manager

    return decorate


def _either(shared: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(shared)
    def method(self: Peers, *args: Any, **kwargs: Any) -> Any:
        return (default if self._peers is None else shared)(self, *args, **kwargs)

    return method


@alone(Manager)
class ClusterManager(Peers, PubSubManager):  # type: ignore[misc]
    """Lets the Socket.IO servers of all workers of a Gunicorn act as one, on one machine.

    It does what `socketio.RedisManager` does, without Redis. In a process that is no worker of ours it is like
    `socketio.Manager`, python-socketio's default.

    Args:
        path: of the socket that the setting ``sticky_cluster_socket`` names, for `write_only`
        channel: a name; only managers with the same one hear each other
        write_only: only emit, from another program of the same user
        logger: instead of that of the Socket.IO server
        json: instead of the module `json`, for `write_only`

    Raises:
        ValueError: `path` is given without `write_only`
    """

    _messages: Iterator[bytes] | None = None

    def initialize(self) -> None:
        """Listen; the Socket.IO server calls this before its first client connects."""
        if self._messages is not None:
            return
        if current.cluster is not None:
            cluster, messages, log = current.cluster
            self._messages = messages(cluster, log)
            super().initialize()
        else:
            Manager.initialize(self)
            self._warn_of_nobody()

    def _publish(self, data: dict[str, Any]) -> None:
        if self.server is not None:
            self.initialize()  # before a client has come: what is published may call for an answer
        self._tell(self._encode(data))

    def _listen(self) -> Iterator[str]:
        assert self._messages is not None
        decode = self._decoder()
        for message in self._messages:
            if (text := decode(message)) is not None:
                yield text
