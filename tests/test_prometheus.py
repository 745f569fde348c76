"""Metrics as Prometheus sees them: the real one, with the alerts and the dashboard of docs/prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from support.harness import TESTS, addresses, request, wait_for
from support.proxies import changed, reserved_port, running
from support.status import Site

pytestmark = pytest.mark.programs
#: Tests that share a server, and leave it as it is.
shared = pytest.mark.xdist_group("prometheus")

DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "prometheus.md").read_text()
ALERTS = DOCS / "prometheus" / "alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DOCS / "prometheus" / "dashboard.json").read_text())
TARGETS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"}
CLIENTS = addresses(24)
#: Workers that are held while they boot, for as long as there is a file.
HELD = """
import os
from waiting import wait_until

def post_fork(server, worker):
    wait_until(lambda: not os.path.exists("hold"))
"""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped(Site):
    """A server with a status server."""

    def scrape(self) -> str:
        response = self.ask("/metrics")
        assert response.status == 200, response
        return response.body.decode()

    def families(self) -> list[Metric]:
        return list(parser.text_string_to_metric_families(self.scrape()))

    def samples(self) -> Samples:
        """Return the values of all series."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families()
            for sample in family.samples
        }


@contextlib.contextmanager
def well(*args: str, **kwargs: Any) -> Iterator[Scraped]:
    with Scraped(*args, **kwargs) as server:
        server.wait_for_state("ok")
        yield server


@pytest.fixture(scope="module")
def quiet() -> Iterator[Scraped]:
    with well() as server:
        yield server


def key(name: str, **labels: object) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"gunicorn_sticky_{name}", frozenset((label, str(value)) for label, value in labels.items())


def promtool(*args: str, text: str = "") -> str:
    command = ["promtool", *args]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- what is at /metrics ---


@shared
def test_formats(quiet: Scraped):
    text = quiet.scrape()
    assert promtool("check", "metrics", text=text) == ""
    response = quiet.ask("/metrics", headers=OPENMETRICS)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0;")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(response.body.decode())}
    plain = list(parser.text_string_to_metric_families(text))
    assert list(families) == [family.name for family in plain]
    for family in plain:
        other = families[family.name]
        assert (family.type, family.documentation) == (other.type, other.documentation)
        assert [sample[:2] for sample in family.samples] == [sample[:2] for sample in other.samples]


@shared
@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "a" * 5000, ";;=,,"])
def test_a_strange_wish_gets_the_plain_format(quiet: Scraped, accept: str):
    response = quiet.ask("/metrics", headers={"Accept": accept})
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_all_figures():
    """What /status has is at /metrics, except for process ids."""
    with well("--sticky-proxy") as server:
        forwarded = [{"X-Forwarded-For": client} for client in CLIENTS]
        for headers in (*forwarded, {}):
            server.get(headers=headers)
        wait_for(
            lambda: sum(slot["requests"] for slot in server.status()["slots"]) == len(CLIENTS), "them to be counted"
        )
        wait_for(
            lambda: (
                not any(
                    slot["waiting"] or sum(worker["connections"] for worker in slot["workers"])
                    for slot in server.status()["slots"]
                )
            ),
            "the connections' end",  # the master says once a second how many wait
        )
        seen, samples = server.status(), server.samples()
    expected = {
        key("in_charge"): 1,
        key("imbalance_ratio"): seen["imbalance"],
        **{key("state", state=state): state == "ok" for state in ("ok", "degraded", "down")},
    }
    for slot in seen["slots"]:
        labels = {"slot": slot["slot"]}
        expected |= {
            **{
                key("slot_state", state=state, **labels): state == "ready"
                for state in ("ready", "starting", "draining", "down")
            },
            key("slot_waiting_connections", **labels): slot["waiting"],
            key("slot_requests_total", **labels): slot["requests"],
            key("slot_dispatched_connections_total", **labels): slot["dispatched"],
            key("slot_minted_sessions_total", **labels): slot["minted"],
            key("slot_handed_over_connections_total", **labels): slot["handed_over"],
            key("slot_taken_over_connections_total", **labels): slot["taken_over"],
            key("slot_refusals_total", **labels): slot["refused"],
            key("slot_restarts_total", **labels): slot["restarts"],
        }
        (worker,) = slot["workers"]
        labels["seat"] = worker["seat"]
        expected |= {
            **{
                key("worker_state", state=state, **labels): state == "ready"
                for state in ("ready", "starting", "draining")
            },
            key("worker_connections", **labels): worker["connections"],
            **process("worker", worker, seen["time"], **labels),
        }
    dispatcher = seen["dispatcher"]
    expected |= {
        key("dispatcher_up"): 1,
        **process("dispatcher", dispatcher, seen["time"]),
        key("dispatcher_peeking_connections"): dispatcher["peeking"],
        key("dispatcher_held_connections"): dispatcher["held"],
        key("dispatcher_full_channels"): dispatcher["full"],
        key("dispatcher_accepted_connections_total"): dispatcher["accepted"],
        key("dispatcher_handed_back_connections_total"): dispatcher["handed_back"],
        key("dispatcher_moved_connections_total"): dispatcher["moved"],
        **{key("dispatcher_refusals_total", status=status): n for status, n in dispatcher["refused"].items()},
        **{key("dispatcher_keys_total", source=source): n for source, n in dispatcher["keys"].items()},
    }
    assert set(samples) == set(expected)
    for place, value in samples.items():
        # CPU time and memory go on.
        within = {"seconds": 1.0, "memory": 1 << 22, "time": 0.002}.get(place[0].split("_")[-2], 0)
        assert abs(value - expected[place]) <= within, (place, value, expected[place])
    assert samples[key("dispatcher_accepted_connections_total")] == len(CLIENTS) + 1
    assert samples[key("dispatcher_refusals_total", status=400)] == 1


