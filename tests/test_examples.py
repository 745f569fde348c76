"""The examples, run as their users run them."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import socketio
from requests.adapters import HTTPAdapter
from support.harness import PATIENCE, STICKY, TESTS, Server, addresses, clean_env, npm_ci, wait_for

pytestmark = pytest.mark.programs

EXAMPLES = TESTS.parent / "examples"
BROWSER = TESTS / "browser"
#: What the demo's set-up may start.
PYTHON_ONLY = {"echo", "python3", ".venv-demo/bin/pip", ".venv-demo/bin/python", "touch"}
#: Seconds until the chat's page shows all workers; it takes less than half a second where nothing else runs.
AT_ONCE = 15.0
DEMO = [sys.executable, str(EXAMPLES / "chat" / "demo.py")]
WORKERS = 4


class From(HTTPAdapter):
    """Connects from a given address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **kwargs)


@contextmanager
def client(server: Server, source: str, transports: list[str], **events: Any) -> Iterator[socketio.Client]:
    """Connect a Socket.IO client from the address `source`; each long-polling request is a new TCP connection."""
    with requests.Session() as session, ExitStack() as stack:
        session.trust_env = False
        session.headers["Connection"] = "close"
        session.mount("http://", From(source))
        options = {}
        if "websocket" in transports:  # websocket-client cannot be told where to connect from
            address = "127.0.0.1", server.port
            connection = socket.create_connection(address, PATIENCE, source_address=(source, 0))
            options["socket"] = stack.enter_context(connection)
        sio = socketio.Client(
            http_session=session,
            websocket_extra_options=options,
            request_timeout=PATIENCE,
            reconnection=False,
            handle_sigint=False,
        )
        for event, handler in events.items():
            sio.on(event, handler)
        sio.connect(f"http://127.0.0.1:{server.port}", transports=transports, wait_timeout=PATIENCE)
        try:
            yield sio
        finally:
            sio.disconnect()


# --- quick start ---


@pytest.mark.parametrize(
    ("example", "app"),
    [("flask_socketio", "app:app"), ("python_socketio", "app:app"), ("django_socketio", "mysite.wsgi")],
)
def test_quick_start(example: str, app: str) -> None:
    # Some clients connect before they have something to send.
    options = ("-w", str(WORKERS), "--keep-alive", "60", "--chdir", str(EXAMPLES / example))
    with Server(*STICKY, *options, app) as server:
        slots = set()
        for n, source in enumerate(addresses(12 * 250)[::250]):  # of 12 networks
            transports = [["polling"], ["websocket"], ["polling", "websocket"]][n % 3]
            with client(server, source, transports) as sio:
                answers = {sio.call("hello", "you", timeout=PATIENCE) for _ in range(3)}
            assert len(answers) == 1, answers
            slots |= answers
        assert slots <= {f"Hello you, this is slot {slot}" for slot in range(WORKERS)}
        assert len(slots) > 1
        if example != "python_socketio":  # which has no pages
            assert server.get("/").body == b"Hello\n"
        assert " 500 " not in server.log
        assert "Traceback" not in server.log


# --- sync ---


def test_sync() -> None:
    folder = EXAMPLES / "sync"
    with Server("--config", str(folder / "gunicorn.conf.py"), "--chdir", str(folder), "app:app") as server:
        # The application finds the state of each client, which nothing but the hook has loaded.
        for visit in (1, 2, 3):
            for source in addresses(8):
                response = server.get(source=source)
                assert response.status == 200
                assert response.body.startswith(f"Visit {visit} of {source} on slot ".encode())
        for source in addresses(8):
            assert server.log.count(f"Loaded the state of {source} ") == 1


# --- chat ---


@contextmanager
def demo(number: signal.Signals) -> Iterator[Server]:
    """Run the demo, which has to stop cleanly on a signal."""
    with Server(command=DEMO, bind=None, env={"PORT": "0"}) as server:
        try:
            server.wait_for_log("The chat is at")
            yield server
        finally:
            code = server.stop(number)  # it ends Gunicorn, which has a process group of its own
        gunicorn = int(server.wait_for_log(r"Listening at: .* \((\d+)\)").group(1))
        assert code == 0
        assert not Path(f"/proc/{gunicorn}").exists()
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log


