"""From the runs to what is read: medians and quartiles, the bars, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from contender import CHOSEN, HERE, NODE
from kind import KINDS
from workload import MIXED, PROXIES, STICKY, WORKLOADS, Workload

TEMPLATE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- until here -->"
#: What the bars are about.
WORKERS = 2
#: Those with which each request is one of a known client, so that it can be told whether they are sticky.
KNOWN = ("new", "keep-alive")
#: Figures, and their digits.
DIGITS = {"cpu": 2, "cpu_at_rate": 2, "requests_per_second": 0, "p50": 2, "p99": 2}
#: The columns: titles, figures, and whom they are divided by; None for the figure as it is, "" for the baseline.
COLUMNS = (
    ("CPU seconds per 10 000", "cpu", None),
    ("ratio", "cpu", ""),
    ("at the steady rate", "cpu_at_rate", None),
    ("ratio", "cpu_at_rate", ""),
    ("a second", "requests_per_second", None),
    ("ratio", "requests_per_second", ""),
    ("p50, ms", "p50", None),
    ("p99, ms", "p99", None),
    ("ratio", "p99", ""),
    (f"to {CHOSEN}", "p99", CHOSEN),
    (f"to {PROXIES[0]}", "p99", PROXIES[0]),
)


class Spread(NamedTuple):
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(*values * 3)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def text(self, digits: int = 2) -> str:
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class Runs:
    """All runs that were not broken, of one kind of worker."""

    def __init__(self, runs: list[dict[str, Any]], kind: str) -> None:
        self._runs: dict[tuple[int, str, str], dict[int, dict[str, Any]]] = {}
        for run in runs:
            if not run["errors"] and run["kind"] == kind:
                key = run["workers"], run["workload"], run["contender"]
                self._runs.setdefault(key, {})[run["round"]] = run

    def workers(self) -> list[int]:
        return sorted({workers for workers, _, _ in self._runs})

    def of(self, workers: int, workload: str, contender: str) -> list[dict[str, Any]]:
        return list(self._runs.get((workers, workload, contender), {}).values())

    def spread(self, metric: str, *which: Any) -> Spread:
        return Spread.of([run[metric] for run in self.of(*which)])

    def ratio(self, metric: str, workers: int, workload: str, contender: str, other: str) -> Spread | None:
        """Compare runs of the same round, and only those."""
        own, others = (self._runs.get((workers, workload, name), {}) for name in (contender, other))
        ratios = [own[number][metric] / others[number][metric] for number in own if number in others]
        return Spread.of(ratios) if ratios else None


class Bar(NamedTuple):
    """What the project has promised itself: a ratio that is not to be higher than a limit."""

    kind: str
    workload: str
    metric: str
    contender: str
    other: str
    limit: float


def bars() -> Iterator[Bar]:
    new, kept = "new connections", "keep-alive"
    by_ip, by_header, by_session = STICKY
    yield Bar("gevent", new, "cpu_at_rate", by_ip, "stock", 1.00)
    yield Bar("gevent", new, "cpu_at_rate", by_header, "stock", 1.05)
    yield Bar("gevent", "Engine.IO polling", "cpu_at_rate", by_session, "stock -w 1", 1.15)
    yield Bar("gevent", "Engine.IO polling", "cpu", by_session, "stock -w 1", 1.00)
    yield Bar("gevent", MIXED, "cpu", "nginx keepalive + sticky by header", "nginx keepalive + N servers", 1.15)
    for all_of in WORKLOADS:
        for name in all_of.contenders:
            if "sticky by" in name and name not in NODE and "wsgi" in all_of.interfaces:
                yield Bar("threads", all_of.name, "cpu", name, all_of.baseline, 1.02)
                yield Bar("threads", all_of.name, "cpu_at_rate", name, all_of.baseline, 1.02)
    for kind, workload, *limits in (
        ("asgi", kept, 1.03, 1.15, 1.15),
        ("asgi", new, 1.10, 1.25, 1.25),
        ("uvicorn", kept, 1.03, 1.15, 1.15),
        ("uvicorn", new, 1.35, 1.60, 1.60),
    ):
        for name, limit in zip(STICKY, limits, strict=True):
            yield Bar(kind, workload, "cpu", name, "stock", limit)
    for name in STICKY:
        yield Bar("uvicorn", new, "cpu", name, PROXIES[0], 1.00)
        yield Bar("uvicorn", new, "cpu_at_rate", name, PROXIES[0], 1.00)
    for any_kind in KINDS:
        for name in STICKY:
            yield Bar(any_kind.name, new, "p99", name, CHOSEN, 1.10)
            yield Bar(any_kind.name, new, "p99", name, PROXIES[0], 1.00)


def judge(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Say of each bar that was measured whether it is met."""
    runs = by_kind(results)
    for bar in bars():
        if bar.kind in runs and (
            figure := runs[bar.kind].ratio(bar.metric, WORKERS, bar.workload, bar.contender, bar.other)
        ):
            yield verdict(bar, figure)
    for kind, figures in results.get("footprint", {}).items():
        for process, limit in (("dispatcher", 1.00), ("worker", 1.05)):
            bar = Bar(kind, "no application", "pss", process, "stock worker", limit)
            yield verdict(bar, paired(figures, process, "stock worker"))
    for case in results.get("dispatcher", {"cases": ()})["cases"]:
        if case["slots"] == 4 and not case["silent"]:
            bar = Bar("every", "dispatcher, saturated", "us", f"by {case['by']}", "", 8 if case["by"] == "ip" else 12)
            yield verdict(bar, Spread(**case["saturated_us"]))


