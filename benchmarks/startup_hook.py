"""What the start-up hook costs programs that want nothing of it: run it with their environment's Python.

They are `python -c pass`, and a Gunicorn with sync workers, from its start to its first answer. Each pair starts one
with and without the hook, one right after the other, so that a busy machine slows both; the median of the pairs'
differences is the cost. Bytecode is cached, as `pip install .` does.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DROPPED = ("GUNICORN_STICKY_HOOK", "PYTHONDONTWRITEBYTECODE", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY")
WITH = {name: value for name, value in os.environ.items() if name not in DROPPED}
WITHOUT = WITH | {"GUNICORN_STICKY_HOOK": "0"}
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
PATIENCE = 30.0


def python(env: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", "pass"], env=env, check=True)


def gunicorn(env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a Gunicorn, and return it after its first answer. The request waits in the backlog meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, address = listener.fileno(), listener.getsockname()
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--log-level", "warning"]
        command += ["--no-control-socket", "-k", "sync", "app:app"]
        server = subprocess.Popen(command, env=env, pass_fds=[fd], start_new_session=True)
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200"), "Gunicorn has not answered"
    return server


def milliseconds(program: Callable[[dict[str, str]], subprocess.Popen[bytes] | None], env: dict[str, str]) -> float:
    start = time.perf_counter()
    running = program(env)
    taken = time.perf_counter() - start
    if running:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    return taken * 1e3


def compare(name: str, program: Callable[[dict[str, str]], subprocess.Popen[bytes] | None], pairs: int) -> None:
    costs, bare = [], []
    for number in range(pairs):
        if number % 2:
            with_hook, without = milliseconds(program, WITH), milliseconds(program, WITHOUT)
        else:
            without, with_hook = milliseconds(program, WITHOUT), milliseconds(program, WITH)
        costs.append(with_hook - without)
        bare.append(without)
    low, middle, high = statistics.quantiles(costs, n=4)
    print(f"{name} without the hook: {statistics.median(bare):.2f} ms (median of {pairs})")
    print(f"cost of the hook: {middle:.2f} ms (median of the pairs' differences; quartiles {low:.2f} and {high:.2f})")


def main(pairs: int = 500) -> None:
    compare("start of Python", python, pairs)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(APP)
        os.chdir(folder)
        milliseconds(gunicorn, WITH)  # compiles what has not been compiled
        compare("start of Gunicorn, to its first answer,", gunicorn, pairs // 5)
        os.chdir("/")


if __name__ == "__main__":
    check = "import sys; sys.exit('gunicorn_sticky' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", check], env=WITH).returncode:
        sys.exit("The hook is not installed here: `pip install .` first")
    main(*map(int, sys.argv[1:]))