def process(kind: str, figures: dict[str, Any], now: float, **labels: object) -> Samples:
    return {
        key(f"{kind}_cpu_seconds_total", **labels): figures["cpu_seconds"],
        key(f"{kind}_resident_memory_bytes", **labels): figures["memory_bytes"],
        key(f"{kind}_start_time_seconds", **labels): now - figures["age"],
    }


def test_counters_never_go_down():
    """CPU time begins anew with a process, and then so does its start."""
    with well() as server:
        before: dict[Any, tuple[float, float]] = {}

        def look() -> bool:
            now = server.samples()
            for place, value in now.items():
                name, labels = place
                if name.endswith("_total"):
                    start = 0.0
                    if "cpu" in name:
                        start = now[name.replace("cpu_seconds_total", "start_time_seconds"), labels]
                    last_start, last = before.get(place, (start, 0.0))
                    assert start != last_start or value >= last, place
                    before[place] = start, value
            return bool(server.status()["state"] == "ok")

        def total(name: str) -> float:
            return sum(value for (found, _), (_, value) in before.items() if found == f"gunicorn_sticky_{name}_total")

        server.slots(CLIENTS)
        for kind in ("worker", "dispatcher"):
            known = server.alive(kind)
            os.kill(known[0], signal.SIGKILL)
            wait_for(lambda: look() and len(set(server.alive(kind)) - set(known)) == 1, "a successor")  # noqa: B023
        known = server.alive("worker")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: look() and not set(server.alive("worker")) & set(known), "new workers")
        server.slots(CLIENTS)
        wait_for(lambda: look() and total("slot_requests") == 2 * len(CLIENTS), "all requests")
        assert total("dispatcher_accepted_connections") == 2 * len(CLIENTS)
        assert total("slot_restarts") == 3


def test_a_dispatcher_that_is_gone():
    with well() as server:
        (dispatcher,) = server.alive("dispatcher")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            os.kill(dispatcher, signal.SIGKILL)
            wait_for(lambda: server.samples()[key("dispatcher_up")] == 0, "its end to be seen")
            samples = server.samples()
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert samples[key("state", state="degraded")] == 1
    assert not any(name.startswith("gunicorn_sticky_dispatcher_start") for name, _ in samples)


def test_without_the_client_library(tmp_path: Path):
    hide = "import sys; sys.modules['prometheus_client'] = None; sys.argv[0] = 'gunicorn'\n"
    (tmp_path / "gunicorn").write_text(hide + "from gunicorn.app.wsgiapp import run; run()")
    with well(command=[sys.executable, str(tmp_path / "gunicorn")]) as server:
        response = server.ask("/metrics")
        assert response.status == 501
        assert b'pip install "gunicorn-sticky[prometheus]"' in response.body
        server.wait_for_log(r"\[INFO\] Metrics for Prometheus need")


# --- the page, the alerts and the dashboard ---


def test_the_page_lists_the_alerts():
    assert re.findall(r"^\| `(\w+)` \| (critical|warning) \|", PAGE, re.MULTILINE) == [
        (rule["alert"], rule["labels"]["severity"]) for rule in RULES
    ]


