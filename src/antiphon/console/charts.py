"""Computes the geometry of the console's SVG drawings: waterfalls, stacked bars and small line charts.

Templates write the SVG elements. The templates use presentation attributes, because the pages forbid inline styles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from antiphon.console.formats import duration
from antiphon.engine.ports.journal import Entry, JournalSpan

_ERRORS = 400
_COLORS = {"queue": 6, "load": 6, "save": 6, "compaction": 5, "call": 1, "first_token": 2, "tool": 4}
_AT_THE_UPSTREAM = frozenset({"", "call_upstream", "read_answer", "pass_on"})


class Bar(NamedTuple):
    """One row of a waterfall. `x` and `width` are in units of the drawing. The page shows the step's start `at` and its
    duration `seconds` as text. `error` is the code of the error with which the step failed, or empty."""

    x: float
    width: float
    color: int
    label: str
    at: float
    seconds: float
    span: JournalSpan
    error: str = ""


class Slice(NamedTuple):
    """One part of a stacked bar. `share` is a fraction from 0 to 1."""

    label: str
    amount: float
    share: float
    x: float
    width: float
    color: int


def steps_of(entry: Entry) -> list[JournalSpan]:
    """Return the steps of a request for display. The fact `error` of a failed step says how the step failed. A first
    token appears only if the model sent a token.

    If the upstream caused the failure of the request, the last model call failed. The error of this call is the code of
    the request. A model call without an answer has the fact `answer` instead of `status` and `head`.
    """
    steps = [span for span in entry.detail.spans if span.kind != "first_token" or entry.first_token is not None]
    calls = [span for span in steps if span.kind == "call"]
    last = max(calls, key=lambda span: span.start, default=None)
    broken = entry.fault in ("upstream", "unknown") and entry.detail.operation in _AT_THE_UPSTREAM
    return [_told(span, entry, broken=broken and span is last, last=span is last) for span in steps]


def _told(span: JournalSpan, entry: Entry, *, broken: bool, last: bool) -> JournalSpan:
    facts = dict(span.facts)
    if span.kind != "call":
        return span
    fault, status = str(facts.pop("fault", "")), facts.get("status")
    error = fault or (f"HTTP {status}" if status and status >= _ERRORS else "")
    if status == 0:
        facts = {name: value for name, value in facts.items() if name not in ("status", "head")}
        facts["answer"], error = "none", error or "no answer"
    if broken or (error and last and entry.fault == "cancelled"):
        error = entry.code or error or "failed"
    return replace(span, facts=facts | ({"error": error} if error else {}))


def attempts_of(spans: Iterable[JournalSpan]) -> list[str]:
    """Return a sentence for each model call that a worker retried because the upstream was unreachable."""
    return [
        f"{span.facts['attempts']} attempts to reach the upstream {span.name}. "
        f"The last retry followed this failure: {span.facts.get('retry_cause', '')}."
        for span in spans
        if span.kind == "call" and span.facts.get("attempts")
    ]


def failed_tools(entry: Entry) -> list[str]:
    """Return the names of the tools that failed."""
    return [span.name for span in entry.detail.spans if span.kind == "tool" and span.facts.get("error")]


def facts_of(span: JournalSpan) -> str:
    """Return the facts of a step as one line: `operation=responses status=200 head=18 ms`."""
    told = {name: duration(value) if isinstance(value, float) else value for name, value in span.facts.items()}
    return " ".join(f"{name}={value}" for name, value in told.items())


def within(spans: Sequence[JournalSpan], seconds: float) -> list[JournalSpan]:
    """Return the steps with model calls that end with the request at the latest. `seconds` is the request's duration.
    Antiphon may notice the end of a model call only after the request has ended."""
    return [
        replace(span, end=max(span.start, seconds))
        if span.kind in ("call", "first_token") and span.end > seconds > 0
        else span
        for span in spans
    ]


def waterfall(spans: Sequence[JournalSpan], seconds: float, *, width: float = 1000.0) -> list[Bar]:
    """Return the bars of a request's steps. A step of `seconds` seconds is `width` wide. The bar of a model call ends
    with the request at the latest. Among steps with the same start, the longest step comes first. The labels of model
    calls and of their first tokens begin with the number of the call, from 1. `steps_of` marks failed steps."""
    spans = within(spans, seconds)
    whole = max(seconds, *(span.end for span in spans), 1e-6) if spans else max(seconds, 1e-6)
    bars = []
    calls = 0
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        start, end = max(0.0, span.start), max(span.start, span.end, 0.0)
        wide = max(2.0, (end - start) / whole * width)
        x = min(start / whole * width, width - wide)
        label = span.kind.replace("_", " ") + (f" {span.name}" if span.name and span.kind != "first_token" else "")
        if span.kind == "call":
            calls += 1
        if span.kind in ("call", "first_token") and calls:
            label = f"{calls}. {label}"
        error = str(span.facts.get("error", ""))
        bars.append(Bar(round(x, 2), round(wide, 2), _COLORS.get(span.kind, 6), label, start, end - start, span, error))
    return bars


def stacked(parts: Iterable[tuple[str, float]], *, whole: float | None = None, width: float = 1000.0) -> list[Slice]:
    """Return the slices of a stacked bar. `whole` is the amount that fills the bar. If `whole` is None, the sum of the
    parts fills the bar."""
    kept = [(label, amount) for label, amount in parts if amount > 0]
    total = max(whole or 0.0, sum(amount for _, amount in kept), 1e-9)
    slices: list[Slice] = []
    x = 0.0
    for number, (label, amount) in enumerate(kept):
        wide = amount / total * width
        slices.append(Slice(label, amount, amount / total, round(x, 2), round(wide, 2), number % 6 + 1))
        x += wide
    return slices


def line(values: Sequence[float], *, width: float = 300.0, height: float = 60.0) -> str:
    """Return the SVG path of a line chart through these values, at equal distances. The path is empty if there are
    fewer than two values."""
    if len(values) < 2:
        return ""
    top = max(*values, 1e-9)
    step = width / (len(values) - 1)
    points = (f"{n * step:.1f},{height - value / top * height:.1f}" for n, value in enumerate(values))
    return "M" + " L".join(points)
