"""Descriptor passing: a queue of connections from the dispatcher to the worker of one slot.

A channel is a connected pair of Unix sockets. The arbiter keeps both ends open and every process of the slot inherits
them, so a connection that was sent stays in the kernel until a worker takes it, whichever process dies in between.

Both ends are non-blocking from their creation: with a default timeout (`socket.setdefaulttimeout`, in a configuration
or a library), Python would wait before each call, whatever MSG_DONTWAIT says.
"""

from __future__ import annotations

import errno
import functools
import marshal
import mmap
import os
import struct
import sys
from collections.abc import Callable
from fcntl import ioctl
from socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
)
from termios import TIOCOUTQ
from typing import Any, NamedTuple

from ..routing.key import Key
from .unpatched import BareSocket, close, dup, socketpair

#: SOCK_SEQPACKET keeps messages apart; macOS has none for Unix sockets.
_KIND = SOCK_SEQPACKET | SOCK_NONBLOCK
#: More bytes of a connection than these travel in a memory file: asyncio reads 256 KiB at once.
_MOST_UNREAD = 64 * 1024
#: More than any message takes: so many bytes, two socket addresses, a key.
_MESSAGE_SIZE = 128 * 1024
#: A connection, and one with a memory file.
_FD, _TWO_FDS = struct.Struct("i"), struct.Struct("ii")
_FD_SPACE = CMSG_SPACE(_TWO_FDS.size)
#: How to send and receive. (The flags are members of an enum, and to join them anew takes longer than to send.)
_SENDING, _RECEIVING = int(MSG_DONTWAIT | MSG_NOSIGNAL), int(MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
#: Limits on descriptors, also of those in flight, and on memory: they pass (see unix(7)), but for `ulimit -f`.
_FULL = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)
#: What a message takes of the kernel's memory, in bytes, unless its key is long or it carries what was read.
_COST = 768


class ConnectionInfo(NamedTuple):
    """What travels beside the descriptor."""

    # Whatever `marshal` takes: both ends are processes of one program.

    #: ``getsockname()`` of the listener that accepted the connection.
    listener: Any
    #: The peer's address, as ``accept()`` gave it.
    address: Any
    #: The affinity key that the connection was dispatched under.
    key: Key
    #: What a worker has read of it already, before it handed the connection over.
    unread: bytes = b""
    #: What Gunicorn has parsed from its PROXY header, if that has been read.
    proxy: dict[str, Any] | None = None


#: Makes one of a tuple with all of it. (The class itself is called by way of a function in Python.)
connection_info: Callable[[tuple[Any, ...]], ConnectionInfo] = functools.partial(tuple.__new__, ConnectionInfo)


class Channel:
    """The queue of one slot. Each process closes the end that it has no use for."""

    def __init__(self, ends: tuple[BareSocket, BareSocket] | None = None) -> None:
        self._out, self._in = ends or socketpair(AF_UNIX, _KIND)
        #: Where the receiver receives: of a mapping, only those pages cost memory that a message has reached.
        self._buffer: mmap.mmap | None = None

    @classmethod
    def inherited(cls, sender: int, receiver: int) -> Channel:
        """Return the channel whose ends have these descriptors."""
        return cls((BareSocket(AF_UNIX, _KIND, 0, sender), BareSocket(AF_UNIX, _KIND, 0, receiver)))

    def fileno(self) -> int:
        """The receiving end, to wait for."""
        return self._in.fileno()

    def filenos(self) -> tuple[int, int]:
        """Return both ends, the sending one first, for `Channel.inherited`."""
        return self._out.fileno(), self._in.fileno()

    def queued(self) -> int:
        """Return about how many connections are in the channel."""
        size = ioctl(self._out.fileno(), TIOCOUTQ, bytes(4))
        return -(-int.from_bytes(size, sys.byteorder) // _COST)

    def send(self, fd: int, info: ConnectionInfo) -> OSError | None:
        """Send a descriptor, which the sender still has to close. Return why not, if the channel is full."""
        memory = None
        try:
            if len(info.unread) > _MOST_UNREAD:
                memory = _memory_file(info.unread)
                info = info._replace(unread=b"")
            fds = _FD.pack(fd) if memory is None else _TWO_FDS.pack(fd, memory)
            self._out.sendmsg([marshal.dumps(tuple(info))], [(SOL_SOCKET, SCM_RIGHTS, fds)], _SENDING)
        except OSError as error:
            if error.errno in _FULL:
                return error
            raise
        finally:
            if memory is not None:
                close(memory)
        return None

    def receive(self) -> tuple[int, ConnectionInfo] | None:
        """Take the next connection, or None if there is none.

        Raises:
            OSError: EMFILE or ENFILE, and the connection stays in the channel
        """
        # At the limit of open files the kernel would deliver the message without its descriptors, so try two first.
        spare = dup(self._in.fileno())
        try:
            close(dup(spare))
        finally:
            close(spare)
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, _MESSAGE_SIZE, mmap.MAP_PRIVATE)
        try:
            _size, ancillary, _flags, _address = self._in.recvmsg_into([self._buffer], _FD_SPACE, _RECEIVING)
        except BlockingIOError:
            return None
        if not ancillary:  # another thread took the last descriptor, or all senders are gone
            return None
        fds = ancillary[0][2]
        info = connection_info(marshal.loads(self._buffer))
        if len(fds) == _FD.size:
            return _FD.unpack(fds)[0], info
        fd, memory = _TWO_FDS.unpack(fds)
        try:
            return fd, info._replace(unread=os.pread(memory, os.fstat(memory).st_size, 0))
        finally:
            close(memory)

    def close_receiver(self) -> None:
        """Close the receiving end in this process."""
        self._in.close()

    def close_sender(self) -> None:
        """Close the sending end in this process."""
        self._out.close()

    def close(self) -> None:
        """Close both ends in this process."""
        self._out.close()
        self._in.close()


def _memory_file(content: bytes) -> int:
    """Return the descriptor of a memory file (memfd_create(2)) with this content."""
    fd = os.memfd_create("gunicorn-sticky-unread", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)  # all of it, as a single write(2) may not
    except OSError:
        close(fd)
        raise
    return fd