@shared
def test_what_alerts_and_dashboard_ask_for_is_there(quiet: Scraped):
    variables = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"][1:]]
    asked = [*(rule["expr"] for rule in RULES), *TARGETS, *variables]
    names = {name for text in asked for name in re.findall(r"gunicorn_sticky_\w+", text)}
    assert len(names) > 10
    assert names <= {name for name, _ in quiet.samples()}


def test_dashboard_is_one():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_alerts():
    promtool("check", "rules", "--lint-fatal", str(ALERTS))
    promtool("test", "rules", str(TESTS / "alerts.yml"))
    fired = set(re.findall(r'alertname="(\w+)"', (TESTS / "alerts.yml").read_text()))
    assert fired == {rule["alert"] for rule in RULES}


# --- Prometheus ---


class Prometheus:
    """A Prometheus that scrapes a server each second, as the page says."""

    def __init__(self, port: int) -> None:
        self._port = port

    def _get(self, path: str, **query: str) -> Any:
        response = request(self._port, f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        answer = json.loads(response.body)
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the series that an expression has at this moment, without those that are no numbers."""
        found = [(row["metric"], float(row["value"][1])) for row in self._get("query", query=expression)["result"]]
        return [(labels, value) for labels, value in found if value == value]

    def instances(self) -> list[str]:
        return list(self._get("label/instance/values", **{"match[]": "gunicorn_sticky_state"}))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> set[str]:
        """Return the alerts that fire, or will if it stays so."""
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"]}


@contextlib.contextmanager
def prometheus(folder: Path, server: Scraped) -> Iterator[Prometheus]:
    (config,) = re.findall(r"```yaml\n(# prometheus.yml\n.*?)```", PAGE, re.DOTALL)
    config = changed(changed(config, "9180", str(server.status_port)), "15s", "1s")
    (folder / "prometheus.yml").write_text(f"global: {{evaluation_interval: 1s}}\n{config}")
    shutil.copy(ALERTS, folder)
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "log.level": "warn",
    }
    with reserved_port() as port:
        options["web.listen-address"] = f"127.0.0.1:{port}"
        with running(folder, ["prometheus", *(f"--{name}={value}" for name, value in options.items())], port):
            wait_for(lambda: request(port, "/-/ready").status == 200, "Prometheus to be ready")
            yield Prometheus(port)


def test_prometheus(tmp_path: Path):
    """All panels have data, all alerts can be evaluated, and a worker that does not come back is noticed."""
    with well(config=HELD) as server, prometheus(tmp_path, server) as seen:
        wait_for(lambda: seen.query('up{job="gunicorn_sticky"} == 1'), "the server to be scraped")
        (instance,) = wait_for(seen.instances, "the server to be in Grafana's list")
        for target in TARGETS:
            expression = target.replace("$instance", instance).replace("$__rate_interval", "10s")
            wait_for(lambda: server.get() and seen.query(expression), expression)  # noqa: B023
        wait_for(lambda: all(rule["health"] == "ok" for rule in seen.rules()), "the rules to be evaluated")
        assert [rule["name"] for rule in seen.rules()] == [rule["alert"] for rule in RULES]
        wait_for(lambda: not seen.alerts(), "no alerts")

        (server.folder / "hold").touch()
        slot = server.who()["slot"]
        os.kill(server.who()["pid"], signal.SIGKILL)
        starting = f'gunicorn_sticky_slot_state{{slot="{slot}",state="starting"}} == 1'
        wait_for(lambda: seen.query(starting), "the slot to be without a worker that is ready")
        # Not at once: if a scrape takes too long, there is nothing until the next one.
        wait_for(lambda: seen.query('gunicorn_sticky_state{state="degraded"} == 1'), "the server to be degraded")
        wait_for(lambda: seen.alerts() == {"GunicornStickySlotDown", "GunicornStickyDegraded"}, "alerts to be pending")
        (server.folder / "hold").unlink()
        ready = f'gunicorn_sticky_slot_state{{slot="{slot}",state="ready"}} == 1'
        wait_for(lambda: seen.query(ready), "the slot to have a worker again")
        wait_for(lambda: not seen.alerts(), "the alerts' end")
        restarts = f'gunicorn_sticky_slot_restarts_total{{slot="{slot}"}}'
        assert wait_for(lambda: seen.query(restarts), "the slot's restarts")[0][1] == 1

        server.stop()
        wait_for(lambda: seen.alerts() == {"GunicornStickyNoScrape"}, "the server's end to be noticed")