def verdict(bar: Bar, figure: Spread) -> dict[str, Any]:
    return {**bar._asdict(), "figure": figure._asdict(), "met": figure.median <= bar.limit}


def paired(figures: dict[str, list[float]], name: str, other: str) -> Spread:
    """Compare figures of the same round, and only those."""
    return Spread.of([own / base for own, base in zip(figures[name], figures[other], strict=True)])


def bars_table(judged: list[dict[str, Any]]) -> Iterator[str]:
    what = {
        "p99": "p99 latency",
        "cpu": "CPU",
        "cpu_at_rate": "CPU at the steady rate",
        "pss": "memory (PSS)",
        "us": "µs of CPU",
    }
    yield "| kind | workload | figure | of | to | limit | median (quartiles) | |"
    yield "|---|---|---|---|---|---|---|---|"
    for bar in judged:
        yield (
            f"| {bar['kind']} | {bar['workload']} | {what[bar['metric']]} | {bar['contender']} | {bar['other']} "
            f"| {bar['limit']:.2f} | {Spread(**bar['figure']).text()} | {'met' if bar['met'] else '**missed**'} |"
        )


def footprint_table(footprint: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Show memory and start-up; beside what stock has as well, the ratio."""
    columns = (
        ("worker, MB", "worker", "stock worker"),
        ("master, MB", "master", "stock master"),
        ("dispatcher, MB", "dispatcher", ""),
        ("status server, MB", "status server", ""),
        ("open WebSocket, kB", "WebSocket", "stock WebSocket"),
        ("start-up, s", "start-up", "stock start-up"),
    )
    titles = [title for name, _, other in columns for title in ([f"stock {name}", name, "ratio"] if other else [name])]
    yield f"| kind | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for kind, figures in footprint.items():
        row = [kind]
        for _title, name, other in columns:
            row += [Spread.of(figures[other]).text()] if other else []
            row.append(Spread.of(figures[name]).text())
            row += [paired(figures, name, other).text()] if other else []
        yield f"| {' | '.join(row)} |"


def handover_table(handover: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    yield "| kind | stock, µs | one key, µs | two keys, µs | ratio to one key | a handover, µs |"
    yield "|---|---|---|---|---|---|"
    for kind, figures in handover.items():
        one, two = figures["one key"], figures["two keys"]
        row = [kind, *(Spread.of(figures[name]).text(0) for name in ("stock", "one key", "two keys"))]
        row += [paired(figures, "two keys", "one key").text()]
        row += [Spread.of([b - a for a, b in zip(one, two, strict=True)]).text(0)]
        yield f"| {' | '.join(row)} |"


def text(spread: Spread | None) -> str:
    return spread.text() if spread else ""


def label(name: str) -> str:
    return f"{name} (Node)" if name in NODE else name


def tables(runs: Runs, kind: str) -> Iterator[str]:
    for workers in runs.workers():
        for workload in WORKLOADS:
            names = [name for name in workload.contenders if runs.of(workers, workload.name, name)]
            if not names:
                continue
            rate = runs.of(workers, workload.name, names[0])[0]["rate"]
            yield f"### {kind}: {workload.name}, {workers} worker{'s'[: workers > 1]}\n"
            yield f"The steady rate is {rate:,.0f} a second; ratios that name nobody are to {workload.baseline}.\n"
            yield f"| | {' | '.join(title for title, _, _ in COLUMNS)} | sticky |"
            yield "|---" * (len(COLUMNS) + 2) + "|"
            for name in names:
                yield f"| {' | '.join([label(name), *cells(runs, workers, workload, name)])} |"
            yield ""


def cells(runs: Runs, workers: int, workload: Workload, name: str) -> Iterator[str]:
    which = (workers, workload.name, name)
    for _title, metric, other in COLUMNS:
        if other is None:
            yield runs.spread(metric, *which).text(DIGITS[metric])
        else:
            yield text(runs.ratio(metric, *which, other or workload.baseline))
    yield stickiness(runs.of(*which)) if workload.does in KNOWN else "it works"


def stickiness(runs: list[dict[str, Any]]) -> str:
    """Say how many clients were answered by more than one worker, and how many workers took part."""
    moved, clients = sum(run["moved"] for run in runs), sum(run["clients"] for run in runs)
    servers = min(run["servers"] for run in runs)
    return f"{'no' if moved else 'yes'}, {moved / clients:.0%} moved, {servers} worker{'s'[: servers > 1]}"


def troubles(entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        reasons = "; ".join(f"{reason} ({count} times)" for reason, count in entry["errors"].items())
        number = f", round {entry['round'] + 1}" if "round" in entry else ""
        workers = f"{entry['workers']} worker{'s'[: entry['workers'] > 1]}"
        yield f"- {entry['kind']}: {label(entry['contender'])}, {entry['workload']}, {workers}{number}: {reasons}"
    if not entries:
        yield "None."


def dispatcher_table(dispatcher: dict[str, Any]) -> Iterator[str]:
    names = list(dict.fromkeys(name for case in dispatcher["cases"] for name in case))
    yield f"| {' | '.join(names)} |".replace("_us", ", µs").replace("_per_s", " a second").replace("_", " ")
    yield "|---" * len(names) + "|"
    for case in dispatcher["cases"]:
        yield f"| {' | '.join(cell(case.get(name, '')) for name in names)} |"


def cell(value: Any) -> str:
    return Spread(**value).text(0 if value["median"] > 1000 else 2) if isinstance(value, dict) else str(value)


def by_kind(results: dict[str, Any]) -> dict[str, Runs]:
    """Return the runs of each kind that has some."""
    kinds = dict.fromkeys(run["kind"] for run in results["runs"] if not run["errors"])
    return {kind: Runs(results["runs"], kind) for kind in kinds}


def show(results: dict[str, Any]) -> None:
    """Print the bars, and all tables of servers."""
    lines = [line for kind, found in by_kind(results).items() for line in tables(found, kind)]
    lines += [*bars_table(list(judge(results))), "", "Cannot:", *troubles(results["cannot"])]
    print("\n".join([*lines, "Broken:", *troubles(results["broken"])]))


def write(results: dict[str, Any], plots: dict[str, str], output: Path) -> None:
    """Write benchmarks.md, and the figures beside its plots, and print what matters most.

    Args:
        results: all that was measured
        plots: titles of the plots in the folder "benchmarks", by the names of their files
        output: the folder
    """
    judged = results["bars"] = list(judge(results))
    (output / "benchmarks" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    machine = results["machine"]
    lines = [
        f"{results['date']}, {results['rounds']} rounds, seed {results['seed']}, on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in results['versions'].items())}.\n",
        "### Bars\n",
        *bars_table(judged),
        "",
        *(f"![{title}](benchmarks/{name})\n" for name, title in plots.items()),
        *(line for kind, found in by_kind(results).items() for line in tables(found, kind)),
        "### Memory and start-up\n",
        *footprint_table(results["footprint"]),
        "",
        "### A handover by itself\n",
        *handover_table(results["handover"]),
        "",
        "### The dispatcher alone\n",
        *dispatcher_table(results["dispatcher"]),
        "",
        "### What cannot be done\n",
        *troubles(results["cannot"]),
        "",
        "### Broken runs\n",
        *troubles(results["broken"]),
    ]
    before, _, rest = TEMPLATE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page = output / "benchmarks.md"
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")
    show(results)
    print(f"See {page}.")
