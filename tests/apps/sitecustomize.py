"""Saves servers of tests what the size of their environment costs.

In each worker gevent asks 25 times for its plugins, and each time all installed distributions are read: 0.2 s of CPU
in an environment with as many as that of the tests.
"""

import functools
from importlib import metadata
from typing import Any

_all = functools.cache(metadata.entry_points)


def _selected(**params: Any) -> Any:
    return _all().select(**params)


metadata.entry_points = _selected
