"""Compares the figures with their targets.

Lives here: the target of each figure, and reading the figure from a result. Not here: the measurements.

Invariant: if a figure was not measured, its target counts as neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.bench.report import Result, sum_of


@dataclass(frozen=True)
class Judged:
    """One row of the table. `met` is None if the figure was not measured."""

    figure: str
    target: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class _Target:
    figure: str
    target: str
    read: Callable[[Result], float | None]
    limit: float | None = None
    least: float | None = None
    unit: str = ""
    digits: int = 2


def judge(result: Result, rounds: Sequence[Result] = ()) -> list[Judged]:
    """All targets, in their order. `rounds` are the results of single rounds, for the spread of each figure."""
    rows = []
    for target in _TARGETS:
        value = target.read(result)
        if value is None:
            rows.append(Judged(target.figure, target.target, "-", None))
            continue
        met = (target.limit is None or value <= target.limit) and (target.least is None or value >= target.least)
        measured = f"{value:,.{target.digits}f}{target.unit}"
        spread = [one for one in map(target.read, rounds) if one is not None]
        if len(spread) > 1 and max(spread) > min(spread):
            measured += f" ({min(spread):,.{target.digits}f} to {max(spread):,.{target.digits}f})"
        rows.append(Judged(target.figure, target.target, measured, met))
    return rows


def targets_table(rows: list[Judged]) -> str:
    """The table as Markdown."""
    verdicts = {True: "met", False: "**missed**", None: "not measured"}
    lines = ["| figure | must | measured | |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {row.figure} | {row.target} | {row.measured} | {verdicts[row.met] if row.target[0] != '(' else ''} |"
        for row in rows
    ]
    return "\n" + "\n".join(lines)


def _cost(kind: str, name: str = "relay") -> Callable[[Result], float | None]:
    return lambda result: result["cpu_us_per_chunk"].get(name, {}).get(f"{kind} sidecar")


def _cost_ratio(kind: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        ours, echo = _cost(kind)(result), _cost(kind, "echo")(result)
        return ours / echo if ours and echo else None

    return read


def _of_envoy(key: str) -> Callable[[Result], float | None]:
    return lambda result: result["ratio_to_envoy"].get("relay", {}).get(key)


def _of_unstored(name: str) -> Callable[[Result], float | None]:
    """The ratio of the CPU time of all Antiphon processes for a stored request to that for one that is not stored."""

    def read(result: Result) -> float | None:
        stored, plain = _cost("stored", name)(result), _cost("json", name)(result)
        return stored / plain if stored and plain else None

    return read


def _large(kind: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        spent = _cost(kind)(result)
        return spent / 1000 if spent else None

    return read


def _of_all(one: str, other: str) -> Callable[[Result], float | None]:
    """The ratio of the CPU time of all processes, Envoy's too, for requests of one kind to that of another kind."""

    def read(result: Result) -> float | None:
        spent = result["cpu_us_per_chunk"].get("relay", {})
        return sum_of(spent, one) / sum_of(spent, other) if sum_of(spent, one) and sum_of(spent, other) else None

    return read


def _turn(result: Result) -> float | None:
    """The CPU time of each stored turn after the first."""
    few, many = (sum_of(result["cpu_us_per_chunk"].get("relay", {}), f"history-{turns}-8") for turns in (1, 200))
    return (many - few) / 199 if few and many else None