class Guest:
    """Someone in the chat."""

    def __init__(self, stack: ExitStack, server: Server, transports: list[str]) -> None:
        self.rosters: dict[int, Any] = {}
        self.heard: list[str] = []
        self.slot: int | None = None
        self.pid: int | None = None
        self.client = stack.enter_context(
            client(server, "127.0.0.1", transports, welcome=self._welcome, roster=self._roster, said=self._said)
        )

    def _welcome(self, welcome: dict[str, Any]) -> None:
        self.slot, self.pid = welcome["slot"], welcome["pid"]

    def _roster(self, roster: dict[str, Any]) -> None:
        self.rosters[roster["slot"]] = roster

    def _said(self, message: dict[str, Any]) -> None:
        self.heard.append(message["text"])

    def wait_for_welcome(self) -> None:
        wait_for(lambda: self.slot is not None, "the welcome")

    def wait_for_texts(self, texts: list[str]) -> None:
        wait_for(lambda: set(texts) <= set(self.heard), f"all texts at slot {self.slot}")

    def wait_for_answers(self, answers: list[str]) -> None:
        """Wait until this guest has heard what begins with each of these."""
        wait_for(
            lambda: all(any(text.startswith(answer) for text in self.heard) for answer in answers),
            "an answer of each bot",
        )

    def wait_for_all_workers(self) -> None:
        """Wait until this guest hears every worker, which shows that its own worker listens to the others."""
        wait_for(lambda: len(self.rosters) == WORKERS, "the rosters of all workers")

    def wait_for_a_bot_on_each_worker(self) -> None:
        """Wait for that: at first, while workers boot, a bot may leave one where it is not alone."""

        def bots() -> list[list[str]]:
            return [[m["name"] for m in roster["members"] if m["bot"]] for roster in list(self.rosters.values())]

        wait_for(lambda: sorted(bots()) == [[f"Bot {number}"] for number in range(WORKERS)], "a bot on each worker")


@pytest.fixture(scope="module")
def chat() -> Iterator[Server]:
    with demo(signal.SIGTERM) as server:
        with ExitStack() as stack:
            Guest(stack, server, ["websocket"]).wait_for_a_bot_on_each_worker()
        yield server


def test_chat_shows_all_workers_and_a_line_before_anybody_has_typed() -> None:
    with demo(signal.SIGINT) as server, ExitStack() as stack:
        for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
            start = time.monotonic()
            guest = Guest(stack, server, transports)
            guest.wait_for_all_workers()
            assert time.monotonic() - start < AT_ONCE
            guest.wait_for_a_bot_on_each_worker()
            greeting = f"Welcome, Guest. I am process {guest.pid}, on slot {guest.slot}, "
            assert guest.heard[0].startswith(greeting), guest.heard
            assert sum(text.startswith("Welcome") for text in guest.heard) == 1


