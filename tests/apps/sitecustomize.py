"""Saves servers of tests what the size of their environment costs.

In each worker gevent asks 25 times for its plugins, and each time all installed distributions are read: 0.2 s of CPU
in an environment with as many as that of the tests. None has such plugins but gevent itself.
"""

import functools
from importlib import metadata
from typing import Any

_entry_points = metadata.entry_points


@functools.cache
def _gevents_own() -> metadata.EntryPoints:
    return metadata.distribution("gevent").entry_points


def _without_others(**params: Any) -> Any:
    of_gevent = params.get("group", "").startswith("gevent.plugins.")
    return _gevents_own().select(**params) if of_gevent else _entry_points(**params)


metadata.entry_points = _without_others
