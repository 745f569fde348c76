"""Ids of NiceGUI's clients, one for each page that has been opened, that carry their worker, see minting.py.

The page's Socket.IO connection sends it as the query parameter ``client_id``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any
from uuid import UUID

from ..shared.post_import import when_imported
from .minting import own_uuid


def own_ids() -> None:
    """Make NiceGUI mint ids of this worker in this process, imported already or later."""
    when_imported("nicegui.client", _patch)


def _patch(module: ModuleType) -> None:
    # Its constructor sets the id and at once uses it, so that nobody else could change it in time.
    def get(self: Any) -> str:
        return str(self._own_id)

    def set_own(self: Any, value: str) -> None:
        self._own_id = str(own_uuid(UUID(value)))

    module.Client.id = property(get, set_own)
