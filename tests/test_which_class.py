"""The table "Which worker class?": each command in it serves each sort of application that stands beside it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gunicorn import version_info
from support.harness import APPS, BIN, Server
from support.pages import ROOT

pytestmark = pytest.mark.programs

EXAMPLES = ROOT / "examples"
FRAMEWORKS = ROOT / ".venv-frameworks" / "bin"
#: Seconds that frameworks may take to be imported four times, beside other tests.
PATIENCE = 120.0
SOCKETIO = "/socket.io/?EIO=4&transport=polling"


@dataclass
class Application:
    """A small application of some sort, and a request that it answers."""

    name: str
    #: The text of app.py, or the folder that has one.
    source: str | Path
    path: str = "/"
    request: dict[str, Any] = field(default_factory=dict)
    #: Where it is installed.
    folder: Path = BIN

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.frameworks] if self.folder == FRAMEWORKS else []

    def write(self, folder: Path) -> Path:
        """Return the folder that has its app.py."""
        if isinstance(self.source, Path):
            return self.source
        (folder / "app.py").write_text(self.source)
        return folder


FLASK = """
from flask import Flask
from flask_socketio import SocketIO

app = Flask(__name__)
SocketIO(app, async_mode="threading")
"""
DJANGO = """
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
urlpatterns = [path("", lambda request: HttpResponse("Hello"))]
app = get_wsgi_application()
"""
STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("Hello"))])
"""
INITIALIZE = {
    "method": "POST",
    "headers": {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
    "body": """{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18",
        "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}""",
}
WSGI = Application("WSGI", "from whoami import app")
ASGI = Application("ASGI", "from as_asgi import whoami as app")
OF_ASGI = [
    Application("FastAPI", EXAMPLES / "fastapi_socketio", folder=FRAMEWORKS),
    Application("Starlette", STARLETTE, folder=FRAMEWORKS),
    Application("socketio.ASGIApp", "from async_sio_app import app", SOCKETIO),
    Application("MCP", EXAMPLES / "mcp_server", "/mcp", INITIALIZE, FRAMEWORKS),
    Application("NiceGUI", EXAMPLES / "nicegui", folder=FRAMEWORKS),
]
#: What the table's first column says. Chainlit was tried by hand, see docs/gradio.md.
APPLICATIONS = {
    "Flask-SocketIO, python-socketio in `gevent` mode; WSGI with many slow clients": [
        Application("Flask-SocketIO", EXAMPLES / "flask_socketio"),
        Application("python-socketio", EXAMPLES / "python_socketio", SOCKETIO),
        WSGI,
    ],
    "Flask-SocketIO in `threading` mode, Django, any WSGI": [
        Application("Flask-SocketIO", FLASK, SOCKETIO),
        Application("Django", DJANGO),
        WSGI,
    ],
    "FastAPI, Starlette, `socketio.ASGIApp`, MCP servers, NiceGUI": OF_ASGI,
    "the same, without uvicorn": OF_ASGI,
    "Gradio, Chainlit, and whatever has no session ids of its own": [
        Application("Gradio", EXAMPLES / "gradio", folder=FRAMEWORKS),
        ASGI,
    ],
    "state by client or tenant: caches, documents": [ASGI],
}


def table() -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows: application, class, key, command."""
    _, _, section = (ROOT / "README.md").read_text().partition("## Which worker class?\n")
    _, *rows = (line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| "))
    for row in rows:
        application, worker_class, key, command = row.strip("| ").split(" | ")
        yield application, worker_class, key, command.strip("`")


CASES = [
    pytest.param(command, application, id=f"{application.name}-{shlex.split(command)[2]}", marks=application.marks)
    for sort, _, _, command in table()
    for application in APPLICATIONS.get(sort, [])
    if "ASGIStickyWorker" not in command or version_info >= (27, 0, 1)
]


def test_the_table_says_what_its_commands_do() -> None:
    rows = list(table())
    assert [row[0] for row in rows] == list(APPLICATIONS)
    for _, worker_class, key, command in rows:
        words = shlex.split(command)
        named = re.findall(r"`(\w+StickyWorker)`", worker_class)
        assert words[:2] == ["gunicorn", "-k"]
        assert [words[2]] == [f"gunicorn_sticky.{name}" for name in named or [words[2].rpartition(".")[2]]]
        assert f"--sticky-by {key.strip('`')}" in command or ("`header`" in key and "--sticky-proxy" in command)


@pytest.mark.parametrize(("command", "application"), CASES)
def test_a_command_serves(command: str, application: Application, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    path = os.pathsep.join(map(str, [application.write(tmp_path), APPS]))
    options = ("--timeout", f"{PATIENCE:.0f}")
    with Server(*options, *arguments, command=[str(application.folder / program)], env={"PYTHONPATH": path}) as server:
        server.wait_for_log(r"Slot \d: ready", count=4, timeout=PATIENCE)
        # Behind a proxy, the client's address is in a header; elsewhere nobody looks at that.
        headers = {"X-Forwarded-For": "203.0.113.7", **application.request.get("headers", {})}
        response = server.get(application.path, **application.request | {"headers": headers})
        assert response.status == 200, response
        assert ("Set-Cookie" in response.headers) == ("--sticky-by cookie" in command)
        assert "Traceback" not in server.log
        assert server.stop() == 0
