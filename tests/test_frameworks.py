"""Frameworks that are not installed beside the tests, but in .venv-frameworks: servers and clients run from there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
import socketio
from support.harness import APPS, TESTS, Server
from support.sio_client import disconnect

pytestmark = [pytest.mark.programs, pytest.mark.frameworks]

EXAMPLES = TESTS.parent / "examples"
FRAMEWORKS = TESTS.parent / ".venv-frameworks"
#: The older SDK of MCP, and whatever works only with that.
OLDER = {"PYTHONPATH": os.pathsep.join([str(APPS), str(FRAMEWORKS / "older")])}
WORKERS = 4
BY_SESSION = ("--sticky-by", "session")
#: Seconds that servers may take to start, and clients to end, beside other tests.
PATIENCE = 120.0


@contextmanager
def serve(example: str, *options: str, kind: str = "Uvicorn", env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run an example, or with the older SDK what is among the applications of the tests."""
    folder, _, app = example.partition("/")
    arguments = ("-k", f"gunicorn_sticky.{kind}StickyWorker", "-w", str(WORKERS), "--chdir", str(EXAMPLES / folder))
    with Server(*arguments, *options, app, command=[str(FRAMEWORKS / "bin" / "gunicorn")], env=env) as server:
        # Those who boot first would get all clients.
        server.wait_for_log(r"Slot \d: ready", count=WORKERS, timeout=PATIENCE)
        yield server


def run(client: str, server: Server, path: str, *arguments: object) -> Any:
    """Run one of clients/, and return what it prints."""
    words = [FRAMEWORKS / "bin" / "python", TESTS / "clients" / client, f"http://127.0.0.1:{server.port}{path}"]
    command = [str(word) for word in [*words, *arguments]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    return json.loads(done.stdout)


# --- Socket.IO ---


def test_fastapi_and_socketio() -> None:
    with serve("fastapi_socketio/app:app", *BY_SESSION) as server:
        answers = set()
        for transports in [["polling"], ["websocket"], ["polling", "websocket"]] * WORKERS:
            client = socketio.Client(reconnection=False, handle_sigint=False)
            client.connect(f"http://127.0.0.1:{server.port}", transports=transports, wait_timeout=PATIENCE)
            of_client = {client.call("hello", "you", timeout=PATIENCE) for _ in range(3)}
            disconnect(client)  # else a poll may be open for half a minute, also on stock uvicorn
            assert len(of_client) == 1
            answers |= of_client
        assert answers == {f"Hello you, this is slot {slot}" for slot in range(WORKERS)}
        assert server.get("/").body == b'"Hello"'


# --- MCP ---

BY_TOKEN = ("--sticky-by", "header", "--sticky-header", "authorization")
#: Imports once what takes each worker a second, and before there is anybody who could mint ids.
PRELOAD = "--preload"


@pytest.mark.parametrize(
    ("kind", "example", "path", "env", "sessions"),
    [
        pytest.param("Uvicorn", "mcp_server/app:app", "/mcp", {}, 100, id="uvicorn"),
        pytest.param("ASGI", "mcp_server/app:app", "/mcp", {}, 12, id="asgi"),
        pytest.param("Uvicorn", "mcp_server/app:sse", "/sse", {}, 12, id="sse"),
        pytest.param("Uvicorn", "mcp_server/older_mcp_app:app", "/mcp", OLDER, 12, id="older"),
        pytest.param("Uvicorn", "mcp_server/older_mcp_app:sse", "/sse", OLDER, 12, id="older sse"),
        # FastMCP 4 needs the newer SDK, and Python 3.11.
        pytest.param(
            "Uvicorn", "fastmcp/app:app", "/mcp", {} if sys.version_info >= (3, 11) else OLDER, 12, id="fastmcp"
        ),
    ],
)
def test_mcp_sessions(kind: str, example: str, path: str, env: dict[str, str], sessions: int) -> None:
    with serve(example, PRELOAD, *BY_SESSION, kind=kind, env=env) as server:
        found = run("mcp_sessions.py", server, path, sessions)
    assert found["failed"] == []
    assert found["slots"] == [str(slot) for slot in range(WORKERS)]


def test_mcp_without_sessions_needs_no_key() -> None:
    with serve("mcp_server/app:app", PRELOAD, *BY_SESSION) as server:
        answers = run("mcp_tokens.py", server, "/mcp", 4, "slot")
    slots = {slot for of_client in answers for (slot,) in of_client}
    assert len(slots) > 1, "one worker could have kept state as well"


def test_mcp_without_sessions_keeps_state_by_token() -> None:
    with serve("mcp_server/app:app", PRELOAD, *BY_TOKEN) as server:
        answers = run("mcp_tokens.py", server, "/mcp", 8, "note")
    assert len(answers) == 8
    for of_client in answers:
        for number, answer in enumerate(of_client):  # each has all notes of this client until then, and only those
            assert re.findall(r"note \d", str(answer)) == [f"note {before}" for before in range(number + 1)]
        assert len(of_client) == 6


# --- with browsers ---


def test_nicegui_by_session() -> None:
    with serve("nicegui/app:app", *BY_SESSION) as server:
        found = run("nicegui_pages.py", server, "/", 40)
    assert found["failed"] == []
    assert {UUID(of_page).version for of_page in found["ids"]} == {4}
    assert len(found["labels"]) == 40
    assert {*found["labels"]} == {f"3 clicks on slot {slot}" for slot in range(WORKERS)}


def test_nicegui_by_cookie() -> None:
    with serve("nicegui/app:app", PRELOAD, "--sticky-by", "cookie") as server:
        found = run("nicegui_pages.py", server, "/", 12)
    assert found["failed"] == []
    assert {*found["labels"]} == {f"3 clicks on slot {slot}" for slot in range(WORKERS)}


def test_gradio() -> None:
    with serve("gradio/app:app", PRELOAD, "--sticky-by", "cookie", env={"GRADIO_ANALYTICS_ENABLED": "False"}) as server:
        found = run("gradio_browsers.py", server, "/", 20)
    assert found["failed"] == []
    assert len(found["answers"]) == 20
    assert {*found["answers"]} == {f"one, two, three on slot {slot}" for slot in range(WORKERS)}


# --- what is relied on in them ---


@pytest.mark.parametrize("env", [{}, OLDER], ids=["newer", "older"])
def test_names(env: dict[str, str]) -> None:
    """The cases of test_upstream.py that are about MCP and NiceGUI."""
    command = [FRAMEWORKS / "bin" / "python", "-m", "pytest", "-q", "-W", "ignore", TESTS / "test_upstream.py"]
    command += ["-k", "what_we_take_it_for and " + ("mcp" if env else "(mcp or nicegui)")]
    subprocess.run([str(word) for word in command], check=True, timeout=PATIENCE, env=os.environ | env)
