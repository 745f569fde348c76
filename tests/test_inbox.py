"""The worker's inbox, at the end of its server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.harness import PATIENCE

#: Takes a connection, as the server does when its loop sees one, and closes the server in the same breath.
PROGRAM = """
import socket, types
import gevent
from gevent.pool import Pool
from gunicorn_sticky.shared.board import Board, {phase} as PHASE
from gunicorn_sticky.shared.channel import Channel, ConnectionInfo
from gunicorn_sticky.workers.drain import Intake
from gunicorn_sticky.workers.gevent_inbox import GeventInbox, InboxServer

ours, theirs = socket.socketpair()
channel, board = Channel(), Board()
board.phase = PHASE
assert channel.send(theirs.fileno(), ConnectionInfo("", "", "key")) is None
theirs.close()
seat = types.SimpleNamespace(board=board, is_active=lambda: True)
intake = Intake(seat, is_own=False, last_call=1.0, last_served=lambda: 0.0, is_orphan=lambda: False)
server = InboxServer(GeventInbox(channel), intake, handle=lambda client, info: client.sendall(b"served"), spawn=Pool(1))
server.start()
server.do_handle(*server.do_read())
server.close()
gevent.sleep(0)
print(ours.recv(100))
"""


@pytest.mark.parametrize("phase", ["RUNNING", "STOPPING", "STOPPED"])
def test_what_was_taken_at_the_last_moment_is_served(phase: str):
    command = [sys.executable, "-c", PROGRAM.replace("{phase}", phase)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("b'served'\n", "")
