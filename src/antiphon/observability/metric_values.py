"""Stores counters, histograms and gauges as plain numbers, which a scrape reads.

Lives here: the values of a metric. Not here: the conversion to Prometheus' text format (`exposition.py`), the list of
metrics (`metric_names.py`), the events that change them (`metrics.py`).

Every response updates some twelve metrics. With prometheus_client's own objects, a small request takes 3.3 % more
instructions. So the values are numbers in dictionaries, and a scrape builds prometheus_client's families from them.

Invariants: only the event loop's thread updates them. A label without a fixed set of values has at most `_MOST_VALUES`
values; further ones become `other`.
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
    """The first hundred values of a label that clients or upstreams choose (a model's name, an upstream's error
    code)."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def bounded(self, value: str) -> str:
        """The value itself, or `other` when there are too many, or it is too long."""
        known = self._seen.get(value)
        if known is not None:
            return known
        if len(self._seen) >= _MOST_VALUES or len(value) > NAME_LENGTH:
            return OTHER
        self._seen[value] = value
        return value


class LabelledCounter:
    """A counter, or a gauge that goes up and down: one number per set of labels. A scrape also reads its sources."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self.sources: list[Callable[[], Reading]] = []
        """Each returns a number, or numbers by label values; a scrape adds all of them."""
        self._values: dict[Labels, float] = {} if definition.labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Add `by`, which may be negative."""
        values = self._values
        values[labels] = values.get(labels, 0) + by

    def numbers(self) -> Mapping[Labels, float]:
        """The current numbers."""
        values = dict(self._values)
        for source in self.sources:
            said = source()
            for labels, value in said.items() if isinstance(said, Mapping) else (((), said),):
                values[labels] = values.get(labels, 0) + value
        return values


class LabelledHistogram:
    """A histogram: the number of values below each bound, per set of labels."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self._bounds = definition.buckets
        self._rows: dict[Labels, list[float]] = {} if definition.labels else {(): self._row()}

    def add(self, value: float, *labels: str, times: int = 1) -> None:
        """Add a value, `times` times."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = self._row()
        row[bisect_left(self._bounds, value)] += times
        row[-1] += value * times

    def spreads(self) -> Iterator[tuple[Labels, list[tuple[str, float]], float]]:
        """The current numbers of values below each bound, and their sum."""
        for labels, row in self._rows.items():
            yield labels, list(self._buckets(row)), row[-1]

    def _row(self) -> list[float]:
        # One number per bound, one for values above all bounds, and the sum of the values.
        return [0.0] * (len(self._bounds) + 2)

    def _buckets(self, row: list[float]) -> Iterator[tuple[str, float]]:
        below = 0.0
        for bound, number in zip(self._bounds, row, strict=False):
            below += number
            yield repr(float(bound)), below
        yield "+Inf", below + row[-2]
