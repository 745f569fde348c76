"""How evenly requests are spread over workers."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

#: Requests in a row, and by how much the fullest worker may have more than its share of them.
RUN, MOST = 200, 1.3


def worst(where: Sequence[Any], workers: int) -> float:
    """Return how many times its share a worker has got in any run.

    Args:
        where: who has served each of at least `RUN` requests
        workers: how many could have
    """
    assert len(where) >= RUN
    counts = collections.Counter(where[:RUN])
    most = max(counts.values())
    for leaves, comes in zip(where, where[RUN:], strict=False):
        counts[leaves] -= 1
        counts[comes] += 1
        most = max(most, counts[comes])
    return most / (RUN / workers)
