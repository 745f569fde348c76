"""``gunicorn-sticky status``: shows how the servers of a user are."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import socket
import struct
import time
from collections.abc import Sequence

from .snapshot import DEGRADED, DOWN, OK, find

#: Exit codes, as monitoring plugins have them.
CODES = {OK: 0, DEGRADED: 1, DOWN: 2}
#: Seconds for a server's control socket to accept.
PATIENCE = 5.0
#: Seconds for it to come back: a master closes it around each fork, and after an upgrade the new one opens it anew.
ABSENCE = 2.0
#: Seconds between looks at one that is not there.
INTERVAL = 0.02
_CREDENTIALS = struct.Struct("3i")


def main(arguments: Sequence[str]) -> int:
    """Run the command line, and return its exit code: 0 if all is well, 1 if a server is degraded, 2 if one is down."""
    parser = argparse.ArgumentParser(
        prog="gunicorn-sticky status",
        description="Shows how the sticky Gunicorns of this user are, or of another one.",
        epilog="Exit code: 0 if all is well, 1 if a slot has no worker or a full one, 2 if no slot has a worker.",
    )
    parser.add_argument("--control", metavar="PATH", help="only the server with this control socket")
    # Not those of all users, by default: what others run must not decide about root's exit code.
    help_ = "the servers whose masters run as this user (for root)"
    parser.add_argument("--user", metavar="NAME", type=_user, default=os.geteuid(), help=help_)
    parser.add_argument("--json", action="store_true", help="all figures, as one JSON document")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    options = parser.parse_args(arguments)
    try:
        servers = list(find(_master(options.control)) if options.control else find(user=options.user))
    except OSError as error:
        parser.exit(CODES[DOWN], f"No server at {options.control}: {error.strerror or error}\n")
    if not servers:
        parser.exit(CODES[DOWN], "No Gunicorn of this user is running with GeventStickyWorker (root may use --user)\n")
    if options.json:
        found = [server.status() for server in servers]
        print(json.dumps(found, indent=2))
        return max(CODES[status["state"]] for status in found)
    try:
        from .terminal import show
    except ModuleNotFoundError:
        parser.exit(CODES[DOWN], 'The table needs Rich: pip install "gunicorn-sticky[status]", or use --json\n')
    return max(CODES[state] for state in show(servers, options.watch))


def _user(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError("there is no such user") from None


def _master(path: str) -> int:
    """Return who listens at a Unix socket, or does so within `ABSENCE`, see SO_PEERCRED in unix(7)."""
    deadline = time.monotonic() + ABSENCE
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        while True:
            try:
                client.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(INTERVAL)
        pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)
