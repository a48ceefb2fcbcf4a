"""Formats the figures of a run as Markdown.

Lives here: the tables, and the form of a number. Not here: computations except units (`run.py`).

Invariant: the tables show a missing figure as a dash, never as a zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from lab.bench.variants import CHAINS, LABELS, Values

_TAILS = ("first_event_p999", "under_way_p999")
_QUANTILES = ("p50", "p99", "p999")


class Result(TypedDict):
    """The content of `--json`. Times are in microseconds, memory in bytes; each table by variant, then by figure."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    median: dict[str, Values]
    added_to_envoy: dict[str, Values]
    ratio_to_envoy: dict[str, Values]
    ratio_to_echo: dict[str, Values]
    cpu_us_per_chunk: dict[str, Values]
    memory_bytes_per_stream: dict[str, Values]
    apart: dict[str, dict[str, Values]]
    complaints: list[str]
    rounds: list[dict[str, Values]]


def tables(result: Result) -> str:
    """The tables: latency and cost, rates, ratios, single measurements."""
    streams = result["settings"]["streams"]
    machine, settings = result["machine"], result["settings"]
    parts = [
        f"{settings['rounds']} rounds, {settings['seconds']:g} s a measurement; {machine['cores']} cores, "
        f"Python {machine['python']}, other programs took {machine['others_share']:.0%} of the cores; "
        "log level info, into a pipe",
        *_not_counted(settings),
        _latency(result),
        _rates(result, streams),
        _waits(result, streams),
        _streamed(result, streams),
        _stored(result, streams),
        _histories(result),
        _others(result),
        _ratios(result, streams),
        *_apart(result),
    ]
    if result["complaints"]:
        parts.append("Errors:\n\n" + "\n".join(f"- {line}" for line in result["complaints"]))
    return "\n\n".join(parts)


def _not_counted(settings: dict[str, Any]) -> list[str]:
    """What the report says of rounds in which Envoy alone was too slow."""
    missing = settings["rounds"] - settings.get("rounds_that_count", settings["rounds"])
    if not missing:
        return []
    rounds, usual = settings["rounds"], settings["usual"]
    said = f"in {missing} of {rounds} rounds Envoy alone took more than twice its usual {usual:.0f} µs"
    return [f"No statement: {said} for a small request. These rounds do not count in ratios and CPU times."]


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _pair(values: Values, first: str, second: str, scale: float, digits: int, sign: str = "") -> str:
    cells = [f"{values[key] / scale:{sign}.{digits}f}" if key in values else "-" for key in (first, second)]
    return " / ".join(cells) if cells != ["-", "-"] else "-"


def _latency(result: Result) -> str:
    head = [
        "variant",
        "first event, ms, p50 / p99",
        "added to Envoy alone",
        "chunk under way, ms, p50 / p99",
        "added to Envoy alone",
        "CPU µs per paced chunk, sidecar / Envoy",
        "CPU µs per burst chunk, sidecar / Envoy",
        "CPU µs per saturated chunk, sidecar / Envoy",
        "KiB per open stream, sidecar / Envoy",
    ]
    rows = []
    for name, values in result["median"].items():
        added = result["added_to_envoy"].get(name, {}) if name not in ("envoy", "direct") else {}
        spent, memory = result["cpu_us_per_chunk"][name], result["memory_bytes_per_stream"].get(name, {})
        rows.append(
            [
                _label(name),
                _pair(values, "first_event_p50", "first_event_p99", 1000, 2),
                _pair(added, "first_event_p50", "first_event_p99", 1000, 2, "+"),
                _pair(values, "under_way_p50", "under_way_p99", 1000, 2),
                _pair(added, "under_way_p50", "under_way_p99", 1000, 2, "+"),
                _pair(spent, "paced sidecar", "paced envoy", 1, 0),
                _pair(spent, "burst sidecar", "burst envoy", 1, 1),
                _pair(spent, "saturated sidecar", "saturated envoy", 1, 1),
                _pair(memory, "sidecar", "envoy", 1024, 0),
            ]
        )
    return _table(head, rows)


def _figure(values: Values, key: str, digits: int = 0) -> str:
    return f"{values[key]:,.{digits}f}".replace(",", " ") if key in values else "-"


