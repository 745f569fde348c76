"""The hash from key to slot: even, consistent, secret."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gunicorn_sticky.routing.hashing import SECRET_SIZE, Slots
from gunicorn_sticky.routing.key import address_key

pytestmark = pytest.mark.features

SEED = random.Random(2014)
CLIENTS = 4000


def ipv4(number: int) -> str:
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))


POPULATIONS = {
    "random IPv4": [ipv4(n) for n in SEED.sample(range(1 << 24, 1 << 32), CLIENTS)],
    "one /24": [f"198.51.100.{n % 256}" for n in range(CLIENTS)],
    "one /16": [ipv4((10 << 24) + n) for n in SEED.sample(range(1 << 16), CLIENTS)],
    "random IPv6 /64s": [f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::1" for n in SEED.sample(range(1 << 32), CLIENTS)],
    "IPv4-mapped": [f"::ffff:{ipv4(n)}" for n in SEED.sample(range(1 << 24, 1 << 32), CLIENTS)],
}


def keys(name: str) -> list[str]:
    return [address_key(text, 64) or text for text in POPULATIONS[name]]


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("count", [2, 3, 4, 8, 16])
def test_spread_and_consistency(name: str, count: int):
    secrets = random.Random(f"{name} {count}")
    for _ in range(6):
        secret = secrets.randbytes(SECRET_SIZE)
        slots, more = Slots(secret, count), Slots(secret, count + 1)
        clients = keys(name)
        before = [slots.slot_of(key) for key in clients]
        after = [more.slot_of(key) for key in clients]
        assert len(set(before)) == count
        assert max(Counter(before).values()) <= 1.25 * CLIENTS / count
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        assert len(moved) / CLIENTS <= 1 / (count + 1) + 0.05
        assert set(moved) == {count}  # nobody moves between the slots that stay


@pytest.mark.parametrize("count", [2, 4, 8])
def test_neighbours_are_spread(count: int):
    secrets = random.Random(count)
    for start in range(1, 200, 7):
        slots = Slots(secrets.randbytes(SECRET_SIZE), count)
        used = Counter(slots.slot_of(f"198.51.100.{start + n}") for n in range(5 * count))
        assert len(used) == count
        assert max(used.values()) <= 10


def test_one_slot():
    assert Slots(bytes(SECRET_SIZE), 1).slot_of("1.2.3.4") == 0


def test_the_secret_decides():
    first, second = (Slots(SEED.randbytes(SECRET_SIZE), 8) for _ in range(2))
    clients = keys("one /16")
    same = sum(first.slot_of(key) == second.slot_of(key) for key in clients)
    assert same < CLIENTS / 4  # one in eight by chance