def _added(key: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        value = result["added_to_envoy"].get("relay", {}).get(key)
        return None if value is None else value / 1000

    return read


def _streams(key: str) -> Callable[[Result], float | None]:
    return lambda result: result["memory_bytes_per_stream"].get("relay", {}).get(key)


def _kib(read: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    def scaled(result: Result) -> float | None:
        value = read(result)
        return None if value is None else value / 1024

    return scaled


def _apart(section: str, row: str, key: str, scale: float = 1.0) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        value = result["apart"].get(section, {}).get(row, {}).get(key)
        return None if value is None else value / scale

    return read


def _longest_turn(result: Result) -> float | None:
    turns = [value for name, value in result["apart"].get("turns", {}).get("http2", {}).items() if name != "idle"]
    return max(turns) if turns else None


def _peer(result: Result) -> str | None:
    return next((name for name in result["median"] if name.startswith("litellm")), None)


def _faster_than_peer(result: Result) -> float | None:
    peer, key = (
        _peer(result),
        f"chunks_{sorted(result['settings']['streams'])[len(result['settings']['streams']) // 2]}",
    )
    ours = result["median"].get("relay", {}).get(key)
    theirs = result["median"][peer].get(key) if peer else None
    return ours / theirs if ours and theirs else None


def _sooner_than_peer(result: Result) -> float | None:
    """The ratio of the peer's added delay of the first event to Antiphon's."""
    median = result["median"]
    times = [median.get(name or "", {}).get("first_event_p50") for name in ("direct", "relay", _peer(result))]
    own, ours, theirs = times
    if own is None or ours is None or theirs is None:
        return None
    return (theirs - own) / (ours - own)


_CROWD = 200


def _unfairness(name: str) -> Callable[[Result], float | None]:
    """The ratio of the slowest to the usual duration of many concurrent requests."""

    def read(result: Result) -> float | None:
        values = result["median"].get(name, {})
        usual, slow = (values.get(f"whole_{_CROWD}_{quantile}") for quantile in ("p50", "p99"))
        return slow / usual if slow and usual else None

    return read


_TARGETS = (
    _Target("relay chunks/s, burst, of Envoy alone", "≥ 0.55", _of_envoy("chunks_16"), least=0.55),
    _Target("relay chunks/s, saturated, of Envoy alone", "≥ 0.67", _of_envoy("saturated"), least=0.67),
    _Target("relay, CPU per chunk, burst, of the no-op's", "≤ 2.0x", _cost_ratio("burst"), limit=2.0, unit="x"),
    _Target("relay, CPU per chunk, saturated, of the no-op's", "≤ 1.7x", _cost_ratio("saturated"), limit=1.7, unit="x"),
    *(
        _Target(
            f"relay, small requests/s at {number}, store: {stored}, of Envoy alone",
            f"≥ {least}",
            _of_envoy(f"{prefix}requests_{number}"),
            least=least,
        )
        for stored, prefix, number, least in (
            ("false", "", 16, 0.15),
            ("false", "", 200, 0.27),
            ("true", "stored_", 16, 0.10),
            ("true", "stored_", 200, 0.18),
        )
    ),
    _Target("relay, CPU of a stored request, of an unstored one", "≤ 1.5x", _of_unstored("relay"), limit=1.5, unit="x"),
    _Target(
        "relay, CPU of a stored request, one caller",
        "≤ 2x",
        _of_all("history-0-1-stored", "history-0-1"),
        limit=2,
        unit="x",
    ),
    _Target(
        "relay, CPU behind one stored turn, of none, 8 callers",
        "≤ 1.5x",
        _of_all("history-1-8", "history-0-8"),
        limit=1.5,
        unit="x",
    ),
    _Target(
        "relay, CPU behind one stored turn, one caller",
        "≤ 1.5x",
        _of_all("history-1-1", "history-0-1"),
        limit=1.5,
        unit="x",
    ),
    _Target("relay, CPU of each further stored turn", "≤ 12 µs", _turn, limit=12, unit=" µs", digits=1),
    _Target(
        "relay, CPU of 100 KB in 90 turns, of the no-op's", "≤ 2.5x", _cost_ratio("kb100_turns"), limit=2.5, unit="x"
    ),
    _Target("HTTP server, CPU per chunk, burst", "≤ 13.3 µs", _cost("burst", "http"), limit=13.3, unit=" µs", digits=1),
    _Target(
        "HTTP server, CPU per chunk, saturated",
        "≤ 17.7 µs",
        _cost("saturated", "http"),
        limit=17.7,
        unit=" µs",
        digits=1,
    ),
    _Target("HTTP server, CPU per small request", "≤ 450 µs", _cost("json", "http"), limit=450, unit=" µs", digits=0),
    *(
        _Target(f"small requests, {_CROWD} at once, {name}: p99 of p50", "≤ 4x", _unfairness(name), limit=4, unit="x")
        for name in ("relay", "drive", "http")
    ),
    _Target("added time to first event, one stream, p50", "≤ 1 ms", _added("first_event_p50"), limit=1, unit=" ms"),
    _Target("the same, p99", "≤ 3 ms", _added("first_event_p99"), limit=3, unit=" ms"),
    _Target("added per chunk, p50", "≤ 0.3 ms", _added("under_way_p50"), limit=0.3, unit=" ms"),
    _Target("relay, CPU of a request of 5 MB", "≤ 20 ms", _large("mb5"), limit=20, unit=" ms", digits=1),
    _Target("relay, CPU of 5 MB in 4,545 turns", "≤ 25 ms", _large("mb5_turns"), limit=25, unit=" ms", digits=1),
    _Target("longest stall by a 5 MB request", "≤ 5 ms", _longest_turn, limit=5, unit=" ms", digits=1),
    _Target(
        "1,000 open streams, each in the sidecar",
        "≤ 60 KiB",
        _kib(_streams("sidecar")),
        limit=60,
        unit=" KiB",
        digits=1,
    ),
    _Target("of them failed", "0", _streams("failed"), limit=0, digits=0),
    *(
        _Target(f"start to ready, {name}", "≤ 0.5 s", _apart("start", name, "ready_seconds"), limit=0.5, unit=" s")
        for name in ("http2", "grpcio")
    ),
    *(
        _Target(
            f"idle memory, {name}",
            f"≤ {limit} MiB",
            _apart("start", name, "idle_bytes", 1 << 20),
            limit=limit,
            unit=" MiB",
            digits=0,
        )
        for name, limit in (("http2", 60), ("grpcio", 75))
    ),
    _Target("chunks/s in a burst, of LiteLLM's bridge", "≥ 100x", _faster_than_peer, least=100, unit="x", digits=0),
    _Target("added time to first event, LiteLLM's of ours", "≥ 30x", _sooner_than_peer, least=30, unit="x", digits=0),
)
