"""What a master hands down, through exec, to the one that it starts on SIGUSR2: descriptors, and what they are.

The environment of a process is shown in /proc for as long as that lives, and handed on to children. So it holds nothing
but numbers of descriptors: one of them is of a sealed memory file (memfd_create(2)) with all the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .._version import __version__
from ..broadcast.cluster import Cluster
from ..broadcast.join_socket import JoinSocket
from ..shared.board import MasterBoard
from ..shared.channel import Channel
from ..status.listener import StatusSocket

#: The environment variable: as JSON, the version, all descriptors, which one not of that version is to close, and among
#: them that of the memory file.
VARIABLE = "GUNICORN_STICKY_MASTER"
_NAME = "gunicorn-sticky-upgrade"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class Inheritance:
    """What the two masters share, so that one's clients are not lost on the other."""

    #: The hash's key, see routing/hashing.py.
    secret: bytes
    board: MasterBoard
    #: Where the new master's workers are numbered from.
    owner: int
    returns: Channel
    #: By session, what leads to the old master's workers, and to the new one's.
    seat_channels: list[Channel]
    new_seat_channels: list[Channel]
    cluster: Cluster
    cluster_socket: JoinSocket | None
    status_socket: StatusSocket | None

    @contextlib.contextmanager
    def inheritable(self) -> Iterator[str]:
        """Let a program that is executed now inherit the descriptors, and return the variable's value for it."""
        ends = [[c.filenos() for c in channels] for channels in (self.seat_channels, self.new_seat_channels)]
        returns = self.returns.filenos()
        fds = [self.board.fd, *self.cluster.fds(), *returns, *(fd for pairs in ends for pair in pairs for fd in pair)]
        entrance = None
        if self.cluster_socket:
            entrance = self.cluster_socket.path, self.cluster_socket.fileno()
            fds.append(entrance[1])
        status = None
        if self.status_socket:
            status = self.status_socket.address, self.status_socket.fileno()
            fds.append(status[1])
        board = self.board.fd, self.board.half
        inherited = [fds, self.secret.hex(), board, self.owner, returns, ends, self.cluster.fds(), entrance, status]
        memory = _sealed(json.dumps(inherited).encode())
        fds.append(memory)
        try:
            for fd in fds:
                os.set_inheritable(fd, True)
            yield json.dumps([__version__, fds, memory])
        finally:
            os.close(memory)
            for fd in fds[:-1]:
                os.set_inheritable(fd, False)

    @classmethod
    def received(cls, text: str | None) -> Inheritance | None:
        """Return what this master was given, if it was started by one of the same version."""
        if not text:
            return None
        version, fds, *rest = json.loads(text)
        if version != __version__:
            for fd in fds:
                os.close(fd)
            return None
        (memory,) = rest
        with open(memory, "rb") as file:
            fds, secret, (board_fd, half), owner, returns, ends, (rings, doorbell), entrance, status = json.load(file)
        for fd in fds:
            os.set_inheritable(fd, False)
        seat_channels, new_seat_channels = [[Channel.inherited(*pair) for pair in pairs] for pairs in ends]
        return cls(
            secret=bytes.fromhex(secret),
            board=MasterBoard(board_fd, 1 - half),
            owner=owner,
            returns=Channel.inherited(*returns),
            seat_channels=seat_channels,
            new_seat_channels=new_seat_channels,
            cluster=Cluster((rings, doorbell)),
            cluster_socket=JoinSocket(*entrance) if entrance else None,
            status_socket=StatusSocket(*status) if status else None,
        )


def _sealed(content: bytes) -> int:
    """Return the descriptor of a memory file that nobody can change any more."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
