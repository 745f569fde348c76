"""From the runs to what is read: medians and quartiles, the bars, plots, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("svg")

from contender import HERE, NODE
from matplotlib import pyplot
from workload import PROXIES, STICKY, WORKLOADS

TEMPLATE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- until here -->"
#: What the bars are about.
WORKERS = 2
#: Those with which each request is one of a known client, so that it can be told whether they are sticky.
KINDS = ("new", "keep-alive")
#: Columns, and the digits of their figures.
METRICS = (("cpu", 2), ("cpu_at_rate", 2), ("requests_per_second", 0), ("p50", 2), ("p99", 2))
MIXED = "behind nginx keepalive"


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
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class Runs:
    """All runs that were not broken."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._runs: dict[tuple[int, str, str], dict[int, dict[str, Any]]] = {}
        for run in runs:
            if not run["errors"]:
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


def bars(runs: Runs) -> Iterator[dict[str, Any]]:
    """Judge what the project has promised itself."""

    def bar(workload: str, contender: str, other: str, limit: float, metric: str = "cpu") -> dict[str, Any]:
        figure = runs.ratio(metric, WORKERS, workload, contender, other)
        return {
            "workload": workload,
            "metric": metric,
            "contender": contender,
            "other": other,
            "limit": limit,
            "figure": figure,
            "met": figure.median <= limit if figure else None,
            "at_rate": runs.ratio("cpu_at_rate", WORKERS, workload, contender, other) if metric == "cpu" else None,
        }

    by_ip, by_header, by_session = STICKY
    yield bar("new connections", by_ip, "stock", 1.02)
    yield bar("new connections", by_header, "stock", 1.06)
    yield bar("Engine.IO polling", by_session, "stock -w 1", 1.08)
    for name in STICKY:
        yield bar("keep-alive", name, "stock", 1.02)
    yield bar(MIXED, "nginx keepalive + sticky by header", PROXIES[0], 1.00)
    for workload in WORKLOADS:
        for other, limit in zip(PROXIES, (0.90, 0.80), strict=True):
            if workload.name != MIXED:
                yield bar(workload.name, by_ip, other, limit)
    for workload in WORKLOADS:
        for name in workload.contenders:
            if "sticky by" in name:
                yield bar(workload.name, name, workload.baseline, 1.25, "p99")


def bars_table(judged: list[dict[str, Any]]) -> Iterator[str]:
    yield "| workload | figure | ratio of | to | limit | median (quartiles) | | at the steady rate |"
    yield "|---|---|---|---|---|---|---|---|"
    for bar in judged:
        if bar["figure"]:
            verdict = "met" if bar["met"] else "**not met**"
            what = "p99 latency" if bar["metric"] == "p99" else "CPU"
            yield (
                f"| {bar['workload']} | {what} | {bar['contender']} | {bar['other']} "
                f"| {bar['limit']:.2f} | {bar['figure'].text()} | {verdict} | {text(bar['at_rate'])} |"
            )


def text(spread: Spread | None) -> str:
    return spread.text() if spread else ""


def label(name: str) -> str:
    return f"{name} (Node)" if name in NODE else name


def tables(runs: Runs) -> Iterator[str]:
    for workers in runs.workers():
        for workload in WORKLOADS:
            names = [name for name in workload.contenders if runs.of(workers, workload.name, name)]
            if not names:
                continue
            rate = runs.of(workers, workload.name, names[0])[0]["rate"]
            yield f"### {workload.name}, {workers} worker{'s'[: workers > 1]}\n"
            yield f"The steady rate is {rate:,.0f} a second; ratios are to {workload.baseline}.\n"
            yield (
                "| | CPU seconds per 10 000 | ratio | at the steady rate | ratio | a second | ratio "
                "| p50, ms | p99, ms | ratio | sticky |"
            )
            yield "|---" * 11 + "|"
            for name in names:
                which = (workers, workload.name, name)
                cells = [label(name)]
                for metric, digits in METRICS:
                    cells.append(runs.spread(metric, *which).text(digits))
                    if metric != "p50":
                        cells.append(text(runs.ratio(metric, *which, workload.baseline)))
                cells.append(stickiness(runs.of(*which)) if workload.kind in KINDS else "it works")
                yield f"| {' | '.join(cells)} |"
            yield ""


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
        yield f"- {label(entry['contender'])}, {entry['workload']}, {workers}{number}: {reasons}"
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


