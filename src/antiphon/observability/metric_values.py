"""Counters, histograms and gauges as plain numbers, which a scrape reads.

Lives here: what a metric holds. Not here: how that becomes a family of Prometheus' text format (`exposition.py`), which
metrics there are (`metric_names.py`), who touches them (`metrics.py` has the verbs).

Every response touches some twelve of these. With prometheus_client's own objects, their children looked up once, a
small request takes 3.3 % more instructions (2026-11-25), so these are numbers in dictionaries, and prometheus_client's
families are made of them at a scrape. Invariants: only the event loop's thread touches them; a label that is not of a
closed set has at most `_MOST_VALUES` values, and what comes after those is `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from antiphon.observability.metric_names import MetricDefinition

Labels = tuple[str, ...]
Reading = float | Mapping[Labels, float]

_MOST_VALUES: Final = 100
NAME_LENGTH: Final = 256
OTHER: Final = "other"


class BoundedLabelValues:
    """The values of a label that others choose (a model's name, an upstream's error code): the first hundred."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def bounded(self, value: str) -> str:
        """The value itself, or `other` when there are too many, or it is longer than a name is."""
        known = self._seen.get(value)
        if known is not None:
            return known
        if len(self._seen) >= _MOST_VALUES or len(value) > NAME_LENGTH:
            return OTHER
        self._seen[value] = value
        return value


class LabelledCounter:
    """A counter, or a gauge that goes up and down with what it counts: one number for each set of labels. What somebody
    else counts is asked of those who know it, at a scrape."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self.sources: list[Callable[[], Reading]] = []
        """Each tells a number, or numbers by the values of the labels; all of them are added up."""
        self._values: dict[Labels, float] = {} if definition.labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """So many more, or less."""
        values = self._values
        values[labels] = values.get(labels, 0) + by

    def numbers(self) -> Mapping[Labels, float]:
        """What there is now."""
        values = dict(self._values)
        for source in self.sources:
            said = source()
            for labels, value in said.items() if isinstance(said, Mapping) else (((), said),):
                values[labels] = values.get(labels, 0) + value
        return values


class LabelledHistogram:
    """A histogram: how many values lie below each bound, for each set of labels."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self._bounds = definition.buckets
        self._rows: dict[Labels, list[float]] = {} if definition.labels else {(): self._row()}

    def add(self, value: float, *labels: str, times: int = 1) -> None:
        """One more value, or so many that are the same."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = self._row()
        row[bisect_left(self._bounds, value)] += times
        row[-1] += value * times

    def spreads(self) -> Iterator[tuple[Labels, list[tuple[str, float]], float]]:
        """What there is now: how many values lie below each bound, and their sum."""
        for labels, row in self._rows.items():
            yield labels, list(self._buckets(row)), row[-1]

    def _row(self) -> list[float]:
        # One number for each bound, one for what lies above all, and the sum of the values.
        return [0.0] * (len(self._bounds) + 2)

    def _buckets(self, row: list[float]) -> Iterator[tuple[str, float]]:
        below = 0.0
        for bound, number in zip(self._bounds, row, strict=False):
            below += number
            yield repr(float(bound)), below
        yield "+Inf", below + row[-2]
