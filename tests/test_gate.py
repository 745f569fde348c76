"""The gate, without a server: bytes of a later head in, a decision out."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from typing import Any

import pytest

from gunicorn_sticky.routing.affinity import Affinity, reader
from gunicorn_sticky.routing.hashing import Slots
from gunicorn_sticky.routing.head import MAX_HEAD
from gunicorn_sticky.routing.key import Key, Owner
from gunicorn_sticky.routing.session_ids import Ids
from gunicorn_sticky.shared.board import LOOK, REQUEST, RUNNING, SEATS, STOPPING, Board
from gunicorn_sticky.shared.channel import ConnectionInfo
from gunicorn_sticky.shared.metrics import Counter
from gunicorn_sticky.shared.refusals import Refusal
from gunicorn_sticky.workers.gate import NEED_MORE, REMEMBERED, SERVE, Gate, HandOver, LaterHead
from gunicorn_sticky.workers.served import Served
from gunicorn_sticky.workers.share import SLACK

SECRET = bytes(16)
SLOTS = 4
#: Workers are numbered from here, by slot; those of another master from there.
FIRST, ELSEWHERE = 1, 101
OWN = Owner(FIRST)
BY_IP = Affinity()
BY_HEADER = Affinity(by="header", header="x-key")
BY_SESSION = Affinity(by="session", session_keys=("query:sid",))
#: Two keys of slot 0, and one of another slot.
OURS, OURS_TOO, THEIRS = "", "", ""
for number in range(100):
    slot, name = Slots(SECRET, SLOTS).slot_of(f"client-{number}"), f"client-{number}"
    if slot:
        THEIRS = name
    else:
        OURS, OURS_TOO = name, OURS
#: An address whose clients belong to slot 0.
ADDRESS = next(f"192.0.2.{n}" for n in range(256) if not Slots(SECRET, SLOTS).slot_of(f"192.0.2.{n}"))


class Rig:
    """A worker in slot 0 of several, with nothing around it but the board."""

    def __init__(self, affinity: Affinity) -> None:
        self.board = Board()
        self.other = self.board.other()
        self.board.slots = self.board.count = SLOTS
        for slot in range(SLOTS):
            self.board.take(slot * SEATS, FIRST + slot, 1 + slot)
            self.board.activate(slot, slot * SEATS)
        self.drains = False
        self.requests = Counter(memoryview(bytearray(8)).cast("Q"))
        seat: Any = types.SimpleNamespace(
            slot=0,
            number=0,
            owner=OWN,
            secret=SECRET,
            board=self.board,
            is_active=lambda: self.board.active_seat(0) == 0,
            metrics=types.SimpleNamespace(requests=self.requests),
        )
        #: The clock, in seconds.
        self.now = 1000.0
        self.gate = Gate(reader(affinity, SECRET), seat, lambda: self.drains, lambda: self.now)
        self.served = self.connection(OWN if affinity.by_session else OURS)

    @staticmethod
    def connection(key: Key) -> Served:
        return Served(ConnectionInfo(("127.0.0.1", 80), (ADDRESS, 4711), key))

    def ask(self, *pieces: bytes) -> Any:
        head = LaterHead(self.gate, self.served)
        for piece in pieces[:-1]:
            assert head.feed(piece) is NEED_MORE
        decision = head.feed(pieces[-1])
        assert bytes(head.data) == b"".join(pieces)
        if decision is SERVE:
            self.requests.inc()
        return decision

    def succeed(self) -> None:
        """Let another worker take the connections of slot 0."""
        self.board.take(1, FIRST + SLOTS, 99)
        self.board.activate(0, 1)

    def upgrade(self) -> None:
        """Let another master accept, whose first worker has a session."""
        self.other.slots = self.other.count = 1
        self.other.phase = self.board.phase
        self.other.take(0, ELSEWHERE, 1)
        self.other.activate(0, 0)
        self.other.become_active_master()


def keyed(key: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n".encode()


def of_session(owner: int | None) -> bytes:
    sid = "none" if owner is None else Ids(SECRET).tag("a", owner)
    return f"GET /?sid={sid} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


# --- what has arrived ---


def test_a_head_may_arrive_byte_by_byte():
    data = keyed(OURS)
    shown = data.index(b"\r\n\r\n") + 3  # the next byte could still continue the header's value
    pieces = [data[n : n + 1] for n in range(shown)]
    assert Rig(BY_HEADER).ask(*pieces) is SERVE


def test_what_follows_the_head_is_kept():
    rig = Rig(BY_HEADER)
    assert rig.ask(keyed(OURS)[:9], keyed(OURS)[9:] + b"body and the next head") is SERVE


@pytest.mark.parametrize(
    ("data", "status", "setting"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "sticky_ignore_missing_header"),
        (b"GET / HTTP/1.1\nX-Key: a\r\n\r\n", 400, "sticky_by"),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * MAX_HEAD, 431, "sticky_header"),
    ],
)
@pytest.mark.parametrize("cut", [1, 100, 1 << 20])
def test_refusals(data: bytes, status: int, setting: str, cut: int):
    decision = Rig(BY_HEADER).ask(*(piece for piece in (data[:cut], data[cut:]) if piece))
    assert isinstance(decision, Refusal)
    assert (decision.status, decision.setting) == (status, setting)


def test_a_head_that_does_not_come():
    rig = Rig(BY_HEADER)
    refusal = LaterHead(rig.gate, rig.served).expire(3)
    assert refusal == (408, "the request header x-key did not arrive within 3 s", "sticky_header_timeout")


# --- whose it is ---


def test_by_header():
    rig = Rig(BY_HEADER)
    assert rig.ask(keyed(OURS)) is SERVE
    assert rig.ask(keyed(OURS_TOO)) is SERVE
    assert rig.served.key == OURS_TOO
    decision = rig.ask(keyed(THEIRS))
    assert isinstance(decision, HandOver)
    assert decision.key == THEIRS
    assert rig.served.key == OURS_TOO  # that request was not served


def test_by_another_number_of_slots():
    rig = Rig(BY_HEADER)
    assert rig.ask(keyed(OURS)) is SERVE
    rig.board.count = 1
    assert rig.ask(keyed(THEIRS)) is SERVE
    rig.board.count = SLOTS
    assert isinstance(rig.ask(keyed(THEIRS)), HandOver)


@pytest.mark.parametrize("happens", [Rig.succeed, Rig.upgrade])
def test_by_header_all_goes_to_whoever_is_in_service(happens: Callable[[Rig], None]):
    rig = Rig(BY_HEADER)
    assert rig.ask(keyed(OURS)) is SERVE
    happens(rig)
    assert isinstance(rig.ask(keyed(OURS)), HandOver)


def test_by_session():
    rig = Rig(BY_SESSION)
    assert rig.ask(of_session(OWN)) is SERVE
    assert rig.ask(of_session(FIRST + 1)) == HandOver(
        Owner(FIRST + 1), "its next request is of another worker's session"
    )
    assert rig.ask(of_session(999)) is SERVE  # its worker is gone
    assert rig.ask(of_session(None)) is SERVE


@pytest.mark.parametrize("happens", [Rig.succeed, Rig.upgrade, lambda rig: setattr(rig, "drains", True)])
def test_by_session_a_worker_that_drains_keeps_its_own(happens: Callable[[Rig], None]):
    rig = Rig(BY_SESSION)
    happens(rig)
    assert rig.ask(of_session(OWN)) is SERVE
    assert isinstance(rig.ask(of_session(FIRST + 1)), HandOver)
    for lost in (999, None):
        decision = rig.ask(of_session(lost))
        assert isinstance(decision, HandOver)
        assert decision.why == "this worker takes no new sessions any more"


def test_by_session_those_of_another_master_are_known():
    rig = Rig(BY_SESSION)
    rig.upgrade()
    decision = rig.ask(of_session(ELSEWHERE))
    assert isinstance(decision, HandOver)
    assert decision.why == "its next request is of another worker's session"


@pytest.mark.parametrize("balance", ["least-connections", "round-robin", "hash"])
def test_new_sessions_go_to_who_is_less_busy(balance: str):
    rig = Rig(Affinity(by="session", session_keys=("query:sid",), balance=balance))
    rig.board.busy(0)[0] = SLACK // REQUEST
    assert rig.ask(of_session(None)) is SERVE
    rig.board.busy(0)[0] = SLACK // REQUEST + 1
    rig.now += 1
    assert isinstance(rig.ask(of_session(None)), HandOver) == (balance == "least-connections")
    assert rig.ask(of_session(OWN)) is SERVE


def test_looking_at_the_others_takes_no_longer_with_more_of_them():
    rig = Rig(BY_SESSION)
    for _ in range(2):  # from the second look on there is something to compare
        assert rig.ask(of_session(None)) is SERVE
    rig.board.busy(0)[0] = 100
    for _ in range(10):
        assert rig.ask(of_session(None)) is SERVE  # as seen a moment ago
    rig.now += SLOTS * LOOK * 1.01
    assert isinstance(rig.ask(of_session(None)), HandOver)


@pytest.mark.parametrize("affinity", [BY_IP, BY_HEADER, BY_SESSION])
@pytest.mark.parametrize("seed", range(30))
def test_what_stays_would_have_been_served_here(affinity: Affinity, seed: int):
    """What is decided without reading a key is never wrong, whatever has changed since the last request."""
    chance, rig, stayed = random.Random(seed), Rig(affinity), 0
    heads = [keyed(OURS), keyed(OURS_TOO), keyed(THEIRS), of_session(None), of_session(OWN), of_session(FIRST + 1)]
    changes: list[Callable[[], object]] = [
        lambda: rig.board.busy(0).__setitem__(0, chance.choice([0, 100])),
        lambda: setattr(rig.board, "count", chance.choice([1, SLOTS])),
        lambda: setattr(rig.board, "phase", chance.choice([RUNNING, STOPPING])),
        lambda: setattr(rig, "drains", not rig.drains),
        rig.succeed,
        rig.upgrade,
    ]
    for _ in range(200):
        rig.now += 1
        data = chance.choice(heads)
        stays = rig.gate.stays(rig.served, data)
        decision = rig.ask(data)
        assert not stays or decision is SERVE
        stayed += stays
        if chance.random() < 0.02:
            chance.choice(changes)()
    assert stayed or seed


@pytest.mark.parametrize(
    "data",
    [keyed(OURS) * 2, keyed(OURS)[:-1], keyed("a" * REMEMBERED), b"\r\n" + keyed(OURS) + b"\r\n"],
    ids=["two", "half", "long", "empty lines"],
)
def test_only_a_short_head_that_comes_alone_is_remembered(data: bytes):
    rig = Rig(BY_HEADER)
    LaterHead(rig.gate, rig.served).feed(data)
    assert not rig.served.last_head


@pytest.mark.parametrize("affinity", [BY_HEADER, BY_SESSION])
def test_nothing_moves_when_nobody_routes(affinity: Affinity):
    rig = Rig(affinity)
    rig.succeed()
    rig.board.phase = STOPPING
    assert rig.ask(keyed(THEIRS) if affinity is BY_HEADER else of_session(FIRST + 1)) is SERVE
    rig.upgrade()
    rig.other.phase = 2  # it goes on
    assert isinstance(rig.ask(keyed(THEIRS) if affinity is BY_HEADER else of_session(FIRST + 1)), HandOver)


def test_the_source_of_a_proxy_header_counts():
    rig = Rig(Affinity(proxies=("*",)))
    rig.served.proxy = {"client_addr": "198.51.100.9", "client_port": 4711}
    decision = rig.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    key = rig.served.key if decision is SERVE else decision.key
    assert key == "198.51.100.9"
