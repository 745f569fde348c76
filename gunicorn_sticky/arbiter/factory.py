"""Which arbiter a sticky application gets: where there is no Linux, one with a single worker."""

from __future__ import annotations

import sys
from typing import Any

from ..shared import current


def new_arbiter(app: Any, stock: Any) -> Any:
    """Return the arbiter for `app`, whose worker class is sticky; where that cannot be, one made by `stock`.

    Raises:
        RuntimeError: Gunicorn is not as we know it, or the configuration cannot work
    """
    if sys.platform != "linux":
        arbiter = _one_worker(stock)(app)
        arbiter.log.warning("Sticky sessions need Linux; on %s there is one worker, which serves all", sys.platform)
        return arbiter
    try:
        from .arbiter import Refused, StickyArbiter  # which need Linux, and much of Gunicorn
    except Exception as error:
        raise RuntimeError(current.refusal(error)) from error
    try:
        return StickyArbiter(app)
    except OSError as error:  # as there is no memory to share
        raise Refused(error.strerror or str(error)) from error


def _one_worker(stock: Any) -> Any:
    """Return an arbiter class that never has more than one worker."""

    class OneWorkerArbiter(stock):  # type: ignore[misc]
        num_workers = property(lambda self: 1, lambda self, value: None)

        def setup(self, app: Any) -> None:
            app.cfg.set("workers", 1)
            super().setup(app)

    return OneWorkerArbiter
