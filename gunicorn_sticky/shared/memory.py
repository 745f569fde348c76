"""Shared memory (memfd_create(2)) of a size that nobody can change.

Who maps a file and reads beyond its end is killed by SIGBUS. So all that is mapped here is sealed (fcntl(2), "File
sealing"): whoever has the descriptor can write anything there, but cannot cut it off under the others.
"""

from __future__ import annotations

import errno
import fcntl
import os


def create(name: str, size: int) -> int:
    """Return the descriptor of new memory.

    Args:
        name: what /proc shows
        size: in bytes

    Raises:
        OSError: there is none, or not so much
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EFBIG:
            raise OSError(error.errno, f"{size} bytes of shared memory are beyond the limit (ulimit -f)") from None
        raise
    return fd


def is_sealed(fd: int, size: int) -> bool:
    """Tell whether a file is memory that can be mapped: it has this size, and will."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False  # some other file
    return seals & _seals() == _seals() and os.fstat(fd).st_size == size


def _seals() -> int:
    # And none else: without F_SEAL_SEAL, another process could forbid all to write.
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