def _rates(result: Result, streams: list[int]) -> str:
    head = [
        "variant",
        *(f"JSON requests/s, {number} at once" for number in streams),
        *(f"chunks/s, {number} streams" for number in streams),
        "chunks/s, 200 streams, saturated",
    ]
    keys = [f"requests_{number}" for number in streams] + [f"chunks_{number}" for number in streams] + ["saturated"]
    return _table(
        head, ([_label(name), *(_figure(values, key) for key in keys)] for name, values in result["median"].items())
    )


def _waits(result: Result, streams: list[int]) -> str:
    """The fairness table: the slowest requests compared with the median."""
    head = ["small JSON requests, ms, p50 / p99", *(f"{number} at once" for number in streams)]
    return _table(
        head,
        (
            [
                _label(name),
                *(_pair(values, f"whole_{number}_p50", f"whole_{number}_p99", 1000, 1) for number in streams),
            ]
            for name, values in result["median"].items()
        ),
    )


def _streamed(result: Result, streams: list[int]) -> str:
    """The table of a streaming client's waiting times."""
    head = ["streams with a chunk each 20 ms: ms, p50 / p99 / p99.9"]
    for number in streams:
        head += [f"first event, {number}", f"between events, {number}", f"chunk under way, {number}"]
    rows = []
    for name, values in result["median"].items():
        cells = [_three(values, f"{key}_{number}") for number in streams for key in ("first_event", "gap", "under_way")]
        if any(cell != "-" for cell in cells):
            rows.append([_label(name), *cells])
    return _table(head, rows)


def _three(values: Values, key: str) -> str:
    cells = [_figure({"v": values[one] / 1000}, "v", 2) if (one := f"{key}_{q}") in values else "-" for q in _QUANTILES]
    return " / ".join(cells) if any(cell != "-" for cell in cells) else "-"


def _stored(result: Result, streams: list[int]) -> str:
    """The table of `store: true`, the API's default, compared with `store: false`."""
    many = [number for number in streams if number > 1]
    head = ["`store: false` / `store: true`"]
    head += [f"JSON requests/s, {number} at once" for number in many]
    head += [f"chunks/s in bursts, {number} streams" for number in many]
    head += ["CPU µs per request, sidecar / Envoy", "the same, stored"]
    rows = []
    for name, values in result["median"].items():
        spent = result["cpu_us_per_chunk"][name]
        if not any(key.startswith("json ") for key in spent):
            continue
        keys = [f"requests_{number}" for number in many] + [f"chunks_{number}" for number in many]
        cells = [f"{_figure(values, key)} / {_figure(values, f'stored_{key}')}" for key in keys]
        costs = [_pair(spent, f"{kind} sidecar", f"{kind} envoy", 1, 0) for kind in ("json", "stored")]
        rows.append([_label(name), *cells, *costs])
    return _table(head, rows)


def _histories(result: Result) -> str:
    """The table of requests behind stored turns; the CPU time is that of all processes, Envoy's too."""
    head = ["CPU µs per request behind stored turns (p50, ms)"]
    head += [f"{turns or 'no'} turns, 8 callers" for turns in (0, *CHAINS)]
    head += ["one turn, 8 callers, stored", "no turns, one caller", "the same, stored", "one turn, one caller"]
    head += ["the same, stored"]
    rows = []
    for name, values in result["median"].items():
        spent = result["cpu_us_per_chunk"][name]
        keys = [f"history-{turns}-8" for turns in (0, *CHAINS)] + ["history-1-8-stored"]
        keys += [f"history-{turns}-1{stored}" for turns in (0, 1) for stored in ("", "-stored")]
        if f"{keys[0]} sidecar" in spent:
            cells = [f"{sum_of(spent, key):.0f} ({values[f'{key}_p50'] / 1000:.1f})" for key in keys]
            rows.append([_label(name), *cells])
    return _table(head, rows)


def sum_of(spent: Values, kind: str) -> float:
    """The CPU time of all processes of a variant for a chunk or request of this kind. 0 if it was not measured."""
    return spent.get(f"{kind} sidecar", 0.0) + spent.get(f"{kind} envoy", 0.0)


