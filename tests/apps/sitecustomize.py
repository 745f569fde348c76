"""Saves servers of tests what the size of their environment costs.

In each worker gevent asks 25 times for its plugins, and each time all installed distributions are read: 0.2 s of CPU
in an environment with as many as that of the tests.
"""

import functools
from importlib import metadata

_all = functools.cache(metadata.entry_points)
metadata.entry_points = lambda **params: _all().select(**params)
