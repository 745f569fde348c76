"""How applications and configurations of the tests wait: for a condition, and no longer than any test does."""

import time

#: Seconds.
LONGEST = 120


def wait_until(condition, sleep=lambda seconds: time.sleep(seconds)):
    """Return as soon as ``condition()`` is true, under gevent as well, which replaces `time.sleep` later."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the test has not ended this wait")
        sleep(0.01)
