"""What responses tell the client: our cookie, and the slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import configuration
from ..sessions import minting
from .seat import Seat
from .served import Served


def header_fields(cfg: Any, seat: Seat) -> Callable[[Served, str], Sequence[tuple[str, str]]] | None:
    """Return a function that gives our header fields for a response, given the connection and the URL's scheme.

    It is None if there are none.

    Args:
        cfg: Gunicorn's configuration
        seat: the worker's place
    """
    always = [("X-Sticky-Slot", str(seat.slot))] if cfg.sticky_slot_header else []
    if configuration.affinity(cfg).by != "cookie":
        return (lambda served, scheme: always) if always else None

    name, same_site = configuration.cookie_name(cfg), cfg.sticky_cookie_samesite

    def fields(served: Served, scheme: str) -> Sequence[tuple[str, str]]:
        if served.key == seat.owner:
            return always
        # RFC 6265; SameSite: draft-ietf-httpbis-rfc6265bis. Browsers ignore SameSite=None without Secure.
        secure = "; Secure" if same_site == "none" or scheme == "https" else ""
        attributes = f"Path=/; HttpOnly; SameSite={same_site.capitalize()}{secure}"
        return [*always, ("Set-Cookie", f"{name}={minting.session_id()}; {attributes}")]

    return fields
