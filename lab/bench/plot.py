"""Draws the main figures of a run as one picture (PNG), and the growth of costs.

Lives here: the drawing. Not here: the figures (`run.py`). Needs matplotlib (the extra `bench`).

Invariant: the picture contains only measured values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from lab.bench.report import Result
from lab.bench.variants import LABELS

_NAMES = {
    "envoy": "Envoy alone",
    "echo": "no-op ext_proc",
    "relay": "Antiphon, relay",
    "relay-grpcio": "relay, grpc.aio",
    "drive": "Antiphon, drive",
    "http": "Antiphon, HTTP server",
}
_OURS, _OTHER, _PEER = "#2f6f9f", "#b8c4cc", "#d08a4e"


def draw(result: Result, file: Path) -> None:
    """Four panels: time to the first event, chunks a second, short requests a second, the sidecar's cost of a chunk."""
    middle = sorted(result["settings"]["streams"])[len(result["settings"]["streams"]) // 2]
    median, spent = result["median"], result["cpu_us_per_chunk"]
    panels: list[tuple[str, dict[str, float], str]] = [
        ("first event, ms (median)", _column(median, "first_event_p50", 1e-3), "{:.2f}"),
        (f"chunks/s in bursts, {middle} streams", _column(median, f"chunks_{middle}"), "{:,.0f}"),
        (f"short JSON requests/s, {middle} at once", _column(median, f"requests_{middle}"), "{:,.0f}"),
        ("CPU µs per chunk of a burst, Envoy's too", _sum(spent, "burst sidecar", "burst envoy"), "{:.1f}"),
    ]
    figure, axes = pyplot.subplots(2, 2, figsize=(9.6, 5.4), dpi=100)
    for axis, (title, values, form) in zip(axes.flat, panels, strict=True):
        _bars(axis, title, values, form)
    machine = result["machine"]
    figure.text(
        0.99,
        0.005,
        f"{machine['cores']} shared cores for client, upstream, Envoy and sidecar; Python {machine['python']}; "
        f"medians of {result['settings']['rounds']} interleaved rounds",
        ha="right",
        fontsize=7,
        color="#666666",
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)


_GROWTH = {
    "depth": ("stored turns behind the request", "CPU µs per request", ("all", "worker")),
    "stored": ("stored responses", "CPU µs per request", ("unstored", "stored", "chained")),
    "streams": ("open streams", "CPU µs per chunk", ("all", "sidecar_us")),
    "chunks": ("chunks in a vector store", "CPU ms per search", ("keyword", "dense", "hybrid")),
    "workers": ("workers, on paper", "per second", ("requests", "stored", "chained", "chunks")),
}


def draw_growth(section: str, rows: dict[str, dict[str, float]], file: Path) -> None:
    """One panel with a line for each main figure of a section of `growth.py`, over the sizes."""
    size, unit, names = _GROWTH[section]
    figure, axis = pyplot.subplots(figsize=(6.4, 3.2), dpi=100)
    sizes = [int(one) for one in rows if int(one)]
    for name in names:
        label = name.removesuffix("_us").replace("all", "all processes")
        axis.plot(sizes, [rows[str(one)][name] for one in sizes], marker="o", label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(size, fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)


def _column(table: dict[str, Any], key: str, scale: float = 1.0) -> dict[str, float]:
    names = [name for name in table if name in _NAMES or name not in LABELS]
    return {name: table[name][key] * scale for name in names if key in table[name]}


def _sum(table: dict[str, Any], *keys: str) -> dict[str, float]:
    columns = [_column(table, key) for key in keys]
    return {name: sum(column.get(name, 0.0) for column in columns) for name in table if any(name in c for c in columns)}


def _bars(axis: Axes, title: str, values: dict[str, float], form: str) -> None:
    names = list(values)[::-1]
    colors = [_PEER if name not in _NAMES else _OTHER if name in ("envoy", "echo") else _OURS for name in names]
    bars = axis.barh([_NAMES.get(name, name) for name in names], [values[name] for name in names], color=colors)
    axis.bar_label(bars, [form.format(values[name]).replace(",", " ") for name in names], padding=3, fontsize=7)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.margins(x=0.16)
    axis.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
