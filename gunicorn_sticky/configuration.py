"""What the settings mean together: the affinity, names and numbers that follow from them, and what cannot work."""

from __future__ import annotations

import math
import os
import resource
from hashlib import blake2b
from typing import Any

from gunicorn.errors import ConfigError

from .routing.affinity import Affinity
from .settings import Omitted
from .shared.board import MAX_SLOTS, SEATS

#: Open files of the arbiter that are not for a slot: listeners, logs, the control socket.
SPARE_FILES = 32
UNIX_NEEDS_HEADER = "a Unix socket has no client address: use sticky_by = 'header', or bind a TCP address"


def cookie_name(cfg: Any) -> str:
    """Return the name of the cookie: what `cfg` says, or one that other servers of the same host name do not have.

    It is the same after a restart, or old cookies would add up in the browsers. Two servers on one machine differ in
    their addresses; containers often do not, but in what they run.
    """
    if cfg.sticky_cookie:
        return str(cfg.sticky_cookie)
    server = "\0".join([cfg.proc_name, *cfg.bind])
    return f"gunicorn_sticky_{blake2b(server.encode(errors='surrogateescape'), digest_size=3).hexdigest()}"


def affinity(cfg: Any) -> Affinity:
    """Return what Gunicorn's configuration `cfg` says about the affinity key."""
    by = "header" if cfg.sticky_proxy else str(cfg.sticky_by)
    return Affinity(
        by=by,
        header=cfg.sticky_header if by == "header" else None,
        ignore_missing=bool(cfg.sticky_ignore_missing_header),
        ipv6_prefix=cfg.sticky_ipv6_prefix,
        trusted=tuple(cfg.sticky_trusted_proxies),
        session_keys=(f"cookie:{cookie_name(cfg)}",) if by == "cookie" else tuple(cfg.sticky_session_keys),
        balance=cfg.sticky_balance,
        request_line=cfg.limit_request_line,
        proxies=tuple(cfg.proxy_allow_ips) if cfg.proxy_protocol not in (False, "off") else (),
    )


def check(cfg: Any) -> None:
    """Refuse what could only fail later.

    Raises:
        gunicorn.errors.ConfigError: with a message for the user
    """
    if "sticky_by" not in cfg.settings:
        raise ConfigError(
            "the settings of gunicorn_sticky were not loaded with Gunicorn's own, because its start-up hook did not "
            "run (GUNICORN_STICKY_HOOK=0, or .pth files are not processed): start with `gunicorn-sticky` or "
            "`python -m gunicorn_sticky`, or import gunicorn_sticky before gunicorn"
        )
    if cfg.sticky_proxy is not None and not isinstance(cfg.sticky_by, Omitted):
        said = "header" if cfg.sticky_proxy else "ip"
        if cfg.sticky_by != said:
            raise ConfigError(
                f"sticky_proxy = {cfg.sticky_proxy} contradicts sticky_by = {cfg.sticky_by!r}: remove one of them"
            )
    if cfg.reuse_port:
        raise ConfigError("reuse_port spreads connections in the kernel, which sticky sessions cannot undo: remove it")
    ours = affinity(cfg)
    if reason := too_many(cfg.workers, ours):
        raise ConfigError(reason)
    if ours.proxies and cfg.is_ssl:
        raise ConfigError("the PROXY header would be inside TLS, where it cannot be read: remove proxy_protocol")
    if ours.by == "ip":
        if any(isinstance(address, (str, bytes)) for address in cfg.address):
            raise ConfigError(UNIX_NEEDS_HEADER)
        return
    if cfg.is_ssl:
        raise ConfigError(
            f"sticky_by = {ours.by!r} cannot read the request's head inside TLS: use sticky_by = 'ip', or end TLS in "
            "the proxy and remove certfile and keyfile"
        )
    if getattr(cfg, "http2_cleartext", "off") != "off":
        raise ConfigError(f"sticky_by = {ours.by!r} cannot read compressed HTTP/2 heads: remove http2_cleartext")
    if getattr(cfg, "protocol", "http") != "http":
        raise ConfigError(f"sticky_by = {ours.by!r} reads HTTP: remove protocol = {cfg.protocol!r}")


def too_many(workers: int, ours: Affinity) -> str | None:
    """Return why the arbiter cannot have channels for so many workers, or None if it can."""
    if workers > MAX_SLOTS:
        return f"workers = {workers} is too many: at most {MAX_SLOTS}"
    # A channel has two ends; by session each seat has one, too. And each worker has a file for its heartbeat.
    needed = SPARE_FILES + workers * (2 + SEATS * (3 if ours.by_session else 1))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        return f"workers = {workers} needs {needed} open files, and the limit is {limit}: raise it (ulimit -n)"
    return None


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity mask, cut by the cgroup's quota (cgroups v2 cpu.max)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/proc/self/cgroup") as table:
            group = next(line[3:].strip() for line in table if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{group}/cpu.max") as limit:
            quota, period = limit.read().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, StopIteration, ValueError):
        pass  # no cgroups v2 here, or no quota ("max")
    return max(cpus, 1)
