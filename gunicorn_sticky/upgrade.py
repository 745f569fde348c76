"""What a master hands down, through exec, to the one that it starts on SIGUSR2: descriptors, numbered in a variable."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from . import __version__
from .board import Board
from .channel import Channel

#: The environment variable.
VARIABLE = "GUNICORN_STICKY_MASTER"


@dataclass(frozen=True)
class Legacy:
    """What the two masters share, so that one's clients are not lost on the other."""

    #: The hash's key, see slots.py.
    secret: bytes
    board: Board
    #: Where the new master's workers are numbered from.
    owner: int
    returns: Channel
    #: By session, what leads to the old master's workers.
    seat_channels: list[Channel]

    @contextlib.contextmanager
    def inheritable(self) -> Iterator[str]:
        """Let a program that is executed now inherit the descriptors, and return the variable's value for it."""
        ends = [channel.filenos() for channel in (self.returns, *self.seat_channels)]
        fds = [self.board.fd, *(fd for pair in ends for fd in pair)]
        for fd in fds:
            os.set_inheritable(fd, True)
        try:
            yield json.dumps([__version__, self.secret.hex(), self.board.fd, self.board.half, self.owner, ends])
        finally:
            for fd in fds:
                os.set_inheritable(fd, False)

    @classmethod
    def received(cls, text: str | None) -> Legacy | None:
        """Return what this master was given, if it was started by one of the same version."""
        if not text:
            return None
        version, secret, fd, half, owner, ends = json.loads(text)
        if version != __version__:
            return None
        for number in (fd, *(number for pair in ends for number in pair)):
            os.set_inheritable(number, False)
        returns, *seat_channels = [Channel.inherited(*pair) for pair in ends]
        board = Board(fd, 1 - half)
        board.clear()
        return cls(bytes.fromhex(secret), board, owner, returns, seat_channels)
