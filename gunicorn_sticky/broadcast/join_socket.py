"""The socket by which other programs of the same user join a cluster: a worker sends them its descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from typing import Any

from .._version import __version__
from ..shared.unpatched import Socket
from .cluster import Cluster

#: Seconds that a program waits for a worker that lets it join.
PATIENCE = 5.0
#: Bytes of struct ucred: process, user and group.
_CREDENTIALS_SIZE = 12
_GREETING = f"gunicorn_sticky {__version__}".encode()


class JoinSocket:
    """The listening socket.

    Args:
        path: where it is
        fd: of a socket that is there already; else a new one is made
        uid, gid: who may connect
        replace: whether it may take the place of a socket that is in use

    Raises:
        OSError: there is something else at `path`, or nothing can be
    """

    def __init__(self, path: str, fd: int | None = None, uid: int = -1, gid: int = -1, replace: bool = False) -> None:
        self.path = path
        self.socket = Socket(socket.AF_UNIX, fileno=fd)
        self.socket.setblocking(False)  # whatever socket.setdefaulttimeout says
        if fd is not None:
            return
        try:
            os.fchmod(self.socket.fileno(), 0o600)  # before there is a path to it
            if _is_free(path, replace):
                os.unlink(path)
            self.socket.bind(path)
            self.socket.listen()
            if os.geteuid() == 0:
                self._give_to(uid, gid)
        except OSError as error:
            self.socket.close()
            raise OSError(error.errno, error.strerror or str(error), path) from None

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return int(self.socket.fileno())

    def remove(self) -> None:
        """Close the socket and remove it from where it is, if it still is there."""
        with contextlib.suppress(OSError), self._found():
            os.unlink(self.path)
        self.socket.close()

    def _give_to(self, uid: int, gid: int) -> None:
        """Change the socket's owner, and that of nothing else which somebody has put in its place."""
        with self._found() as place:
            os.chown(f"/proc/self/fd/{place}", uid, gid)

    @contextlib.contextmanager
    def _found(self) -> Iterator[int]:
        """Return a descriptor (O_PATH) of what is at our path: this socket.

        Raises:
            OSError: it is not there any more
        """
        place = os.open(self.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            with Socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(f"/proc/self/fd/{place}")
                # Of a client and of a listening socket it is who has called listen(), see unix(7).
                if _peer(client) != _peer(self.socket):
                    raise FileExistsError(errno.EEXIST, "another socket has taken its place")
            yield place
        finally:
            os.close(place)

    def admit(self, client: Any, cluster: Cluster) -> None:
        """Let a program join, and stay with it.

        Args:
            client: a socket that blocks whoever waits for it, and nobody else
        """
        # The end of the connection tells the program to ask again, another worker or another server.
        with contextlib.suppress(OSError):
            self.greet(client, cluster)
            client.recv(1)

    def greet(self, client: Any, cluster: Cluster) -> None:
        """Send a program what makes it a member.

        Raises:
            OSError: it has gone, or it does not read
        """
        socket.send_fds(client, [_GREETING], cluster.fds())


def _is_free(path: str, replace: bool) -> bool:
    """Tell whether a path is that of a socket that its server has left behind, or that is to be replaced."""
    with Socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                return False  # to which connect() says the same as to a socket that nobody listens at
            client.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            return replace  # in use, and its backlog is full
        except OSError:
            return False
    return replace


def _peer(connection: Any) -> bytes:
    found: bytes = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS_SIZE)
    return found


class Member:
    """A program that joins the cluster of the server whose socket is at `path`, as soon as it has something to tell."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._joined: tuple[Cluster, socket.socket] | None = None

    def tell(self, message: bytes) -> None:
        """Let all workers have a message.

        Raises:
            ConnectionError: there is no such server, or not for this user, or it has another version
            ValueError: the message is too long
        """
        with self._lock:
            if self._joined and _is_over(self._joined[1]):
                self._leave()
            if not self._joined:
                self._joined = self._join()
            self._joined[0].tell(message)

    def _leave(self) -> None:
        if self._joined:
            for part in self._joined:
                part.close()
            self._joined = None

    __del__ = _leave

    def _join(self) -> tuple[Cluster, socket.socket]:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(PATIENCE)
            connection.connect(self._path)
            greeting, fds, _, _ = socket.recv_fds(connection, 100, 2, socket.MSG_CMSG_CLOEXEC)
            if greeting != _GREETING or len(fds) != 2:
                for fd in fds:
                    os.close(fd)
                raise ConnectionError(f"{greeting.decode(errors='replace') or 'nobody'} is there")
            connection.setblocking(False)
            return Cluster((fds[0], fds[1])), connection
        except OSError as error:
            connection.close()
            name = f"{_GREETING.decode()} cannot join the server at {self._path} (setting: sticky_cluster_socket)"
            raise ConnectionError(f"{name}: {error}") from error


def _is_over(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