def plot(runs: Runs, metric: str, title: str, path: Path) -> None:
    """Draw one bar for each contender, with quartiles, workload by workload."""
    shown = [
        (workload, ratios)
        for workload in WORKLOADS
        if (
            ratios := [
                (label(name), ratio)
                for name in workload.contenders
                if (ratio := runs.ratio(metric, WORKERS, workload.name, name, workload.baseline))
            ]
        )
    ]
    heights = [len(ratios) + 2 for _, ratios in shown]
    figure, axes = pyplot.subplots(
        len(shown), figsize=(8, 0.3 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    for (workload, ratios), axis in zip(shown, axes[:, 0], strict=True):
        names = [name for name, _ in ratios]
        medians = [ratio.median for _, ratio in ratios]
        errors = [[ratio.median - ratio.low for _, ratio in ratios], [ratio.high - ratio.median for _, ratio in ratios]]
        colors = ["tab:green" if "sticky by" in name and "(Node)" not in name else "tab:gray" for name in names]
        drawn = axis.barh(names, medians, xerr=errors, color=colors)
        axis.bar_label(drawn, [f" {median:.2f}" for median in medians])
        axis.margins(x=0.1)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(f"{workload.name}: ratio to {workload.baseline}", fontsize="medium", loc="left")
    save(figure, path)


def plot_workers(runs: Runs, path: Path) -> None:
    """Draw how the CPU ratios depend on the number of workers."""
    counts = runs.workers()
    shown = [workload for workload in WORKLOADS if runs.of(counts[0], workload.name, workload.baseline)]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(11, 5), squeeze=False, layout="constrained")
    for workload, axis in zip(shown, axes[0], strict=True):
        for name in workload.contenders:
            ratios = [runs.ratio("cpu", count, workload.name, name, workload.baseline) for count in counts]
            if all(ratios):
                style = "-o" if name in STICKY else "--o"
                axis.plot(counts, [ratio.median for ratio in ratios if ratio], style, label=label(name))
        axis.set_xticks(counts)
        axis.set_xlabel("workers")
        axis.set_title(f"{workload.name}: CPU, ratio to {workload.baseline}", fontsize="medium")
        axis.legend(fontsize="small")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write(results: dict[str, Any], output: Path) -> None:
    """Write benchmarks.md, and benchmarks/ with figures and plots, and print what matters most."""
    mpl.rcParams["svg.hashsalt"] = "gunicorn_sticky"
    mpl.rcParams["svg.fonttype"] = "none"
    folder = output / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(results["runs"])
    judged = list(bars(runs))
    results["bars"] = [
        {name: value._asdict() if isinstance(value, Spread) else value for name, value in bar.items()} for bar in judged
    ]
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(runs, "cpu", f"CPU seconds per request, {WORKERS} workers", folder / "cpu.svg")
    plot(runs, "p99", f"p99 latency, {WORKERS} workers", folder / "p99.svg")
    several = len(runs.workers()) > 1
    if several:
        plot_workers(runs, folder / "workers.svg")

    machine = results["machine"]
    plots = ["cpu", "p99", *["workers"] * several]
    titles = {"cpu": "CPU per request", "p99": "p99 latency", "workers": "CPU per request by number of workers"}
    lines = [
        f"{results['date']}, {results['rounds']} rounds, seed {results['seed']}, on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in results['versions'].items())}.\n",
        *(f"![{titles[name]}](benchmarks/{name}.svg)\n" for name in plots),
        "### Bars\n",
        *bars_table(judged),
        "",
        *tables(runs),
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
    print("\n".join([*bars_table(judged), "", *tables(runs), "Cannot:", *troubles(results["cannot"])]))
    print("\n".join(["Broken:", *troubles(results["broken"]), f"See {page}."]))
