"""A connection that a worker serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..routing.key import Key
    from ..shared.channel import ConnectionInfo


class Served:
    """What a worker knows of a connection.

    Args:
        info: what it came with
    """

    __slots__ = ("busy", "info", "key", "last_head", "proxy", "slots")

    def __init__(self, info: ConnectionInfo) -> None:
        self.info = info
        #: Whether a request is under way.
        self.busy = True
        #: The key of the request that is served now.
        self.key: Key = info.key
        #: Of how many slots this worker's is known to be the key's; 0 if of none.
        self.slots = 0
        #: The last head with that key, if it is short.
        self.last_head = b""
        #: What Gunicorn has parsed from the PROXY header.
        self.proxy: dict[str, Any] | None = info.proxy

    @property
    def source(self) -> tuple[str, int] | None:
        """The client's address and port, if the PROXY header has given them."""
        if self.proxy and self.proxy.get("client_addr"):
            return self.proxy["client_addr"], self.proxy["client_port"]
        return None
