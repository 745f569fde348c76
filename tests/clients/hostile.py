"""Clients that mean no good: python hostile.py KIND PORT COUNT [SECONDS]

Starts COUNT of them within a second, or so many, each from an address of its own, and waits for the server to end each.
Prints JSON: how many connections ended how (a status, "closed" or "open"), and the longest time from start to end.

A kind may be a form of heads that cost much to read, see `FORMS`: by itself it is one of 63 KB that does not end, after
"second-" the head after a request, and after "whole-" one of 14 KB that does end.
"""

from __future__ import annotations

import asyncio
import collections
import json
import socket
import struct
import sys
import time

HALF = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-"
KEYED = b"GET / HTTP/1.1\r\nX-Forwarded-For: 1.2.3.%d\r\nHost: a\r\n"
HUGE = 10_000_000
#: The end of a head that names the client, whichever header is asked for it.
NAMED = b"X-Forwarded-For: 1.2.3.%d\r\nForwarded: for=1.2.3.%d\r\n\r\n"
#: What heads are filled with, by form; %s is a number that nobody else has, as long as an id of a session.
FORMS = {
    "nodes": b"X-Forwarded-For: " + b'"",' * 99 + b"\r\n",
    "parameters": b"Forwarded: " + b"a;" * 300 + b"\r\n",
    "elements": b"Forwarded: " + b'for="",' * 99 + b"\r\n",
    "cookies": b"Cookie: gunicorn_sticky=%s\r\n",
    "pairs": b"Cookie: " + b"gunicorn_sticky=%s;" * 50 + b"\r\n",
    "others": b"Cookie: other=%s\r\n",
    "query": b"&sid=%s",
    "ids": b"X-Sid: %s\r\n",
}
#: Bytes of such heads: as much as the dispatcher looks at, and as much as HAProxy takes.
ENDLESS, COMPLETE = 63_000, 14_000
#: Seconds after which a connection that is still open is given up.
LIMIT = 20.0


def filled(form: str, number: int, size: int) -> bytes:
    """Return a head of a form, with about so many bytes, without its end."""
    piece = FORMS[form]
    values = piece.count(b"%s")
    count = size // len(piece % ((b"%016d" % 0,) * values))
    numbers = range(number * ENDLESS, number * ENDLESS + count * values)
    filling = piece * count % tuple(b"%016d" % n for n in numbers)
    if form == "query":
        return b"GET /?a" + filling + b" HTTP/1.1\r\nHost: a\r\n"
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + filling


async def drip(writer: asyncio.StreamWriter, pause: float) -> None:
    """Send a byte now and then, each of which makes what was sent before worth another look."""
    while True:
        await writer.drain()
        await asyncio.sleep(pause)
        writer.write(b"a")


async def attack(kind: str, number: int, writer: asyncio.StreamWriter) -> None:
    """Send what this kind sends; the connection stays open afterwards, but for "reset"."""
    which, _, form = kind.rpartition("-")
    if form in FORMS:
        named = NAMED % (number % 250, number % 250)
        if which == "whole":
            writer.write(filled(form, number, COMPLETE) + b"Connection: close\r\n" + named)
            return
        if which == "second":
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + named)
        writer.write(filled(form, number, ENDLESS))
        await drip(writer, 0.01 if which == "second" else 0.1)
    elif kind == "reset":
        writer.write(HALF[: number % len(HALF)])
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif kind == "half":
        writer.write(HALF)
    elif kind == "rest":  # the key is there, so the worker has to deal with it
        writer.write(KEYED % (number % 250) + b"A: b")
    elif kind == "second":  # a request, and half of another one
        writer.write(KEYED % (number % 250) + b"\r\n" + HALF)
    elif kind == "drip":
        for byte in HALF + b"a" * 60:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
    elif kind == "pieces":
        writer.write(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000)
        await drip(writer, 0.05)
    elif kind == "huge":
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(HUGE // 10_000):
            writer.write(b"A: " + b"b" * 9_995 + b"\r\n")
            await writer.drain()


async def meet(kind: str, number: int, port: int, delay: float) -> tuple[str, float]:
    """Be one client, and return how it ended, and after how many seconds."""
    await asyncio.sleep(delay)
    source = f"127.100.{number // 250}.{1 + number % 250}"
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    attacker = asyncio.create_task(attack(kind, number, writer))
    received = b""
    try:
        while more := await asyncio.wait_for(reader.read(65536), LIMIT - (time.monotonic() - started)):
            received += more
        is_open = False
    except asyncio.TimeoutError:  # not the built-in one in Python 3.10
        is_open = True
    except OSError:
        is_open = False
    end = "open" if is_open else received.rpartition(b"HTTP/1.1 ")[2][:3].decode() or "closed"
    seconds = time.monotonic() - started
    attacker.cancel()
    await asyncio.gather(attacker, return_exceptions=True)
    writer.transport.abort()
    return end, seconds


async def main(kind: str, port: int, count: int, seconds: float = 1.0) -> None:
    met = await asyncio.gather(*(meet(kind, n, port, n / count * seconds) for n in range(count)))
    print(json.dumps({"ends": collections.Counter(end for end, _ in met), "longest": max(s for _, s in met)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:])))
