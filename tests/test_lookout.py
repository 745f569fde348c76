"""Whether it pays to look at a queue once more."""

from __future__ import annotations

from gunicorn_sticky.shared.lookout import MOST, Lookout


def looks(lookout: Lookout, times: int, something: bool) -> int:
    count = 0
    for _ in range(times):
        if lookout.pays():
            lookout.found(something)
            count += 1
    return count


def test_where_there_is_something_each_look_pays():
    assert looks(Lookout(), 100, True) == 100


def test_where_there_is_nothing_few_looks_are_taken():
    lookout = Lookout()
    assert lookout.pays()
    lookout.found(False)
    assert not lookout.pays()
    assert looks(lookout, 100 * (MOST + 1), False) <= 105


def test_what_comes_is_found_in_the_end():
    lookout = Lookout()
    looks(lookout, 1000, False)
    assert looks(lookout, MOST + 10, True) >= 10
