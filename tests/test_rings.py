"""Messages between processes through shared memory: whole, in order, each once, and counted if they are lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.harness import descriptors, wait_for

from gunicorn_sticky.broadcast import rings
from gunicorn_sticky.broadcast.rings import MAX_MESSAGE, SIZE, Reader, Rings, Writer

#: Does not share locks and descriptors by accident, as threads would.
fork = multiprocessing.get_context("fork")


@pytest.fixture
def memory() -> Iterator[Rings]:
    memory = Rings()
    yield memory
    memory.close()


@pytest.fixture
def run() -> Iterator[Callable[..., Any]]:
    """Run functions in processes of their own, which end with the test."""
    started = []

    def run(function: Callable[..., None], *args: Any) -> Any:
        process = fork.Process(target=function, args=args, daemon=True)
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def numbered(writer: int, number: int, size: int) -> bytes:
    """Return a message that tells whether it is whole."""
    return struct.pack("<II", writer, number) * (size // 8)


def read_number(message: bytes) -> tuple[int, int]:
    writer, number = struct.unpack_from("<II", message)
    assert message == message[:8] * (len(message) // 8)
    return writer, number


def write_many(memory: Rings, writer: int, count: int, sizes: tuple[int, int]) -> None:
    own, rng = Writer(memory), random.Random(writer)
    for number in range(1, count + 1):
        own.write(numbered(writer, number, rng.randrange(*sizes)))


# --- one writer ---


def test_messages_come_in_order_and_once(memory):
    writer, reader = Writer(memory), Reader(memory)
    for text in (b"one", b"", b"three"):
        writer.write(text)
    assert list(reader.read()) == [b"one", b"", b"three"]
    assert list(reader.read()) == []
    writer.write(b"four")
    assert list(reader.read()) == [b"four"]
    assert reader.dropped == 0


def test_a_reader_hears_what_is_written_from_then_on(memory):
    writer = Writer(memory)
    writer.write(b"before")
    reader = Reader(memory)
    writer.write(b"after")
    late = Reader(memory)
    assert list(reader.read()) == [b"after"]
    assert list(late.read()) == []


def test_the_ring_goes_round(memory):
    writer, reader, rng = Writer(memory), Reader(memory), random.Random(1)
    written = 0
    while written < 3 * SIZE:
        message = rng.randbytes(rng.choice((1, 100, 5_000, MAX_MESSAGE)))
        writer.write(message)
        written += len(message)
        assert list(reader.read()) == [message]
    assert reader.dropped == 0


def test_what_is_overwritten_is_counted(memory):
    writer, reader = Writer(memory), Reader(memory)
    count = 3 * SIZE // 1000
    for number in range(1, count + 1):
        writer.write(numbered(0, number, 1000))
    heard = [read_number(message)[1] for message in list(reader.read()) + list(reader.read())]
    assert heard
    assert heard == list(range(heard[0], count + 1))
    assert reader.dropped == count - len(heard)
    writer.write(b"next")
    assert list(reader.read()) == [b"next"]
    assert reader.dropped == count - len(heard)


def test_a_message_that_is_too_long_is_refused(memory):
    writer, reader = Writer(memory), Reader(memory)
    with pytest.raises(ValueError, match=str(MAX_MESSAGE)):
        writer.write(bytes(MAX_MESSAGE + 1))
    writer.write(bytes(MAX_MESSAGE))
    assert list(reader.read()) == [bytes(MAX_MESSAGE)]


def test_real_threads_share_a_writer(memory):
    writer, reader = Writer(memory), Reader(memory)

    def write(number: int) -> None:
        for _ in range(2_000):
            writer.write(numbered(number, 0, 400))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = [read_number(message)[0] for message in reader.read()]
    assert sorted(heard) == sorted([*range(4)] * 2_000)


def test_damaged_memory_only_costs_messages(memory):
    writer, reader = Writer(memory), Reader(memory)
    writer.write(b"lost")
    position = memory.last(0)
    memory.put(0, position, b"\xff" * 40)
    assert list(reader.read()) == []
    assert reader.left
    assert list(reader.read()) == []
    assert not reader.left
    for text in (b"also lost", b"heard"):
        writer.write(text)
    heard = list(reader.read()) + list(reader.read())
    assert heard == [b"heard"]
    assert reader.dropped == 2


@pytest.mark.parametrize("garbage", [b"\0", b"\x01", b"\x7f", b"\xff", b"random"])
@pytest.mark.parametrize("reading", [False, True])
def test_readers_and_writers_go_on_when_the_memory_is_overwritten(memory, garbage: bytes, reading: bool):
    """What comes after is heard by all that are there, and by those that come then."""
    size = rings.RINGS * 9
    pattern = random.Random(1).randbytes(size) if garbage == b"random" else garbage * size
    writers, reader = [Writer(memory), Writer(memory)], Reader(memory)
    for writer in writers:
        writer.write(b"before")
    assert list(reader.read()) == [b"before"] * 2
    os.pwrite(memory.fd, pattern, 0)
    if reading:
        for _ in range(4):
            assert list(reader.read()) == []
        assert not reader.left
    writers[1].close()
    late = Reader(memory)
    writers[1] = Writer(memory)
    for number in range(4):
        for writer in writers:
            writer.write(b"%d" % number)
    expected = [b"%d" % number for number in range(4) for _ in writers]
    for one in (reader, late):
        heard: list[bytes] = []
        for _ in range(4):
            heard += one.read()
        assert heard[-2:] == expected[-2:]
    dropped = [one.dropped for one in (reader, late)]
    assert min(dropped) >= 0
    for writer in writers:
        writer.write(b"after")
    for one in (reader, late):
        assert list(one.read()) == [b"after"] * 2
    assert [one.dropped for one in (reader, late)] == dropped  # nothing is lost any more


def test_a_message_from_the_future_holds_up_nobody(memory, monkeypatch):
    writer, reader = Writer(memory), Reader(memory)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic_ns", lambda: 1 << 63)
        writer.write(b"false")
    writer.write(b"true")
    assert sorted(reader.read()) == [b"false", b"true"]
    assert not reader.left


def test_a_small_limit_on_files_leaves_fewer_rings():
    code = (
        "import resource\n"
        "from gunicorn_sticky.broadcast.rings import SIZE, Reader, Rings, Writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 * SIZE, 3 * SIZE))\n"
        "memory = Rings()\n"
        "reader, writer, other = Reader(memory), Writer(memory), Writer(memory)\n"
        "writer.write(b'heard')\n"
        "other.write(b'heard')\n"
        "print(list(reader.read()))\n"
        "Writer(memory)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[b'heard', b'heard']\n"
    assert done.stderr.endswith("OSError: there are 2 writers already (ulimit -f)\n")


# --- several ---


def test_each_writer_has_a_ring_until_it_ends(memory, run):
    first, second = Writer(memory), Writer(memory)
    reader = Reader(memory)
    child = run(write_many, memory, 7, 1, (8, 9))
    child.join()
    assert [read_number(message) for message in reader.read()] == [(7, 1)]
    assert len(memory.lasts()) == 3
    first.write(b"first")
    first.close()
    third = Writer(memory)
    third.write(b"third")
    second.write(b"second")
    assert list(reader.read()) == [b"first", b"third", b"second"]
    assert len(memory.lasts()) == 3
    assert reader.dropped == 0


def test_a_writer_survives_the_children_of_its_process(memory, run):
    writer, reader = Writer(memory), Reader(memory)
    child = run(signal.pause)
    rival = run(write_many, memory, 1, 1, (8, 9))  # takes another ring
    rival.join()
    child.kill()
    child.join()
    rival = run(write_many, memory, 2, 1, (8, 9))
    rival.join()
    writer.write(b"mine")
    assert sorted(map(len, reader.read())) == [4, 8, 8]
    assert memory.lasts()[0] != memory.lasts()[1]


def test_no_more_writers_than_rings(memory):
    memory.count = 2
    writers = [Writer(memory), Writer(memory)]
    before = Counter(descriptors(os.getpid()))
    with pytest.raises(OSError, match="2 writers"):
        Writer(memory)
    assert not Counter(descriptors(os.getpid())) - before
    writers[0].close()
    Writer(memory).close()


def test_readers_and_writers_at_full_speed(memory, run):
    """Each message is heard once, whole and in order, or counted."""
    count, senders = 6_000, (1, 2, 3)
    results = fork.Queue()

    def read(pause: float) -> None:
        reader, heard, last = Reader(memory), 0, dict.fromkeys(senders, 0)
        results.put("ready")
        deadline = time.monotonic() + 30
        while heard + reader.dropped < count * len(senders) and time.monotonic() < deadline:
            for message in reader.read():
                writer, number = read_number(message)
                assert number > last[writer]
                last[writer] = number
                heard += 1
            time.sleep(pause)  # some readers are slow
        results.put((heard, reader.dropped))

    pauses = (0.0, 0.001, 0.5)
    for pause in pauses:
        run(read, pause)
    for _ in pauses:
        assert results.get(timeout=30) == "ready"
    for sender in senders:
        run(write_many, memory, sender, count, (8, 7_000))  # several times what a ring holds
    for _ in pauses:
        heard, dropped = results.get(timeout=60)
        assert heard + dropped == count * len(senders)
        assert heard


def test_writers_that_are_killed_at_any_moment(memory, run):
    """Readers see no half message, and the next writer goes on in the same ring."""
    reader, rng = Reader(memory), random.Random(3)
    for round_ in range(1, 31):
        heard: list[tuple[int, int]] = []

        def news(heard: list[tuple[int, int]] = heard) -> bool:
            heard += map(read_number, reader.read())
            return len(heard) > 5

        writer = run(write_many, memory, round_, 1_000_000, (8, MAX_MESSAGE // 4))
        wait_for(news, "messages")
        time.sleep(rng.random() / 100)  # any moment
        writer.kill()
        writer.join()
        news()
        news()
        assert {writer for writer, _ in heard} <= {round_ - 1, round_}
        own = [number for writer, number in heard if writer == round_]
        assert own == sorted(set(own))
        assert len(memory.lasts()) == 1
    final = Writer(memory)
    final.write(b"whole")
    assert list(reader.read())[-1] == b"whole"


def test_an_answer_that_comes_while_the_reader_looks_around(memory, monkeypatch):
    asking, answering, reader = Writer(memory), Writer(memory), Reader(memory)

    def lasts() -> list[int]:
        monkeypatch.undo()
        seen: list[int] = memory.lasts()[:1]
        asking.write(b"question")
        answering.write(b"answer")
        return [*seen, *memory.lasts()[1:]]

    monkeypatch.setattr(memory, "lasts", lasts)
    assert list(reader.read()) == []
    assert reader.left
    assert list(reader.read()) == [b"question", b"answer"]


def test_an_answer_never_overtakes_its_question(memory, run):
    count = 3_000

    def answer() -> None:
        reader, own = Reader(memory), Writer(memory)
        own.write(b"ready")
        while True:
            for message in reader.read():
                if message.startswith(b"question"):
                    own.write(b"answer" + message[8:])

    reader = Reader(memory)
    for _ in range(2):
        run(answer)
    ready: list[bytes] = []

    def are_ready() -> bool:
        ready.extend(reader.read())
        return len(ready) == 2

    wait_for(are_ready, "both to be ready")

    def ask() -> None:
        own = Writer(memory)
        for number in range(count):
            own.write(b"question%d" % number)
            time.sleep(0.0001)  # all of them fit in the ring; so answers come in between

    run(ask)
    asked, answered, deadline = set(), 0, time.monotonic() + 30
    while answered < 2 * count and time.monotonic() < deadline:
        for message in reader.read():
            if message.startswith(b"question"):
                asked.add(message[8:])
            else:
                assert message[6:] in asked
                answered += 1
    assert answered == 2 * count
