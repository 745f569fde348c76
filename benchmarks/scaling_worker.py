"""uvicorn's worker, without uvicorn's own heartbeats of WebSockets: as Engine.IO's, none is due within a run."""

from typing import Any, ClassVar

from gunicorn_sticky import UvicornStickyWorker


class QuietUvicornWorker(UvicornStickyWorker):
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**UvicornStickyWorker.CONFIG_KWARGS, "ws_ping_interval": None}
