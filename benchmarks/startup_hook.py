"""What the start-up hook costs every Python program of the environment: run it with that environment's Python.

Each pair starts `python -c pass` with and without the hook, one right after the other, so that a busy machine slows
both; the median of the pairs' differences is the cost. Bytecode is cached, as `pip install .` does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

COMMAND = [sys.executable, "-c", "pass"]
DROPPED = ("GUNICORN_STICKY_HOOK", "PYTHONDONTWRITEBYTECODE")
WITH = {name: value for name, value in os.environ.items() if name not in DROPPED}
WITHOUT = WITH | {"GUNICORN_STICKY_HOOK": "0"}


def milliseconds(env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(COMMAND, env=env, check=True)
    return (time.perf_counter() - start) * 1e3


def main(pairs: int = 500) -> None:
    costs, bare = [], []
    for number in range(pairs):
        if number % 2:
            with_hook, without = milliseconds(WITH), milliseconds(WITHOUT)
        else:
            without, with_hook = milliseconds(WITHOUT), milliseconds(WITH)
        costs.append(with_hook - without)
        bare.append(without)
    low, middle, high = statistics.quantiles(costs, n=4)
    print(f"start of Python without the hook: {statistics.median(bare):.2f} ms (median of {pairs})")
    print(f"cost of the hook: {middle:.2f} ms (median of the pairs' differences; quartiles {low:.2f} and {high:.2f})")


if __name__ == "__main__":
    check = "import sys; sys.exit('gunicorn_sticky' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", check], env=WITH).returncode:
        sys.exit("The hook is not installed here: `pip install .` first")
    main(*map(int, sys.argv[1:]))