def test_demo_needs_nothing_but_python() -> None:
    """Whatever is there already, its set-up starts no other programs, and asks nobody to become root."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "demo"]
    done = subprocess.run(
        command, cwd=EXAMPLES.parent, env=clean_env({"MAKEFLAGS": ""}), check=True, capture_output=True, text=True
    )
    programs = [shlex.split(line)[0] for line in done.stdout.splitlines()]
    assert programs[-1] == ".venv-demo/bin/python"
    assert set(programs) <= PYTHON_ONLY


@pytest.mark.xdist_group("chat")
def test_chat_reaches_everybody_on_all_workers(chat: Server) -> None:
    with ExitStack() as stack:
        guests = []
        for transports in (["polling"], ["websocket"], ["polling", "websocket"]) * WORKERS:
            guests.append(guest := Guest(stack, chat, transports))
            guest.wait_for_welcome()
            guest.wait_for_all_workers()  # those who boot first would get all the others
        assert {guest.slot for guest in guests} == set(range(WORKERS))
        texts = [f"text {n}" for n in range(len(guests))]
        for guest, text in zip(guests, texts, strict=True):
            guest.client.emit("say", text)
        bots = {member["id"]: slot for slot, r in guests[0].rosters.items() for member in r["members"] if member["bot"]}
        assert len(bots) == WORKERS
        answers = [f"Heard you on slot {slot}, " for slot in bots.values()]
        for guest in guests:
            guest.wait_for_texts(texts)
            assert sum(text in texts for text in guest.heard) == len(texts)
            guest.wait_for_answers(answers)
        everybody = [member for roster in guests[0].rosters.values() for member in roster["members"]]
        assert {member["transport"] for member in everybody} == {"polling", "websocket"}


@pytest.fixture(scope="module")
def playwright() -> None:
    npm_ci(BROWSER)


@pytest.mark.xdist_group("chat")
@pytest.mark.usefixtures("playwright")
def test_two_browser_windows_on_different_workers_chat(chat: Server) -> None:
    command = ["node", str(BROWSER / "chat.mjs"), f"http://127.0.0.1:{chat.port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as browser:
        try:
            output, _ = browser.communicate(timeout=2 * PATIENCE)
        finally:
            browser.terminate()  # playwright closes the browser
    assert browser.returncode == 0
    shown = json.loads(output)
    assert shown.pop("process").startswith("process ")
    first = shown.pop("first")
    assert first.pop("seconds") < AT_ONCE
    greeting = first.pop("line")
    assert greeting.startswith("Welcome, Guest ")
    assert first == {"workers": [f"slot {slot}" for slot in range(WORKERS)], "bots": WORKERS}
    one, other = shown.pop("slots")
    assert f", on {one}, " in greeting
    assert one != other
    assert shown == {
        "asked": [one, one],
        "answered": [other, other],
        "workers": [f"slot {slot}" for slot in range(WORKERS)],
        "here": [one],
        "answers": f"24 requests, answered by 1 worker: {one}",
        "errors": [],
    }


def test_demo_says_that_the_port_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Server(command=DEMO, bind=None, env={"PORT": str(port)}) as server:
            assert server.process.wait(PATIENCE) == 1
            assert server.log == (
                f"Cannot listen on port {port} (Address already in use). Choose another one: PORT={port + 1}\n"
            )


# --- sessions of one's own ---


def session_server(app: str, key: str) -> Server:
    options = ("--sticky-by", "session", "--sticky-session-keys", key, "-w", str(WORKERS))
    return Server(*STICKY, *options, "--chdir", str(EXAMPLES / "sessions"), f"{app}:app")


def test_sse_sessions() -> None:
    with session_server("sse", "query:session_id") as server, ExitStack() as stack:
        streams = []
        for _ in range(12):
            stream = stack.enter_context(
                requests.get(f"http://127.0.0.1:{server.port}/stream", stream=True, timeout=PATIENCE)
            )
            lines = map(bytes.decode, stream.iter_lines())
            assert next(lines) == "event: session"
            streams.append((next(lines).removeprefix("data: "), lines))
        for session, lines in streams:
            assert server.get(f"/send?session_id={session}", method="POST", body=session[::-1]).status == 204
            assert next(line for line in lines if line) == f"data: {session[::-1]}"
        assert server.get("/send?session_id=nobody", method="POST", body="a").status == 404


def test_mcp_sessions() -> None:
    def call(method: str, session: str | None = None) -> tuple[int, str | None, bytes]:
        headers = {"Mcp-Session-Id": session} if session else {}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method})
        response = server.get(method="POST", body=body, headers=headers)
        return response.status, response.headers["Mcp-Session-Id"], response.body

    with session_server("mcp", "header:mcp-session-id") as server:
        sessions = [call("initialize")[1] for _ in range(12)]
        for count in (2, 3):
            for session in sessions:
                status, _, body = call("tools/list", session)
                assert (status, json.loads(body)["result"]) == (200, {"calls": count})
        assert call("tools/list", "nobody")[0] == 404


def test_cookie_sessions() -> None:
    with session_server("cookie", "cookie:cart") as server:
        shoppers = [requests.Session() for _ in range(12)]
        for shopper in shoppers:
            shopper.headers["Connection"] = "close"
            for thing in ("tea", "bread", "salt"):
                cart = shopper.get(f"http://127.0.0.1:{server.port}/{thing}", timeout=PATIENCE).text
            assert cart == "tea, bread, salt"
            shopper.close()
