"""wrk, the load of HTTP that takes the least of the processors: as much as the server can take, from many clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONNECTIONS = 64
THREADS = 2
#: What source.c writes each connection's address over.
PLACEHOLDER = "255.255.255.255"


def build(folder: Path) -> Path:
    """Compile source.c."""
    library = folder / "source.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "source.c", "-ldl"], check=True)
    return library


def load(
    library: Path, ports: Sequence[int], seconds: float, keep_alive: bool, offset: int, keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Return how many requests were answered, in how many seconds, and what went wrong.

    Args:
        library: what `build` has returned
        ports: where to connect to; if there are several, each client always to the same one
        seconds: for so long
        keep_alive: whether connections stay open
        offset: the number of the first connection's address
        keys: what requests have as X-Forwarded-For, as long as an address: the first connection's have the first two in
            turn, the second one's the next two; by default their own addresses
    """
    command = ["wrk", "-t", str(THREADS), "-c", str(CONNECTIONS), "-d", "1m", "-s", str(HERE / "wrk.lua")]
    command += ["-H", f"X-Forwarded-For: {PLACEHOLDER}"]
    if not keep_alive:
        command += ["-H", "Connection: close"]
    command.append(f"http://127.0.0.1:{ports[0]}/")
    env = os.environ | {"LD_PRELOAD": str(library), "SOURCE_OFFSET": str(offset)}
    env["SOURCE_PORTS"] = ",".join(map(str, ports))
    if keys:
        env["SOURCE_KEYS"] = ",".join(keys)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:  # only whole seconds can be asked for
            process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    return dict(json.loads(output.splitlines()[-1]))
