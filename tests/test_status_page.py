"""The status page, in a browser."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.harness import PATIENCE, TESTS, addresses, npm_ci, wait_for
from support.pages import DOCS, blocks
from support.proxies import nginx
from support.status import Site, sigstop, well

from gunicorn_sticky.status.page import PAGE

pytestmark = pytest.mark.programs

BROWSER = TESTS / "browser"
CLIENTS = addresses(24 * 250)[::250]  # of 24 networks
#: Seconds after which the page shows that a worker is gone: what operators are promised.
PROMISE = 2.0
#: How often that is tried: what else the machine does makes some rounds slower, and none faster.
ROUNDS = 5
#: Holds new workers while they boot, as long as there is a file named "hold".
HOLD = """
import os
from waiting import wait_until

keepalive = 60
def post_fork(server, worker):
    wait_until(lambda: not os.path.exists("hold"))
"""


@pytest.fixture(scope="module", autouse=True)
def playwright() -> None:
    npm_ci(BROWSER)


class Page:
    """The page in a window of a browser; see tests/browser/status.mjs for what is known of it."""

    def __init__(self, browser: subprocess.Popen[str]) -> None:
        self.shown: dict[str, Any] = {}
        self._browser = browser

    def wait_for(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """Wait until what is shown meets a condition, and return it."""

        def met() -> dict[str, Any] | None:
            assert self._browser.poll() is None, "the browser has ended"
            shown = self.shown
            return shown if shown and condition(shown) else None

        try:
            return wait_for(met, what)
        except AssertionError:
            print(json.dumps(self.shown, indent=1))
            raise

    def wait_for_state(self, state: str) -> dict[str, Any]:
        return self.wait_for(lambda shown: shown["state"] == state, f"the page to say {state}")


@contextlib.contextmanager
def pages(site: Site | str, *views: tuple[int, str]) -> Iterator[list[Page]]:
    """Open the page of a server, or at a URL, in a window for each width and colour scheme."""
    url = site if isinstance(site, str) else f"http://127.0.0.1:{site.status_port}/"
    command = ["node", str(BROWSER / "status.mjs"), url, *(str(value) for view in views for value in view)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as browser:
        assert browser.stdout
        lines = browser.stdout
        windows = [Page(browser) for _ in views]

        def read() -> None:
            for line in lines:
                number, windows[number].shown = json.loads(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield windows
        finally:
            browser.terminate()
            browser.wait(PATIENCE)
            reader.join()


@contextlib.contextmanager
def page(site: Site | str, width: int = 1280) -> Iterator[Page]:
    with pages(site, (width, "light")) as (opened,):
        yield opened


@contextlib.contextmanager
def pretender(figures: Callable[[int], dict[str, Any]]) -> Iterator[str]:
    """Serve the page with made-up figures, by the number of the look at them, and yield its URL."""
    looks = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = "text/html", PAGE
            if self.path == "/status":
                kind, body = "application/json", json.dumps(figures(next(looks))).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def states(shown: dict[str, Any]) -> list[str]:
    return [row["worker"].split()[0] for row in shown["rows"]]


def ready(site: Site) -> list[int]:
    return [w["pid"] for slot in site.status()["slots"] for w in slot["workers"] if w["state"] == "ready"]


def test_load_a_crash_and_the_end():
    with well(config=HOLD) as site, contextlib.ExitStack() as stack, page(site) as opened:
        shown = opened.wait_for_state("ok")
        assert states(shown) == ["ready"] * 2
        assert [row["bar"] for row in shown["rows"]] == [0, 0]
        assert shown["title"] == f"ok: Gunicorn {site.pid}"
        for client in CLIENTS:
            kept = HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE, source_address=(client, 0))
            stack.callback(kept.close)
            kept.request("GET", "/")
            kept.getresponse().read()
        shown = opened.wait_for(
            lambda shown: sum(int(row["connections"]) for row in shown["rows"]) == len(CLIENTS), "all connections"
        )
        less, most = sorted(shown["rows"], key=lambda row: int(row["connections"]))
        assert most["bar"] > 50
        assert less["bar"] / most["bar"] == pytest.approx(int(less["connections"]) / int(most["connections"]), abs=0.01)
        assert re.search(rf"connections\s+{len(CLIENTS)}\s", shown["headline"])
        assert shown["facts"]["ip"].split()[-1] == str(len(CLIENTS))

        def is_busy(shown: dict[str, Any]) -> bool:
            site.slots(CLIENTS)
            rates = [float(row["requests/s"] or 0) for row in shown["rows"]]
            return all(rate > 0 for rate in rates) and re.search(r"requests/s\s+[1-9]", shown["headline"]) is not None

        opened.wait_for(is_busy, "requests of both slots")

        took: list[float] = []
        while min(took, default=PROMISE) >= PROMISE:
            assert len(took) < ROUNDS, took
            (site.folder / "hold").touch()
            victim = ready(site)[0]
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            shown = opened.wait_for_state("degraded")
            took.append(time.monotonic() - killed)
            assert len({*states(shown)} - {"ready"}) == 1
            assert re.search("Slot 0.*(down|starting)", shown["headline"])
            opened.wait_for(lambda shown: states(shown) == ["starting", "ready"], "a successor")
            (site.folder / "hold").unlink()
            shown = opened.wait_for_state("ok")
            assert shown["rows"][0]["restarts"].split() == [f"{len(took)}", f"+{len(took)}"]
            assert f"pid {victim}," not in shown["rows"][0]["worker"]
        assert shown["errors"] == []

        os.killpg(site.pid, signal.SIGKILL)
        shown = opened.wait_for_state("no answer")
        assert "does not answer since" in shown["silence"]
        assert shown["title"] == f"no answer: Gunicorn {site.pid}"
        assert shown["elsewhere"] == []


def test_the_end_is_shown_in_time():
    took: list[float] = []
    while min(took, default=PROMISE) >= PROMISE:
        assert len(took) < ROUNDS, took
        with well() as site, page(site) as opened:
            opened.wait_for_state("ok")
            os.killpg(site.pid, signal.SIGKILL)
            killed = time.monotonic()
            opened.wait_for_state("no answer")
            took.append(time.monotonic() - killed)


def test_it_goes_on_while_everything_stands_still():
    def time_of(shown: dict[str, Any]) -> str:
        headline: str = shown["headline"]
        return headline.partition("As of ")[2].partition(",")[0]

    with well() as site, page(site) as opened:
        opened.wait_for_state("ok")
        (dispatcher,) = site.alive("dispatcher")
        with sigstop([site.pid, *site.alive("worker")]):
            os.kill(dispatcher, signal.SIGKILL)
            shown = opened.wait_for(lambda shown: shown["facts"]["pid"] == "none", "the dispatcher's end")
            assert shown["state"] == "degraded"
            assert "No dispatcher" in shown["headline"]
            before = time_of(shown)
            opened.wait_for(lambda shown: time_of(shown) != before, "another answer")
        shown = opened.wait_for_state("ok")
        assert shown["facts"]["pid"] not in ("none", str(dispatcher))
        assert shown["errors"] == []


def test_a_draining_worker_stands_beside_its_successor():
    with well() as site, page(site) as opened:
        opened.wait_for_state("ok")
        with contextlib.closing(HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE)) as client:
            client.request("GET", "/hold")
            opened.wait_for(lambda shown: "1" in [row["connections"] for row in shown["rows"]], "a request")
            site.send_signal(signal.SIGHUP)
            shown = opened.wait_for(
                # The new dispatcher may be there later than the new workers.
                lambda shown: shown["state"] == "ok" and sorted(states(shown)) == ["draining", "ready", "ready"],
                "the old worker",
            )
            old = states(shown).index("draining")
            assert shown["rows"][old]["slot"] == shown["rows"][old - 1]["slot"]
            assert (shown["rows"][old]["restarts"], shown["rows"][old - 1]["restarts"]) == ("", "1\n+1")
            (site.folder / "release").touch()
            opened.wait_for(lambda shown: states(shown) == ["ready", "ready"], "the old worker's end")


def test_on_a_phone_and_in_the_dark():
    views = [(360, "dark"), (360, "light"), (1280, "light")]
    backgrounds = set()
    with well(config=HOLD) as site, pages(site, *views) as windows:
        for state in ("ok", "degraded", "down", "no answer"):
            if state == "no answer":
                os.killpg(site.pid, signal.SIGKILL)
            elif state != "ok":
                (site.folder / "hold").touch()
                os.kill(ready(site)[0], signal.SIGKILL)
            for (_, colours), opened in zip(views, windows, strict=True):
                shown = opened.wait_for_state(state)
                assert shown["overflow"] == 0
                assert shown["contrast"][0] >= 4.5, shown["contrast"]
                assert shown["unexplained"] == 0
                backgrounds.add((colours, shown["background"]))
    assert len(backgrounds) == len({background for _, background in backgrounds}) == 2


def test_below_a_path_behind_nginx_with_a_password(tmp_path: Path):
    (config,) = [block.text for block in blocks(DOCS / "status.md") if block.language == "nginx"]
    users = tmp_path / "users"
    users.write_text("operator:{PLAIN}secret\n")
    config = config.replace("/etc/nginx/status.htpasswd", str(users)).replace("127.0.0.1:9180", "127.0.0.1:8000")
    with (
        well() as site,
        nginx(tmp_path, site.status_port, config) as port,
        page(f"http://operator:secret@127.0.0.1:{port}/gunicorn/") as opened,
    ):
        shown = opened.wait_for_state("ok")
        assert shown["elsewhere"] == []
        os.killpg(site.pid, signal.SIGKILL)
        assert "502" in opened.wait_for_state("no answer")["silence"]


@pytest.mark.load
@pytest.mark.parametrize(("width", "count"), [(360, 24), (1280, 1024)])
def test_many_slots_some_of_them_odd(width: int, count: int):
    with well() as site:
        real = site.status()
    slot = real["slots"][0]
    (worker,) = slot["workers"]
    forked = {"pid": 0, "state": "starting", "age": real["time"], "cpu_seconds": 0.0, "memory_bytes": 0}

    def figures(look: int) -> dict[str, Any]:
        slots = [slot | {"slot": number, "requests": 7 * look} for number in range(count)]
        slots[1] |= {"state": "down", "workers": []}
        slots[2] |= {"state": "starting", "workers": [worker | forked]}
        slots[3] |= {"requests": 1000 - look}  # as if it began anew each time
        slots[4] |= {"workers": [worker | {"pid": 1, "cpu_seconds": 0.95 * look}]}
        for odd in slots[5:20]:
            odd["state"] = "starting"
        return real | {"state": "degraded", "time": real["time"] + look, "slots": slots}

    with pretender(figures) as url, page(url, width) as opened:
        shown = opened.wait_for(lambda shown: shown["rows"][0]["requests/s"] == "7", "a rate")
        assert len(shown["rows"]) == count
        assert states(shown)[:4] == ["ready", "down", "starting", "ready"]
        assert [row["worker"] for row in shown["rows"][1:3]] == ["down", "starting"]
        assert [row["requests/s"] for row in shown["rows"][1:5]] == ["7", "7", "", "7"]
        assert shown["rows"][4]["CPU"] == "95 %"
        assert "12 more slots have no worker" in shown["headline"]
        assert shown["overflow"] == 0
        assert shown["errors"] == []
