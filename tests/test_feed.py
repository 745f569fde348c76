"""Where the bytes of a connection are cut: no piece reaches beyond the end of a message."""

from __future__ import annotations

import random
import time

import pytest

from gunicorn_sticky.workers.feed import Feed, is_head

HEAD = b"POST / HTTP/1.1\r\nA: b\r\n\r\n"
#: What looks like an end, and is none, in a body.
BYTES = b"\n\r0a"


def message(chance: random.Random) -> tuple[bytes, int | None]:
    """Return the body of a message, as it is sent, and its length, None if it is in chunks."""
    body = bytes(chance.choice(BYTES) for _ in range(chance.randint(0, 60)))
    if chance.random() < 0.5:
        return body, len(body)
    sent = b""
    while body:
        size = chance.randint(1, 20)
        chunk, body = body[:size], body[size:]
        sent += b"%x%s\r\n%s\r\n" % (len(chunk), chance.choice([b"", b";a=b"]), chunk)
    return sent + b"0\r\n" + chance.choice([b"", b"T: u\r\n"]) + b"\r\n", None


@pytest.mark.parametrize("seed", range(300))
def test_no_piece_reaches_beyond_a_message(seed: int):
    chance = random.Random(seed)
    messages = [message(chance) for _ in range(chance.randint(1, 6))]
    stream = b"".join(HEAD + body for body, _ in messages)
    feed, parsed, seen = Feed(), 0, b""
    while stream or len(feed):
        size = chance.choice([1, 2, 3, 10, 1000])
        feed.push(stream[:size])
        stream = stream[size:]
        while len(feed):
            piece = feed.pull()
            assert piece
            seen += piece
            body, length = messages[parsed]
            assert (HEAD + body).startswith(seen)
            if seen == HEAD and body:
                feed.expect(length)
            elif seen == HEAD + body:
                parsed, seen = parsed + 1, b""
                held, feed = feed.take(), Feed()
                feed.push(held)
    assert parsed == len(messages)


@pytest.mark.parametrize("line", [b"", b"x\r\n", b"-1\r\n", b"0x10\r\n", b" 5\r\n", b"5" * 40_000])
def test_what_is_no_chunk_is_the_parsers_to_refuse(line: bytes):
    feed = Feed()
    feed.expect(None)
    feed.push(line)
    feed.push(b"GET / HTTP/1.1\r\n")
    assert (feed.pull() + feed.pull()).startswith(line + b"GET / HTTP/1.1\r\n")


def test_a_line_without_an_end_is_the_parsers_to_refuse():
    feed = Feed()
    feed.expect(None)
    seen = b""
    for piece in (b"5" * 20_000, b"5" * 20_000, b"5" * 20_000, b"GET / HTTP/1.1\r\n"):
        feed.push(piece)
        seen += feed.pull()
    assert seen == b"5" * 60_000 + b"GET / HTTP/1.1\r\n"
    assert not len(feed)


def test_what_is_left_is_taken_at_once():
    feed = Feed()
    for piece in (HEAD, b"one", b"two"):
        feed.push(piece)
    assert (feed.pull(), len(feed), feed.take(), len(feed)) == (HEAD, 6, b"onetwo", 0)


@pytest.mark.parametrize("body", [b"\n" * 1_000_000, b"\r\n\r\n" * 250_000])
def test_blank_lines_in_a_body_cost_nothing(body: bytes):
    """A piece for each of them would take a second, and longer for more of them."""
    for size, sent in ((len(body), body), (None, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))):
        feed = Feed()
        feed.push(HEAD + sent)
        assert feed.pull() == HEAD
        feed.expect(size)
        began = time.process_time()
        assert feed.pull() == sent
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize("seed", range(100))
def test_what_is_a_head_and_nothing_else(seed: int):
    """Such bytes are what a feed would give as one piece, that ends with the first blank line."""
    chance = random.Random(seed)
    for _ in range(50):
        data = b"A: b" + b"".join(chance.choice([b"\r\n", b"\n", b"a", b"\r"]) for _ in range(chance.randint(1, 8)))
        feed = Feed()
        feed.push(data)
        if is_head(data):
            assert feed.pull() == data
            assert data.endswith(b"\n\r\n")
            assert data.count(b"\n\r\n") == 1
    assert is_head(HEAD)
    assert not is_head(HEAD + HEAD)
    assert not is_head(HEAD.replace(b"\r\n", b"\n") + HEAD)
    assert not is_head(b"A: b\n" + HEAD.replace(b"\r\n\r\n", b"\n\r\n") + HEAD)
