"""Reads the signs of an incident: metrics at each scrape, log lines, and the alerts that the metrics raise.

Lives here: reading the signs. Not here: the faults (`scenes.py`), their times and the expected signs (`run.py`).

The alerts are the unchanged rules of deployments/monitoring. promtool gets the scraped values at intervals of fifteen
seconds, and lists the alerts that fire.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.monitoring_files import RULES

SCRAPE_SECONDS = 15
Sample = Mapping[str, float]
Alert = tuple[tuple[str, str], ...]
_FIRING = 'ALERTS{alertstate="firing"}'
_SERIES = re.compile(r"(\w+)(?:\{(.*)\})?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# The fields that distinguish kinds of log lines.
_KIND = (
    *("message", "level", "door", "outcome", "fault", "code", "operation", "upstream", "upstream_status", "status"),
    *("setting", "tool", "server", "process"),
)
_SLOW = 1.0
_SHOWN = (*_KIND, "owner", "owners", "refused", "cause", "advice", "head_seconds", "seconds", "next", "reason")


def read_sample(text: str) -> dict[str, float]:
    """The series of a scrape, with their values."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


def total(sample: Sample, name: str, **labels: str) -> float:
    """The sum of the series with this name and these labels."""
    return sum(
        value
        for series, value in sample.items()
        if (parts := _SERIES.match(series)) is not None
        and parts[1] == name
        and labels.items() <= dict(_LABEL.findall(parts[2] or "")).items()
    )


def moved(samples: Sequence[Sample], broken_at: int) -> list[tuple[str, float, float]]:
    """The series that were constant before the fault and changed afterwards: name, value before, value after."""
    calm, last = samples[:broken_at], samples[-1]
    found = []
    for series, value in last.items():
        name = series.partition("{")[0]
        if name.endswith(("_bucket", "_sum")) or name.startswith(("process_", "python_")):
            continue
        before = {one.get(series, 0.0) for one in calm}
        # Gauges of sizes always change. Only a size that is nearly exhausted counts as changed.
        drifts = name.endswith("_bytes") and value > min(before) / 10
        if len(before) == 1 and value not in before and not drifts:
            found.append((series, before.pop(), value))
    return sorted(found)


def promtool() -> str | None:
    """The path of promtool, or None if it is not installed."""
    return shutil.which(os.environ.get("PROMTOOL", "promtool"))


def fired(samples: Sequence[Sample], folder: Path) -> list[set[Alert]]:
    """The alerts that fire at each sample. All sets are empty without promtool."""
    program = promtool()
    if program is None:
        return [set() for _ in samples]
    names = sorted({series for sample in samples for series in sample})
    series = [
        {"series": _of_job(name), "values": " ".join(f"{one[name]:.10g}" if name in one else "_" for one in samples)}
        for name in names
    ]
    series.append({"series": _of_job("up"), "values": " ".join("1" for _ in samples)})
    asked = [
        {"expr": _FIRING, "eval_time": f"{number * SCRAPE_SECONDS}s", "exp_samples": []}
        for number in range(len(samples))
    ]
    given = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{SCRAPE_SECONDS}s",
        "tests": [{"interval": f"{SCRAPE_SECONDS}s", "input_series": series, "promql_expr_test": asked}],
    }
    file = folder / "seen.yml"
    file.write_text(yaml.safe_dump(given))
    ended = subprocess.run([program, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    return _read_fired(ended.stdout + ended.stderr, len(samples))


def _of_job(series: str) -> str:
    parts = _SERIES.match(series)
    assert parts is not None, series
    labels = ['job="antiphon"', 'instance="gateway:9464"', *([parts[2]] if parts[2] else [])]
    return f"{parts[1]}{{{','.join(labels)}}}"


def _read_fired(said: str, count: int) -> list[set[Alert]]:
    """The alerts by sample, from promtool's output. The promtool test expects no alert at any time, so its report names
    every alert that fired."""
    found: list[set[Alert]] = [set() for _ in range(count)]
    for part in said.split("expr: ")[1:]:
        at = re.search(r"time: (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", part)
        if at is None:
            raise ValueError(f"promtool said: {part[:500]}")
        hours, minutes, seconds = (int(number or 0) for number in at.groups())
        number = (hours * 3600 + minutes * 60 + seconds) // SCRAPE_SECONDS
        for labels in re.findall(r"\{(__name__=\"ALERTS\"[^}]*)\}", part):
            told = dict(_LABEL.findall(labels))
            for name in ("__name__", "alertstate", "job", "instance", "severity"):
                told.pop(name, None)
            found[number].add(tuple(sorted(told.items())))
    return found


@dataclass
class Lines:
    """The log lines since the fault: each kind of line once, with its count and the time of the first."""

    _kinds: dict[tuple[Any, ...], tuple[dict[str, Any], float, list[int]]] = field(default_factory=dict)

    def add(self, text: str, seconds: float) -> None:
        """Add one line of the log."""
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not isinstance(line, dict):
            return
        kind = (*(line.get(name) for name in _KIND), line.get("head_seconds", 0) > _SLOW)
        _, _, count = self._kinds.setdefault(kind, (line, seconds, [0]))
        count[0] += 1

    def first(self, wanted: Mapping[str, Any], least: Mapping[str, float]) -> tuple[dict[str, Any], float, int] | None:
        """The first kind of line that has the fields `wanted`, and whose numbers reach the minimums of `least`."""
        for line, seconds, count in self._kinds.values():
            large = all(line.get(name, 0) >= value for name, value in least.items())
            if large and wanted.items() <= line.items():
                return line, seconds, count[0]
        return None

    def told(self) -> list[str]:
        """All kinds of lines except those of successful responses."""
        return [
            f"{seconds:4.0f} s  {count[0]:4} times  {shown(line)}"
            for line, seconds, count in self._kinds.values()
            if line.get("level") != "info" or line.get("fault") or line.get("head_seconds", 0) > _SLOW
        ]


def shown(line: Mapping[str, Any]) -> str:
    """The fields of a line that are the same for all lines of its kind."""
    return json.dumps({name: line[name] for name in _SHOWN if name in line}, ensure_ascii=False)
