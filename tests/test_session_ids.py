"""Session ids that carry their owner, and nothing else that anybody could read or forge."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from uuid import RFC_4122, UUID

import pytest

from gunicorn_sticky.routing.session_ids import OWNERS, TAG, Ids
from gunicorn_sticky.sessions.minting import Minter, new_uuid, own_id, own_uuid, session_id
from gunicorn_sticky.shared import current
from gunicorn_sticky.shared.metrics import Metrics

SECRET = bytes(range(16))
ALPHABET = string.ascii_letters + string.digits + "-_"


def texts(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices(ALPHABET, k=20)) for _ in range(count)]


def tag_of(identifier: str) -> str:
    return identifier[-TAG:]


@pytest.mark.parametrize("text", ["a", "sid", "a" * 5000, "größe €", "a b;c=d&e", "\0\n", "AAAAAAAA", "x" * 8 + "===="])
@pytest.mark.parametrize("owner", [0, 1, 255, 256, 65536, OWNERS - 1])
def test_the_owner_is_in_the_id(text: str, owner: int):
    identifier = Ids(SECRET).tag(text, owner)
    assert identifier.startswith(text)
    assert re.fullmatch(r"[A-Za-z0-9_-]{8}", identifier[len(text) :])
    assert Ids(SECRET).owner(identifier.encode()) == owner


def test_many_ids():
    ids = Ids(SECRET)
    for owner, text in enumerate(texts(5000, 1), 1):
        assert ids.owner(ids.tag(text, owner).encode()) == owner


def test_an_id_of_an_id_belongs_to_the_last_owner():
    ids = Ids(SECRET)
    assert ids.owner(ids.tag(ids.tag("a", 1), 2).encode()) == 2


def test_an_owner_that_is_no_number_of_ours_is_refused():
    for owner in (-1, OWNERS):
        with pytest.raises(OverflowError):
            Ids(SECRET).tag("a", owner)


# A forged id is taken with a probability of 2 ** -24. These are not, with their fixed texts.


def test_no_character_can_be_changed():
    ids = Ids(SECRET)
    for text in texts(20, 2):
        identifier = ids.tag(text, 7)
        for at in range(len(identifier)):
            for other in {*ALPHABET, *"+/= .~\0"} - {identifier[at]}:
                changed = identifier[:at] + other + identifier[at + 1 :]
                assert ids.owner(changed.encode()) is None, (identifier, changed)


def test_no_character_can_be_added_or_removed():
    ids = Ids(SECRET)
    for text in texts(50, 3):
        identifier = ids.tag(text, 7)
        for at in range(len(identifier)):
            assert ids.owner(identifier[:at].encode()) is None
            assert ids.owner(identifier[at + 1 :].encode()) is None
            assert ids.owner((identifier[:at] + identifier[at + 1 :]).encode()) is None
            for extra in "A-+= \n":
                assert ids.owner((identifier[:at] + extra + identifier[at:]).encode()) is None
                assert ids.owner((identifier + extra * (at + 1)).encode()) is None


def test_another_secret_reads_nothing():
    for text in texts(500, 4):
        assert Ids(bytes(16)).owner(Ids(SECRET).tag(text, 7).encode()) is None


def test_a_tag_belongs_to_one_text():
    ids = Ids(SECRET)
    identifiers = [ids.tag(text, 7) for text in texts(100, 5)]
    for one in identifiers:
        for other in identifiers:
            if one != other:
                assert ids.owner((one[:-TAG] + tag_of(other)).encode()) is None


def test_the_parts_of_two_tags_cannot_be_mixed():
    ids = Ids(SECRET)
    for text in texts(200, 6):
        one, other = ids.tag(text, 1), ids.tag(text, 2)
        assert ids.owner((one[:-4] + other[-4:]).encode()) is None
        assert ids.owner((other[:-4] + one[-4:]).encode()) is None


def test_tags_do_not_tell_the_owner():
    """Each character of the tags of one owner is any of 64, equally often, and two owners' tags have none in common."""
    ids = Ids(SECRET)
    chosen = texts(6400, 7)
    tags = {owner: [tag_of(ids.tag(text, owner)) for text in chosen] for owner in (1, 2)}
    assert len({*tags[1], *tags[2]}) == 2 * len(chosen)
    for some in tags.values():
        for column in zip(*some, strict=True):
            counts = Counter(column)
            assert len(counts) == 64
            # 100 expected, with a standard deviation of 10
            assert min(counts.values()) > 50
            assert max(counts.values()) < 150


def test_one_text_and_owner_have_one_id():
    assert Ids(SECRET).tag("a", 1) == Ids(SECRET).tag("a", 1)
    assert len({Ids(SECRET).tag("a", owner) for owner in range(1000)}) == 1000


