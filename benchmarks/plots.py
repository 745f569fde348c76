"""Plots of the ratios that servers have come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot
from report import WORKERS, Runs, by_kind, label
from workload import STICKY, WORKLOADS


def draw(results: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw all, and return the titles by the names of the files."""
    mpl.rcParams["svg.hashsalt"] = "gunicorn_sticky"
    mpl.rcParams["svg.fonttype"] = "none"
    folder.mkdir(parents=True, exist_ok=True)
    titles = {}
    for kind, runs in by_kind(results).items():
        for metric, what in (("cpu", "CPU seconds per request"), ("p99", "p99 latency")):
            title = titles[f"{kind}-{metric}.svg"] = f"{kind}: {what}, {WORKERS} workers"
            _compared(runs, metric, title, folder / f"{kind}-{metric}.svg")
        if len(runs.workers()) > 1:
            title = titles[f"{kind}-workers.svg"] = f"{kind}: CPU seconds per request by number of workers"
            _by_workers(runs, title, folder / f"{kind}-workers.svg")
    return titles


def _compared(runs: Runs, metric: str, title: str, path: Path) -> None:
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
    _save(figure, path)


def _by_workers(runs: Runs, title: str, path: Path) -> None:
    """Draw how the CPU ratios depend on the number of workers."""
    counts = runs.workers()
    shown = [workload for workload in WORKLOADS if runs.of(counts[0], workload.name, workload.baseline)]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(11, 5), squeeze=False, layout="constrained")
    figure.suptitle(title)
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
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
