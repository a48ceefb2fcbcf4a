"""Reads the files of deployments/monitoring: the expressions of panels and rules, and the metrics in them.

Lives here: reading the files. Not here: a Prometheus (`prometheus.py`).

Invariant: the reader knows only the few forms of expressions that the files use. The reader names an expression that it
cannot parse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments" / "monitoring"
RULES, DASHBOARD, PROMETHEUS = FOLDER / "antiphon.rules.yml", FOLDER / "dashboard.json", FOLDER / "prometheus.yml"
RUNBOOK = ROOT / "docs" / "how-to" / "operations.md"

# The words of an expression that are not metric names.
_WORDS = frozenset({
    *("sum", "max", "min", "count", "rate", "increase", "changes", "histogram_quantile", "predict_linear", "time"),
    *("clamp_min", "by", "on", "group_left", "or", "and"),
})  # fmt: skip
_THRESHOLD = re.compile(r"\s*(?:[<>]|==)\s*[0-9.]+")
_DURATION = re.compile(r"(?<=\[)(\d+)([smh])(?=\])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Expression:
    """An expression with its text and its position in the files."""

    where: str
    text: str

    @property
    def without_threshold(self) -> str:
        """The expression of an alert, without the comparison with its threshold."""
        return _THRESHOLD.sub("", self.text)

    def asked_for(self) -> Iterator[tuple[str, set[str]]]:
        """Each metric of the expression, with the labels of its selector."""
        bare = re.sub(r'"[^"]*"', '""', re.sub(r"\[[^]]*\]", "", self.text))
        bare = re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", "", bare)
        for found in re.finditer(r"([a-zA-Z_][\w:]*)(?:\{([^}]*)\})?", bare):
            if found[1] not in _WORDS:
                yield found[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found[2] or ""))

    def grouped_by(self) -> set[str]:
        """The labels in `by` and `on` clauses."""
        lists = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", self.text)
        return {label.strip() for one in lists for label in one.split(",") if label.strip()}


def rules() -> list[dict[str, Any]]:
    """All rules in their order."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """The alerts among the rules."""
    return [rule for rule in rules() if "alert" in rule]


def rule_expressions() -> list[Expression]:
    """The expressions of all recording rules and alerts."""
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def panel_expressions() -> list[Expression]:
    """The expressions of the dashboard's panels and annotations."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        Expression(f"{panel['title']} {target['refId']}", target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [Expression(one["name"], one["expr"]) for one in board["annotations"]["list"]]


def scaled(text: str, by: int) -> str:
    """The rules with all times divided by `by`."""

    def shorter(found: re.Match[str]) -> str:
        return f"{int(found[1]) * _SECONDS[found[2]] // by}s"

    text = _DURATION.sub(shorter, text)
    text = re.sub(r"(?<=for: )(\d+)([smh])", shorter, text)
    return re.sub(r"(?<=\], )\d+(?=\))", lambda found: str(int(found[0]) // by), text)