def test_garbage_has_no_owner():
    ids = Ids(SECRET)
    chosen = random.Random(8)
    for size in range(200):
        assert ids.owner(chosen.randbytes(size)) is None
        assert ids.owner(bytes(chosen.choices(ALPHABET.encode(), k=size))) is None
    for value in (b"", b"a", b"=" * 16, b"a" + b"\xff" * 8, b"a" + b"\0" * 8, b"abc=====", b"aAAAAAA==", b"aAAAAA==="):
        assert ids.owner(value) is None


# --- UUIDs ---


def uuids(count: int, seed: int) -> list[UUID]:
    chosen = random.Random(seed)
    return [UUID(bytes=chosen.randbytes(16), version=4) for _ in range(count)]


@pytest.mark.parametrize("owner", [0, 1, 255, 256, 65536, OWNERS - 1])
def test_the_owner_is_in_the_node_of_a_uuid(owner: int):
    for uuid in uuids(50, 1):
        tagged = Ids(SECRET).tag_uuid(uuid, owner)
        assert (tagged.version, tagged.variant, tagged.hex[:20]) == (4, RFC_4122, uuid.hex[:20])
        for text in (str(tagged), tagged.hex, str(tagged).upper(), tagged.hex.upper()):
            assert Ids(SECRET).owner(text.encode()) == owner


def test_a_uuid_that_is_not_ours_has_no_owner():
    ids = Ids(SECRET)
    for uuid in uuids(50_000, 2):
        assert ids.owner(str(uuid).encode()) is None
        assert ids.owner(uuid.hex.encode()) is None
    for uuid in uuids(100, 3):
        assert Ids(bytes(16)).owner(str(ids.tag_uuid(uuid, 7)).encode()) is None


def test_no_character_of_a_uuid_can_be_changed_added_or_removed():
    ids = Ids(SECRET)
    for uuid in uuids(20, 4):
        for text in (str(ids.tag_uuid(uuid, 7)), ids.tag_uuid(uuid, 7).hex):
            for at in range(len(text)):
                assert ids.owner((text[:at] + text[at + 1 :]).encode()) is None
                for other in {*"0123456789abcdefg-"} - {text[at]}:
                    assert ids.owner((text[:at] + other + text[at + 1 :]).encode()) is None
                    assert ids.owner((text[:at] + other + text[at:]).encode()) is None


def test_nodes_do_not_tell_the_owner():
    ids = Ids(SECRET)
    nodes = {ids.tag_uuid(uuid, owner).node for uuid in uuids(5000, 5) for owner in (1, 2)}
    assert len(nodes) == 10_000
    counts = Counter(digit for node in nodes for digit in f"{node:012x}")
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_an_id_that_happens_to_look_like_a_uuid():
    """As one in 3 000 does that is made from a text of 24 digits, such as an ObjectId."""
    ids = Ids(SECRET)
    chosen = random.Random(9)
    found = 0
    while not found:
        text = f"{chosen.getrandbits(96):024x}"
        identifier = ids.tag(text, 7)
        found = bool(re.fullmatch("[0-9a-fA-F]{32}", identifier))
        assert ids.owner(identifier.encode()) == 7


def test_session_id_outside_a_sticky_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(current, "minter", None)
    assert session_id("mine") == "mine"
    assert len(session_id()) == 22
    assert session_id() != session_id()


def test_session_id_in_a_sticky_worker(monkeypatch: pytest.MonkeyPatch):
    minted = Metrics().worker(0).minted
    monkeypatch.setattr(current, "minter", Minter(Ids(SECRET), 9, minted.inc))
    assert session_id("mine") == Ids(SECRET).tag("mine", 9)
    assert len(session_id()) == 22 + TAG
    assert session_id() != session_id()
    assert Ids(SECRET).owner(session_id().encode()) == 9
    assert minted.value == 5


def test_uuids_of_a_worker(monkeypatch: pytest.MonkeyPatch):
    (uuid,) = uuids(1, 1)
    monkeypatch.setattr(current, "minter", None)
    assert own_uuid(uuid) == uuid
    assert new_uuid().version == 4
    minted = Metrics().worker(0).minted
    monkeypatch.setattr(current, "minter", Minter(Ids(SECRET), 9, minted.inc))
    assert own_uuid(uuid) == Ids(SECRET).tag_uuid(uuid, 9)
    assert Ids(SECRET).owner(new_uuid().hex.encode()) == 9
    assert new_uuid() != new_uuid()
    assert minted.value == 4


def test_an_id_is_tagged_once_for_its_worker(monkeypatch: pytest.MonkeyPatch):
    minted = Metrics().worker(0).minted
    monkeypatch.setattr(current, "minter", Minter(Ids(SECRET), 9, minted.inc))
    mine, others = Ids(SECRET).tag("mine", 9), Ids(SECRET).tag("mine", 8)
    assert own_id("größe") == Ids(SECRET).tag("größe", 9)
    assert own_id(mine) == mine
    assert own_id(others) == Ids(SECRET).tag(others, 9)
    assert minted.value == 2
    monkeypatch.setattr(current, "minter", None)
    assert own_id("mine") == "mine"
