"""Formats the report of a rollout in Markdown. Not here: the report's data (`course.py`)."""

from __future__ import annotations

import statistics

from lab.rollout.course import Result

_SHOWN = 8


def table(title: str, result: Result) -> str:
    """The results of a rollout as a Markdown table."""
    lines = [
        f"\n### {title}\n",
        "| clients | requests | failed | cut | moved or resumed | failover p50 | longest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, seen in result.seen.items():
        middle, most = (statistics.median(seen.gaps), max(seen.gaps)) if seen.gaps else (None, None)
        cells = (kind, seen.asked, len(seen.failed), len(seen.cut), len(seen.gaps), _shown(middle), _shown(most))
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += [
        "\n| replica | out of the balancer | ended | exit status | finished | given back | build after | serving |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in result.restarts:
        told = (one.told.get("finished", "?"), one.told.get("given_back", 0))
        row = (one.number, _shown(one.unseen), _shown(one.ended), one.status, *told, one.build, _shown(one.back))
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    lines += ["", *(f"- {note}" for note in result.notes)]
    lines += [f"WRONG {text}" for text in result.wrong]
    for kind, seen in result.seen.items():
        lines += [f"FAILED {kind}: {text}" for text in seen.failed[:_SHOWN]]
        lines += [f"CUT {kind}: {text}" for text in seen.cut[:_SHOWN]]
    return "\n".join(lines)


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