def _others(result: Result) -> str:
    """The table of all other kinds of requests, except short requests and text."""
    head = [
        "variant",
        "requests/s of 100 KB",
        "of 100 KB in 90 turns",
        "of 5 MB",
        "of 5 MB in 4,545 turns",
        "tool argument chunks/s, 16 streams",
        "reasoning chunks/s, 16 streams",
        "CPU µs per tool chunk, sidecar / Envoy",
        "per reasoning chunk",
        "CPU ms per request of 100 KB",
        "of 100 KB in 90 turns",
        "of 5 MB",
        "of 5 MB in 4,545 turns",
        "first event, ms, p99.9",
        "chunk under way, ms, p99.9",
        "the same beside 5 MB requests, ms, p50 / p99 / max (alone)",
    ]
    long = ("kb100", "kb100_turns", "mb5", "mb5_turns")
    rows = []
    for name, values in result["median"].items():
        spent = result["cpu_us_per_chunk"][name]
        costs = [_pair(spent, f"{kind} sidecar", f"{kind} envoy", 1, 1) for kind in ("tools", "reasoning")]
        costs += [_pair(spent, f"{kind} sidecar", f"{kind} envoy", 1000, 2) for kind in long]
        tails = [_figure({"v": values[key] / 1000}, "v", 2) if key in values else "-" for key in _TAILS]
        rates = [_figure(values, key) for key in (*long, "tools", "reasoning")]
        rows.append([_label(name), *rates, *costs, *tails, _stalled(values)])
    return _table(head, rows)


def _stalled(values: Values) -> str:
    if "stalled_max" not in values:
        return "-"
    cells = []
    for quantile in ("p50", "p99", "max"):
        with_load, alone = values[f"stalled_{quantile}"] / 1000, values[f"calm_{quantile}"] / 1000
        cells.append(f"{with_load:.1f} ({alone:.1f})")
    return " / ".join(cells)


def _ratios(result: Result, streams: list[int]) -> str:
    head = ["ratio to Envoy alone / to the no-op ext_proc", "first event p50", "chunk under way p50"]
    head += [f"requests/s, {number}" for number in streams] + [f"chunks/s, {number}" for number in streams]
    head += ["chunks/s, saturated"]
    keys = ["first_event_p50", "under_way_p50"]
    keys += [f"requests_{number}" for number in streams] + [f"chunks_{number}" for number in streams]
    keys += ["saturated"]
    rows = []
    for name in result["median"]:
        if name in ("direct", "envoy"):
            continue
        envoy, echo = result["ratio_to_envoy"].get(name, {}), result["ratio_to_echo"].get(name, {})
        rows.append([_label(name), *(f"{_figure(envoy, key, 3)} / {_figure(echo, key, 2)}" for key in keys)])
    return _table(head, rows)


def _apart(result: Result) -> list[str]:
    """The tables of starts, long event loop turns, and several processes."""
    apart = result["apart"]
    parts = []
    if starts := apart.get("start"):
        head = ["a sidecar", "start to ready, s", "idle memory, MiB", "of it its own (not files), MiB"]
        rows = [
            [
                name,
                f"{values['ready_seconds']:.2f}",
                f"{values['idle_bytes'] / (1 << 20):.0f}",
                f"{values['idle_own_bytes'] / (1 << 20):.0f}",
            ]
            for name, values in starts.items()
        ]
        parts.append(_table(head, rows))
    if turns := apart.get("turns"):
        kinds = list(next(iter(turns.values())))
        head = ["longest turn of a sidecar's event loop, ms", *kinds]
        parts.append(
            _table(head, ([name, *(f"{values[kind]:.1f}" for kind in kinds)] for name, values in turns.items()))
        )
    if workers := apart.get("workers"):
        head = ["sidecar processes"]
        kinds = ["requests", "chunks", "saturated"]
        names = ["JSON requests/s, 16 at once", "chunks/s, 16 streams", "chunks/s, 200 streams, saturated"]
        for name in names:
            head += [name, "cores used, sidecars / Envoy"]
        rows = []
        for number, values in workers.items():
            cells = [number]
            for kind in kinds:
                cells += [_figure(values, kind), _pair(values, f"{kind}_sidecar_cores", f"{kind}_envoy_cores", 1, 2)]
            rows.append(cells)
        parts.append(_table(head, rows))
    return parts
