"""Our settings, as Gunicorn's own Setting classes: they show in --help and work on the command line, in
gunicorn.conf.py and in GUNICORN_CMD_ARGS. What follows from them is in configuration.py.

Every Gunicorn of the environment loads this, whatever its worker class is, so it imports nothing else of ours.
"""

from __future__ import annotations

import os
import re
from typing import Any

from gunicorn.config import (
    KNOWN_SETTINGS,
    Setting,
    Workers,
    validate_bool,
    validate_callable,
    validate_pos_int,
    validate_string,
    validate_string_to_addr_list,
    validate_string_to_list,
)

SECTION = "Sticky Sessions"

#: RFC 9110 section 5.6.2: what names of header fields and cookies are made of.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Omitted:
    """Marks a default, so that it can be told from the same value given by the user."""


class _OmittedInt(Omitted, int):
    pass


class _OmittedStr(Omitted, str):
    pass


def _validate_seconds(val: Any) -> int:
    val = validate_pos_int(val)
    if val == 0:
        raise ValueError("must be at least 1 second")
    return int(val)


def _validate_sticky_by(val: Any) -> Any:
    if isinstance(val, Omitted):
        return val
    val = validate_string(val)
    if val not in ("ip", "header", "session", "cookie"):
        raise ValueError(f"Invalid sticky_by: {val!r} (choose ip, header, session or cookie)")
    return val


def _validate_field_name(val: Any) -> str:
    val = validate_string(val)
    if not val or not _TOKEN.fullmatch(val):
        raise ValueError(f"Invalid sticky_header: {val!r} is not the name of an HTTP header")
    return str(val).lower()


def _validate_session_keys(val: Any) -> list[str]:
    names = val if isinstance(val, (list, tuple)) else validate_string_to_list(val)
    found = []
    for key in names:
        kind, _, name = str(key).strip().partition(":")
        if kind not in ("query", "header", "cookie") or not _TOKEN.fullmatch(name):
            raise ValueError(f"Invalid sticky_session_keys: {key!r} is not query:NAME, header:NAME or cookie:NAME")
        found.append(f"{kind}:{name}")
    if not found:
        raise ValueError("Invalid sticky_session_keys: at least one is needed")
    return found


def _validate_balance(val: Any) -> str:
    val = validate_string(val)
    if val not in ("least-connections", "round-robin", "hash"):
        raise ValueError(f"Invalid sticky_balance: {val!r} (choose least-connections, round-robin or hash)")
    return str(val)


def _validate_cookie(val: Any) -> str | None:
    if val is None:
        return None
    val = validate_string(val)
    if not _TOKEN.fullmatch(val):
        raise ValueError(f"Invalid sticky_cookie: {val!r} is not the name of a cookie")
    return str(val)


def _validate_samesite(val: Any) -> str:
    val = validate_string(val)
    if val is None or val.lower() not in ("lax", "strict", "none"):
        raise ValueError(f"Invalid sticky_cookie_samesite: {val!r} (choose 'lax', 'strict' or 'none')")
    return str(val.lower())


def _validate_event(val: Any) -> str:
    val = validate_string(val)
    if not val:
        raise ValueError("Invalid sticky_sync_event: a name is needed")
    return str(val)


def _validate_ipv6_prefix(val: Any) -> int:
    val = validate_pos_int(val)
    if not 1 <= val <= 128:
        raise ValueError(f"Invalid sticky_ipv6_prefix: {val} is not between 1 and 128")
    return int(val)


def _validate_path(val: Any) -> str | None:
    val = validate_string(val)
    return val.removeprefix("unix:") if val else None


def _validate_address(val: Any) -> str | None:
    val = validate_string(val)
    if not val:
        return None
    host, _, port = val.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (":" in host and not re.fullmatch(r"\[.*\]", host)):
        raise ValueError(f"Invalid sticky_status: {val!r} is not HOST:PORT or PORT")
    return f"{host or '127.0.0.1'}:{int(port)}"


class _Grouped:
    """Shows a setting under its section's title in --help."""

    name: str
    section = SECTION

    def add_option(self, parser: Any, *args: Any) -> None:
        try:
            group = next((g for g in parser._action_groups if g.title == self.section), None)
            parser = group or parser.add_argument_group(self.section)
        except AttributeError:
            pass  # not the parser of argparse that is known here: then among the others
        super().add_option(parser, *args)  # type: ignore[misc]


