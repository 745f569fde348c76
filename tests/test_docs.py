"""The site builds, and every command and configuration that it shows is run, or read by what it is for.

A block that nothing here knows is an error, and so is one that cannot be run here, on a page that does not say so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from contextlib import closing
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import websocket
import yaml
from support.harness import APPS, BIN, PATIENCE, STICKY, TESTS, Server, clean_env, npm_ci
from support.pages import DOCS, ROOT, Block, blocks
from support.proxies import NGINX, nginx, reserved_port

import gunicorn_sticky
from gunicorn_sticky.settings import NAMES

pytestmark = pytest.mark.programs

EXAMPLES = ROOT / "examples"
GITHUB_PAGES = [ROOT / ".github" / name for name in ("SECURITY.md", "pull_request_template.md")]
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
#: What every page takes for granted.
PRELUDE = """
import gunicorn_sticky
import socketio
from flask import Flask
from flask_socketio import SocketIO
app = Flask(__name__)
sio = socketio.Server(async_mode="gevent")
announce = print
"""
#: A request that an application of Engine.IO and tests/apps/whoami.py answer, with all headers that can be the key.
PATH = "/socket.io/?EIO=4&transport=polling"
HEADERS = dict.fromkeys(("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "X-Tenant"), "203.0.113.7")
#: What is "app:app" unless a page says so.
APP = {"WSGI": "from whoami import app\n", "ASGI": "from as_asgi import whoami as app\n"}
ASGI = re.compile(r"ASGI|[Uu]vicorn")
#: Programs that act on what is not here, and what a page with one of them has to say.
ELSEWHERE = ("aws", "git", "heroku", "systemctl")
NOT_RUN = re.compile(r"\*\*not\*\*\s+been\s+(run|built)")


class Reader:
    """Someone who does what a page says, in a folder: writes its files and runs its commands, in their order."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.server: Server | None = None
        (folder / "app.py").write_text(APP["WSGI"])
        shutil.copytree(EXAMPLES / "django_socketio" / "mysite", folder / "mysite")

    def read(self, block: Block) -> None:
        text = block.text.replace("/run/chat/", f"{self.folder}/")
        readers: dict[str, Callable[[Block, str], None]] = {
            "dockerfile": self._dockerfile,
            "haproxy": self._haproxy,
            "html": self._file,
            "ini": self._unit,
            "nginx": self._nginx,
            "procfile": self._procfile,
            "python": self._python,
            "sh": self._sh,
            "text": self._text,
            "yaml": self._yaml,
        }
        assert block.language in readers, f"no test reads {block.language!r}: {block.text}"
        readers[block.language](block, text)

    def _file(self, block: Block, text: str) -> None:
        assert block.title, f"which file is this? {text}"
        (self.folder / Path(block.title).name).write_text(text)

    def _text(self, block: Block, text: str) -> None:
        """See test_what_the_pages_say_is_what_is_said."""
        if block.title == "requirements.txt":
            self._pip(["pip", "install", *text.splitlines()[1:]])

    def _elsewhere(self) -> None:
        assert NOT_RUN.search(self.page.read_text()), "the page does not say that this has not been run"

    def _check(self, *command: str, **env: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_env({"PYTHONPATH": f"{self.folder}{os.pathsep}{APPS}"} | env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (command, done.stdout)

    # --- commands ---

    def _sh(self, block: Block, text: str) -> None:
        programs: dict[str, Callable[[list[str]], None]] = {
            "gunicorn": self._serve,
            "gunicorn-sticky": lambda words: (self._status if words[1:2] == ["status"] else self._serve)(words),
            "kill": lambda words: None,  # see test_tutorial
            "make": self._make,
            "pip": self._pip,
            "pytest": self._pytest,
            "python": self._serve,
        }
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            program = Path(words[0]).name
            if program in ELSEWHERE:
                self._elsewhere()
                continue
            assert program in programs, f"no test runs {line}"
            programs[program](words)

    def _status(self, words: list[str]) -> None:
        """test_status.py runs it: here, there are such options."""
        help_ = subprocess.run(
            [str(BIN / words[0]), "status", "--help"], check=True, capture_output=True, text=True
        ).stdout
        for word in words[2:]:
            assert word in help_ or not word.startswith("-"), word

    def _make(self, words: list[str]) -> None:
        self._check("make", "--dry-run", "--directory", str(ROOT), *words[1:])

    def _pip(self, words: list[str]) -> None:
        """The tests of the installation run pip: here, the names are right."""
        assert words[:2] == ["pip", "install"]
        for name in words[2:]:
            assert version(name.partition("[")[0])

    def _pytest(self, words: list[str]) -> None:
        self._check(sys.executable, "-m", "pytest", "--collect-only", "-q", *(str(ROOT / word) for word in words[1:]))

    def _serve(self, words: list[str], *, address: bool = True, **env: str) -> None:
        """Run Gunicorn until the next one is run, with one worker and on another port, and send it a request."""
        self.close()
        own = {"python": [sys.executable]}.get(Path(words[0]).name, [str(BIN / Path(words[0]).name)])
        if words[0] == "python":
            assert words[1:3] == ["-m", "gunicorn_sticky"], words
            own, words = [*own, *words[1:3]], words[2:]
        arguments = words[1:]
        if "--bind" in arguments:
            arguments[arguments.index("--bind") + 1] = "127.0.0.1:0"
            address = False
        if "--sticky-status" in arguments:
            arguments[arguments.index("--sticky-status") + 1] = "127.0.0.1:0"
        config = self.folder / "gunicorn.conf.py"
        app = self.folder / "app.py"
        if app.read_text() in APP.values():  # not the page's own
            described = " ".join(arguments) + (config.read_text() if config.exists() else "")
            app.write_text(APP["ASGI" if ASGI.search(described) else "WSGI"])
        self.server = Server(
            *arguments,
            *(() if "WEB_CONCURRENCY" in env else ("-w", "1")),
            command=own,
            config=config.read_text() if config.exists() else "",
            bind="127.0.0.1:0" if address else None,
            env={"PYTHONPATH": f"{self.folder}{os.pathsep}{APPS}"} | env,
        )
        answer = self.server.get(PATH, headers=HEADERS)
        assert answer.status == 200, (words, answer, self.server.log)

    def close(self) -> None:
        if self.server:
            with self.server:
                pass  # which ends it
            self.server = None

    # --- files ---

    def _python(self, block: Block, text: str) -> None:
        if not block.title:
            self._check(sys.executable, "-c", PRELUDE + text, GUNICORN_STICKY_SLOT="0")
            return
        path = self.folder / block.title
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        if block.title == "gunicorn.conf.py":
            self._serve(["gunicorn", "app:app"])
            path.unlink()

    def _nginx(self, block: Block, text: str) -> None:
        """Those on the page about nginx are run by tests/test_proxies.py."""
        with reserved_port() as port:
            text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
            config = self.folder / "nginx.conf"
            config.write_text(f"pid {self.folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{text}}}\n")
            program = shutil.which("nginx") or "/usr/sbin/nginx"
            self._check(program, "-t", "-e", "stderr", "-p", str(self.folder), "-c", str(config))

    def _haproxy(self, block: Block, text: str) -> None:
        """Those on the page about HAProxy are run by tests/test_proxies.py."""
        config = self.folder / "haproxy.cfg"
        config.write_text(text)
        self._check(shutil.which("haproxy") or "/usr/sbin/haproxy", "-c", "-f", str(config))

    def _unit(self, block: Block, text: str) -> None:
        """A unit of systemd."""
        self._elsewhere()
        text = re.sub(r"/srv/\w+/venv/bin", str(BIN), text)
        path = self.folder / Path(block.title).name
        path.write_text(text)
        if shutil.which("systemd-analyze"):
            self._check("systemd-analyze", "verify", str(path), SYSTEMD_UNIT_PATH=f"{self.folder}:")
        unit = ConfigParser(interpolation=None, strict=False)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text.replace("\\\n", " "))
        if "Service" in unit:
            self._serve(shlex.split(unit["Service"]["ExecStart"]))
            assert self.server
            self._check("sh", "-c", unit["Service"]["ExecReload"], MAINPID=str(self.server.pid))
            self.server.wait_for_log("Hang up: Master")

    def _procfile(self, block: Block, text: str) -> None:
        self._elsewhere()
        kind, _, command = text.partition(": ")
        assert kind == "web"
        self._serve(shlex.split(command), address=False, PORT="0", WEB_CONCURRENCY="1")

    def _dockerfile(self, block: Block, text: str) -> None:
        self._elsewhere()
        lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
        steps = [line.partition(" ")[::2] for line in lines]
        assert [name for name, _ in steps] == ["FROM", "RUN", "WORKDIR", "COPY", "RUN", "COPY", "USER", "EXPOSE", "CMD"]
        self._serve(json.loads(steps[-1][1]))

    def _yaml(self, block: Block, text: str) -> None:
        """Only Gunicorn's part in it is run."""
        if block.title == "prometheus.yml":
            return  # see test_prometheus.py
        self._elsewhere()
        for document in yaml.safe_load_all(text):
            found = json.dumps(document)
            if "services" in document:  # Compose
                self._compose(document["services"])
            elif document.get("kind") == "Deployment":
                (container,) = document["spec"]["template"]["spec"]["containers"]
                self._serve(container["args"])
            elif document.get("kind") == "Service":
                assert document["spec"]["ports"][0]["targetPort"] == 8000
            elif "http" in document or "ingress" in document:  # Traefik, Cloudflare: where Gunicorn is by default
                assert "http://127.0.0.1:8000" in found
            else:
                assert list(document) in (["entryPoints", "providers"], ["metadata"]), document

    def _compose(self, services: dict[str, dict[str, Any]]) -> None:
        assert set(services) == {"app", "nginx"}
        known = (
            "build",
            "cpus",
            "depends_on",
            "healthcheck",
            "image",
            "ports",
            "stop_grace_period",
            "ulimits",
            "volumes",
        )
        assert {name for service in services.values() for name in service} <= {*known}
        kind, program, *words = services["app"]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        # The container that the Dockerfile before it makes.
        assert self.server
        address = f"127.0.0.1:{self.server.port}"
        self._check(sys.executable, *(word.replace("127.0.0.1:8000", address) for word in words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    with closing(Reader(page, tmp_path)) as reader:
        for block in blocks(page):
            reader.read(block)


def test_a_block_that_nothing_knows_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    reader = Reader(page, tmp_path)
    for text in ("```sh\nrm file\n```\n", "```\nwhat\n```\n", "- list\n\n  ```ruby\n  puts 1\n  ```\n"):
        page.write_text(text)
        (block,) = blocks(page)
        with pytest.raises(AssertionError, match="no test"):
            reader.read(block)
    page.write_text("```sh\naws s3 ls\n```\n")
    with pytest.raises(AssertionError, match="does not say"):
        reader.read(*blocks(page))


def plain(text: str) -> str:
    """Leave out what is another one each time: numbers and session ids."""
    return re.sub(r"\d+", "0", re.sub(r"(Invalid session) \S+", r"\1 ID", text))


EMBEDDER = """
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter

class Own(Arbiter):
    pass

class Embedder(WSGIApplication):
    def run(self):
        Own(self).run()

Embedder().run()
"""


def test_what_the_pages_say_is_what_is_said() -> None:
    """Each line of log or answer that a page shows comes from the program."""
    said = ""
    pages = {page.stem: page for page in PAGES}
    (log_format,) = {
        words[words.index("--access-logformat") + 1]
        for block in (*blocks(pages["reference"]), *blocks(pages["troubleshooting"]))
        if block.language == "sh" and "--access-logformat" in (words := shlex.split(block.text.replace("\\\n", " ")))
    }
    with Server(*STICKY, "-w", "1", "--access-logfile", "-", "--access-logformat", log_format, "whoami:app") as server:
        worker = server.who()["pid"]
        server.wait_for_log("GET / HTTP")
        server.wait_for_log("Slot 0: ready")
        os.kill(worker, signal.SIGKILL)
        server.wait_for_log("Slot 0: ready", count=2)
        said += server.log
    options = ("--sticky-proxy", "-w", "4", "--keep-alive", "60", "--log-level", "debug")
    with Server(*STICKY, *options, "whoami:app") as server:
        said += server.get().body.decode()
        server.wait_for_log("Refused a connection")
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as connection:
            for number in range(20):  # not all of them are for one slot
                connection.request("GET", "/", headers={"X-Forwarded-For": f"203.0.113.{number}"})
                connection.getresponse().read()
        server.wait_for_log("handed back by a worker")
        said += server.log
    with Server("-k", "gevent", "-w", "1", "sio_app:app") as server:
        # Any worker but the one that made it could be asked.
        assert server.get(PATH + "&sid=unknown").status == 400
        assert server.get(PATH, headers={"Origin": "https://chat.example.com"}).status == 400
        server.wait_for_log("origin")
        said += server.wait_for_log("Invalid session").string
    with Server(*STICKY, "whoami:app", env={"GUNICORN_STICKY_HOOK": "0"}) as server:
        server.process.wait(PATIENCE)
        said += server.log
    with Server(*STICKY, "whoami:app", command=[sys.executable, "-c", EMBEDDER]) as server:
        server.process.wait(PATIENCE)
        said += server.log
    for page in PAGES:
        for block in blocks(page):
            if block.language == "text" and not block.title:
                for line in block.text.splitlines():
                    assert plain(line) in plain(said), (page, line)


def test_upgrade_through_nginx(tmp_path: Path) -> None:
    """As browsers ask for it, with an Origin; without the lines for it, it fails as the troubleshooting says."""
    path = PATH.replace("polling", "websocket")
    without = re.sub(r".*(Upgrade|Connection) \$.*\n", "", NGINX)
    assert NGINX.count("\n") - without.count("\n") == 2
    with Server(*STICKY, "--sticky-by", "session", "-w", "1", "sio_app:app") as server:
        with nginx(tmp_path, server.port, NGINX) as port:
            websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=PATIENCE).close()
        with nginx(tmp_path, server.port, without) as port:
            with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
                websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=PATIENCE)
            server.wait_for_log("Invalid websocket upgrade")


def test_tutorial(tmp_path: Path) -> None:
    """Two windows of a browser on different workers talk, and the one whose worker is killed connects again."""
    page = DOCS / "tutorial.md"
    commands = [shlex.split(block.text) for block in blocks(page) if block.language == "sh"]
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    _, (_, *arguments), kill, _ = commands
    assert kill[:2] == ["kill", "-9"]
    npm_ci(TESTS / "browser")
    with Server(*arguments, env={"PYTHONPATH": str(tmp_path)}) as server:
        script = EXAMPLES / "chat" / "static" / "socket.io.min.js"
        command = ["node", str(TESTS / "browser" / "tutorial.mjs"), f"http://127.0.0.1:{server.port}", str(script)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=2 * PATIENCE, check=True)
        shown = json.loads(done.stdout)
        one, other = shown["workers"]
        assert one != other
        assert shown["heard"] == [[f"Hello (from {one})"]] * 2
        assert shown["again"] not in (one, "Connecting")
        assert shown["after"] == [f"Hello (from {one})", f"Still here (from {shown['again']})"]


# --- the site ---


@pytest.mark.parametrize("page", [*PAGES, *GITHUB_PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere_where_the_repository_is_shown(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
        assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    return folder


def test_settings_that_are_listed() -> None:
    """The documentation lists all of them, and the README, with the same words, those that everybody needs."""
    listed = (DOCS / "settings.rst").read_text().partition(".. sticky-settings::")[0]
    listed = " ".join(listed.replace("``", "`").split())
    assert sorted(re.findall(r"\* - `(sticky_\w+)`", listed)) == sorted(NAMES)
    rows = re.findall(
        r"^\| `(sticky_\w+)` \| `(--[\w-]+)` \| (.*?) ?\| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) == 5
    for name, flag, default, meaning in rows:
        assert flag == f"--{name.replace('_', '-')}"
        assert f"* - `{name}` - {default or 'not set'} - {meaning}" in listed


def test_site(site: Path) -> None:
    """It builds without a warning, and has all settings and all that is public."""
    assert {page.stem for page in PAGES if page.parent == DOCS} <= {page.stem for page in site.glob("*.html")}
    settings = (site / "settings.html").read_text()
    for name in NAMES:
        assert f'id="{name.replace("_", "-")}"' in settings
        if name != "sticky_connection":
            assert f"--{name.replace('_', '-')}" in settings
    documented = set(re.findall(r'id="gunicorn_sticky\.(\w+)"', (site / "api.html").read_text()))
    assert documented == set(gunicorn_sticky.__all__)


@pytest.mark.parametrize("name", ["bug", "idea", "config"])
def test_issue_templates(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    if name != "config":
        assert {"name", "description", "body"} <= set(form)
        assert all(field["type"] == "markdown" or field["id"] for field in form["body"])
