"""The benchmark: that its clients and applications understand each other, and how ratios and bars come about."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from support.harness import TESTS, Server

BENCHMARKS = TESTS.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

from client import Load  # noqa: E402
from kind import KINDS, Kind, some  # noqa: E402
from report import WORKERS, Runs, Spread, bars, judge, troubles  # noqa: E402
from scaling_client import CLIENTS, SHARE, Visits  # noqa: E402
from workload import WORKLOADS  # noqa: E402

STOCK, STICKY, NGINX = "stock", "sticky by ip", "nginx + N servers"


def run(contender: str, number: int, figure: float, **more: Any) -> dict[str, Any]:
    about = {"kind": "uvicorn", "workers": WORKERS, "workload": "new connections", "round": number}
    return {**about, "contender": contender, "cpu": figure, "cpu_at_rate": figure, "p99": figure, "errors": {}, **more}


@pytest.mark.features
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_does_its_workloads(kind: Kind):
    args = (*kind.args(sticky=True), "--sticky-by", "session", "-w", str(WORKERS), "--keep-alive", "30", kind.app)
    with Server(*args, env={"PYTHONPATH": str(BENCHMARKS)}) as server:
        for workload in WORKLOADS:
            if kind.interface in workload.interfaces:
                seen = Load([server.port], workload.does, 30, clients=8, sessions=1).run()
                assert (seen["errors"], seen["requests"]) == ({}, 8 * workload.requests), workload.name


@pytest.mark.features
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_sessions_whose_requests_are_handed_over(kind: Kind):
    app = "asgi()" if kind.interface == "asgi" else "wsgi('threading')"
    args = (*kind.args(sticky=True), "--sticky-by", "session", "-w", str(WORKERS), "--keep-alive", "30")
    with Server(*args, f"scaling_app:{app}", env={"PYTHONPATH": str(BENCHMARKS)}) as server:
        # Nothing is handed over while the first one of them has all sessions.
        server.wait_for_log(r"Slot \d: ready", count=WORKERS)
        seen = Visits(ports=[server.port], seconds=30, sessions=3).report()
    assert (seen["errors"], seen["sessions"], seen["requests"]) == ({}, 3 * CLIENTS, 6 * CLIENTS)
    assert seen["handovers"] >= SHARE * seen["requests"] / 2


def test_ratios_are_those_of_runs_in_the_same_round():
    runs = [run(STOCK, 0, 1), run(STOCK, 1, 10), run(STICKY, 0, 2), run(STICKY, 1, 30), run(STICKY, 2, 500)]
    found = Runs([*runs, run(STOCK, 3, 1), run(STICKY, 3, 900, errors={"closed": 1})], "uvicorn")
    assert found.ratio("cpu", WORKERS, "new connections", STICKY, STOCK) == Spread.of([2, 3])
    assert found.ratio("cpu", WORKERS, "new connections", STICKY, NGINX) is None


@pytest.mark.parametrize(("figure", "met"), [(1.3, True), (1.35, True), (1.4, False)])
def test_a_bar_is_met_up_to_its_limit(figure: float, met: bool):
    results = {"runs": [run(STOCK, 0, 1), run(STICKY, 0, figure), run(NGINX, 0, figure)]}
    judged = {(bar["metric"], bar["other"]): bar for bar in judge(results)}
    assert set(judged) == {("cpu", STOCK), ("cpu", NGINX), ("cpu_at_rate", NGINX), ("p99", NGINX)}
    assert judged["cpu", STOCK]["met"] == met
    assert judged["p99", NGINX]["met"]


def test_bars_of_what_is_not_an_answer_to_requests():
    figures = {"stock worker": [10.0, 20.0], "worker": [10.5, 21.0], "dispatcher": [11.0, 22.0]}
    spread = {"median": 8.5, "low": 8.0, "high": 9.0}
    case = {"slots": 4, "silent": 0, "saturated_us": spread}
    dispatcher = {"cases": [{"by": "ip", **case}, {"by": "session", **case}, {"by": "ip", **case, "slots": 64}]}
    results = {"runs": [], "footprint": {"asgi": figures}, "dispatcher": dispatcher}
    assert [(bar["kind"], bar["contender"], bar["met"]) for bar in judge(results)] == [
        ("asgi", "dispatcher", False),
        ("asgi", "worker", True),
        ("every", "by ip", False),
        ("every", "by session", True),
    ]


def test_each_bar_is_about_those_who_take_part():
    interfaces = {kind.name: kind.interface for kind in KINDS}
    workloads = {workload.name: workload for workload in WORKLOADS}
    for bar in bars():
        workload = workloads[bar.workload]
        assert interfaces.get(bar.kind, "asgi") in workload.interfaces, bar
        assert {bar.contender, bar.other} <= set(workload.contenders), bar


def test_the_baseline_takes_part():
    for workload in WORKLOADS:
        assert workload.baseline in workload.contenders
        assert not workload.few or workload.baseline in workload.few
        assert set(workload.few) <= set(workload.contenders)


def test_some_of_a_list():
    assert [kind.name for kind in some("uvicorn,gevent", KINDS)] == ["gevent", "uvicorn"]
    assert some(None, WORKLOADS) == list(WORKLOADS)
    with pytest.raises(SystemExit, match="eventlet: choose from gevent"):
        some("eventlet,gevent", KINDS)


def test_trouble_names_its_kind():
    (line,) = troubles([run(STICKY, 2, 0, errors={"closed": 3})])
    assert line == "- uvicorn: sticky by ip, new connections, 2 workers, round 3: closed (3 times)"
    assert [*troubles([])] == ["None."]