class StickyBy(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_by"
    cli = ("--sticky-by",)
    meta = "KEY"
    validator = _validate_sticky_by
    default = _OmittedStr("ip")
    desc = """\
        What decides which worker serves a request: ``ip``, ``header``,
        ``session`` or ``cookie``.

        * ``ip`` - the address of the peer. Nothing is read from the connection,
          so this also works with TLS.
        * ``header`` - the value of :ref:`sticky-header`, for servers behind a
          reverse proxy.
        * ``session`` - the worker that minted the request's session id, which is
          where :ref:`sticky-session-keys` says. Works everywhere, for
          applications with session ids: Socket.IO, MCP, SSE.
        * ``cookie`` - a cookie that the worker sets, see :ref:`sticky-cookie`.
        """


class StickyProxy(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_proxy"
    cli = ("--sticky-proxy",)
    action = "store_true"
    validator = validate_bool
    default = None
    desc = """\
        Serve behind a reverse proxy: the same as ``sticky_by = "header"``.
        """


class StickyHeader(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_header"
    cli = ("--sticky-header",)
    meta = "NAME"
    validator = _validate_field_name
    default = "x-forwarded-for"
    desc = """\
        The request header that carries the client's address, in any case.

        Only read with ``sticky_by = "header"``. Of a list, such as
        ``X-Forwarded-For`` or ``Forwarded`` (RFC 7239), the left-most address
        counts. Headers with a single value work too: ``X-Real-IP``,
        ``CF-Connecting-IP``, or anything else that names a client or a tenant.
        What names nobody is skipped: ``unknown``, ``-``, ``(null)``, and in
        ``Forwarded`` also obfuscated identifiers such as ``_hidden``.
        """


class StickyIgnoreMissingHeader(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_ignore_missing_header"
    cli = ("--sticky-ignore-missing-header",)
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Route requests without the header by the address of their peer.

        Without it they are answered ``400 Bad Request``. A header that names
        nobody, as :ref:`sticky-header` says, counts as none.
        """


class StickySync(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_sync"
    cli = ("--sticky-sync",)
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Hold each connection's first request until the application releases it.

        The application does so by calling ``connection.emit(EVENT)`` with the
        event of :ref:`sticky-sync-event`, on the connection that the
        :ref:`sticky-connection` hook was given.
        """


class StickySyncEvent(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_sync_event"
    cli = ("--sticky-sync-event",)
    meta = "NAME"
    validator = _validate_event
    default = "sticky-sessions:sync"
    desc = """\
        The event that releases a connection held by :ref:`sticky-sync`.
        """


class StickySyncTimeout(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_sync_timeout"
    cli = ("--sticky-sync-timeout",)
    meta = "SECONDS"
    validator = _validate_seconds
    default = 30
    desc = """\
        Seconds until a connection that nobody released is answered ``503``.

        Counts from the start of the :ref:`sticky-connection` hook, and only
        with :ref:`sticky-sync`.
        """


class StickyHeaderTimeout(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_header_timeout"
    cli = ("--sticky-header-timeout",)
    meta = "SECONDS"
    validator = _validate_seconds
    default = 10
    desc = """\
        Seconds for a connection to show its header, or be answered ``408``.

        Counts for whatever is read from a connection before it is dispatched:
        the header, the session id or the cookie, and the PROXY header.
        """


class StickyIPv6Prefix(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_ipv6_prefix"
    cli = ("--sticky-ipv6-prefix",)
    meta = "BITS"
    validator = _validate_ipv6_prefix
    default = 64
    desc = """\
        How many leading bits of an IPv6 address make up a client.

        A host changes the rest at will (RFC 8981). IPv4-mapped addresses and
        those of NAT64 (``64:ff9b::/96``) count as the IPv4 address in them.
        """


class StickySessionKeys(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_session_keys"
    cli = ("--sticky-session-keys",)
    meta = "KEYS"
    validator = _validate_session_keys
    default = ("query:sid", "query:session_id", "query:client_id", "header:mcp-session-id")
    desc = """\
        Where a request carries its session id: ``query:NAME``, ``header:NAME``
        or ``cookie:NAME``, several of them as a list or separated by commas.

        Only read with ``sticky_by = "session"``. Some frameworks mint ids that
        carry their worker without a change in the application, and the default
        is where those are: Engine.IO's (Socket.IO), MCP's over SSE, NiceGUI's,
        and MCP's over streamable HTTP. Applications get ids of their own from
        :func:`gunicorn_sticky.session_id`.
        """


class StickyBalance(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_balance"
    cli = ("--sticky-balance",)
    meta = "NAME"
    validator = _validate_balance
    default = "least-connections"
    desc = """\
        Which worker gets a new session: ``least-connections``, ``round-robin``
        or ``hash`` (of the client's address).

        Only with ``sticky_by = "session"`` or ``"cookie"``. A connection counts
        while a request on it is under way. Of requests without a session, and
        of new sessions, each worker gets its share one after the other.
        """


class StickyCookie(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_cookie"
    cli = ("--sticky-cookie",)
    meta = "NAME"
    validator = _validate_cookie
    default = None
    desc = """\
        The cookie's name, by default ``gunicorn_sticky_`` and six characters.

        With ``sticky_by = "cookie"`` it names a client's worker, and is set with
        the first response to a client that has none.

        The six characters are made from :ref:`proc-name` and :ref:`bind`. So
        servers on one host name do not overwrite each other's cookie: a browser
        sends it to all of them, whatever their port. The log tells the name at
        start.
        """


class StickyCookieSameSite(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_cookie_samesite"
    cli = ("--sticky-cookie-samesite",)
    meta = "VALUE"
    validator = _validate_samesite
    default = "lax"
    desc = """\
        The cookie's ``SameSite`` attribute: ``lax``, ``strict`` or ``none``.

        It says which requests from other sites carry the cookie: with ``lax``
        those that follow a link, with ``strict`` no request, with ``none`` all of
        them, also a POST from a payment or login service, and what an iframe or a
        script of another site asks for. A request without the cookie gets a new
        worker, and a new cookie in its response. ``none`` makes the cookie
        ``Secure``: browsers take it by HTTPS only.
        """


class StickyTrustedProxies(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_trusted_proxies"
    cli = ("--sticky-trusted-proxies",)
    meta = "ADDRESSES"
    validator = validate_string_to_addr_list
    default = "*"
    desc = """\
        Addresses and networks whose :ref:`sticky-header` counts, separated by
        commas; ``*`` for all.

        If set, the client is the right-most address in the header that is not
        one of them, and everybody else is routed by the peer's address. All are
        trusted by default because affinity is not authentication: the key only
        picks a worker, and never becomes ``REMOTE_ADDR``.
        """


class StickySlotHeader(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_slot_header"
    cli = ("--sticky-slot-header",)
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Tell in each response which slot has served it: ``X-Sticky-Slot: 2``.

        For debugging: clients see it. WebSocket handshakes do not have it, as
        the application answers them itself, on the socket, nor do errors that
        it has not seen.
        """


class StickyClusterSocket(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_cluster_socket"
    cli = ("--sticky-cluster-socket",)
    meta = "PATH"
    validator = _validate_path
    default = None
    desc = """\
        A Unix socket by which other programs emit to Socket.IO clients.

        They do so with ``gunicorn_sticky.ClusterManager(PATH, write_only=True)``,
        as the user that the workers run as (:ref:`user`). The workers themselves
        need no socket to hear each other.
        """


class StickyStatus(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_status"
    cli = ("--sticky-status",)
    meta = "ADDRESS"
    validator = _validate_address
    default = None
    desc = """\
        Where the status is shown by HTTP: ``HOST:PORT``, or only the port.

        Without a host it is ``127.0.0.1``. There is a page for people at ``/``,
        metrics for Prometheus at ``/metrics``, all figures as JSON at
        ``/status``, and the state at ``/healthz``. Nobody is asked for a
        password.
        """


class StickyConnection(_Grouped, Setting):  # type: ignore[misc]
    name = "sticky_connection"
    validator = validate_callable(2)
    type = callable

    def sticky_connection(worker: Any, connection: Any) -> None:
        pass

    default = staticmethod(sticky_connection)
    desc = """\
        Called in the connection's own greenlet or thread, before its first request.

        The callable needs to accept two instance variables for the Worker and
        the :class:`gunicorn_sticky.Connection`, which tells the ``address`` of
        the peer, the affinity ``key``, the ``slot`` and the ``listener``.
        """


_SETTINGS = [
    setting
    for setting in list(globals().values())
    if isinstance(setting, type) and issubclass(setting, _Grouped) and setting is not _Grouped
]
NAMES = tuple(setting.name for setting in _SETTINGS)


def given(cfg: Any) -> list[str]:
    """Return the names of our settings that `cfg` gives, as far as they can be told from the defaults."""
    ours = [cfg.settings[name] for name in NAMES if name in cfg.settings]

    def is_given(setting: Any) -> bool:
        value, default = setting.get(), type(setting)().get()
        return bool(value != default or isinstance(default, Omitted) != isinstance(value, Omitted))

    return [setting.name for setting in ours if is_given(setting)]


def _mark_default_of_workers() -> None:
    default, validate = _OmittedInt(Workers.default), Workers.validator

    def validate_given(val: Any) -> Any:
        return val if isinstance(val, Omitted) else validate(val)

    Workers.default, Workers.validator = default, staticmethod(validate_given)


# Each Gunicorn makes all of the settings when it starts. If a newer one cannot, that shows here, where it does no harm.
for _setting in _SETTINGS:
    _setting()
    if _setting not in KNOWN_SETTINGS:
        raise TypeError("settings do not register themselves")
if "WEB_CONCURRENCY" not in os.environ:
    _mark_default_of_workers()
