"""The PROXY protocol, versions 1 and 2, at the start of a connection that may not have arrived completely.

Pure. It is only read for the client's address: the bytes stay where they are, and Gunicorn's own parser in the worker
reads them again. Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from .head import Incomplete

_V1 = b"PROXY "
_V1_MAX = 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct(">12sBBH")
_LOCAL, _PROXY = 0, 1
_TCP4, _TCP6 = 0x11, 0x21


class Malformed(ValueError):
    """A PROXY header that no proxy would send."""


def parse(data: bytes | bytearray, size: int) -> tuple[int, tuple[str, int] | None]:
    """Return the length of the PROXY header in the first `size` bytes of `data`, and the client's address and port.

    Without such a header the length is 0. The address is None where the header names none (LOCAL, UNKNOWN).

    Raises:
        Incomplete: more bytes are needed
        Malformed: this is a PROXY header, and it is broken
    """
    start = bytes(data[: min(size, len(_V2))])
    if _V1.startswith(start[: len(_V1)]):
        if len(start) < len(_V1):
            raise Incomplete
        return _parse_v1(bytes(data[: min(size, _V1_MAX)]))
    if _V2.startswith(start):
        if len(start) < len(_V2):
            raise Incomplete
        return _parse_v2(data, size)
    return 0, None


def _parse_v1(data: bytes) -> tuple[int, tuple[str, int] | None]:
    line, end, _ = data.partition(b"\r\n")
    if not end:
        if len(data) == _V1_MAX:
            raise Malformed("a line of more than 107 bytes")
        raise Incomplete
    length = len(line) + 2
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return length, None
    try:
        _, family, source, destination, source_port, destination_port = words
        number = {"TCP4": AF_INET, "TCP6": AF_INET6}[family]
        inet_pton(number, source)
        inet_pton(number, destination)
        ports = [int(port) for port in (source_port, destination_port) if port.isdecimal()]
    except (ValueError, KeyError, OSError):
        raise Malformed(repr(line)) from None
    if len(ports) != 2 or max(ports) > 65535:
        raise Malformed(repr(line))
    return length, (source, ports[0])


def _parse_v2(data: bytes | bytearray, size: int) -> tuple[int, tuple[str, int] | None]:
    if size < _V2_HEAD.size:
        raise Incomplete
    _, version_command, family, length = _V2_HEAD.unpack_from(data)
    end = _V2_HEAD.size + length
    version, command = version_command >> 4, version_command & 15
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise Malformed(f"version and command {version_command:#x}")
    if end > len(data):
        raise Malformed(f"{length} bytes of addresses")
    if size < end:
        raise Incomplete
    if command == _LOCAL:
        return end, None
    body = bytes(data[_V2_HEAD.size : end])
    if family == _TCP4 and length >= 12:
        return end, (inet_ntop(AF_INET, body[:4]), int.from_bytes(body[8:10], "big"))
    if family == _TCP6 and length >= 36:
        return end, (inet_ntop(AF_INET6, body[:16]), int.from_bytes(body[32:34], "big"))
    if family >> 4 == 0:
        return end, None
    raise Malformed(f"address family {family:#x} with {length} bytes")
