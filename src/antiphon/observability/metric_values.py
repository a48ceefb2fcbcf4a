"""Stores counters, histograms and gauges as plain numbers, which a scrape reads.

`exposition.py` converts the numbers to Prometheus' text format. `metric_names.py` lists the metrics, and `metrics.py`
updates their numbers when events happen. `StorageOperation` counts and traces one operation of a store, and measures
its duration.

Every response updates about twelve metrics. With prometheus_client's own objects, a small request would take 3.3 % more
instructions. So this module stores the values as numbers in dictionaries, and a scrape builds prometheus_client's
metric families from them.

Invariants: only the event loop's thread updates the values. A label without a closed set of values has at most
`_MOST_VALUES` values, and every further value becomes `other`. The module does not count a cancelled operation of a
store, because the operation's outcome is unknown.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

from antiphon.errors import StoreError
from antiphon.observability import span_names
from antiphon.observability.metric_names import MetricDefinition
from antiphon.observability.tracing import is_traced, span

Labels = tuple[str, ...]
Reading = float | Mapping[Labels, float]

_MOST_VALUES: Final = 100
NAME_LENGTH: Final = 256
OTHER: Final = "other"


class BoundedLabelValues:
    """Limits a label whose values clients or upstreams choose, such as a model's name or an upstream's error code. The
    first hundred different values stay, and all later values become `other`."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def bounded(self, value: str) -> str:
        """Return the value itself. Returns `other` when the label already has too many values or when the value is too
        long."""
        known = self._seen.get(value)
        if known is not None:
            return known
        if len(self._seen) >= _MOST_VALUES or len(value) > NAME_LENGTH:
            return OTHER
        self._seen[value] = value
        return value


class LabelledCounter:
    """A counter, or a gauge that can increase and decrease. The counter stores one number per set of label values. A
    scrape also adds the results of the functions in `sources`."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self.sources: list[Callable[[], Reading]] = []
        """Functions that return a number, or numbers by label values. A scrape adds the results of all sources to the
        stored numbers."""
        self._values: dict[Labels, float] = {} if definition.labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Add `by`, which may be negative, to the number for these label values."""
        values = self._values
        values[labels] = values.get(labels, 0) + by

    def numbers(self) -> Mapping[Labels, float]:
        """Return the current number for each set of label values, including the results of the functions in
        `sources`."""
        values = dict(self._values)
        for source in self.sources:
            said = source()
            for labels, value in said.items() if isinstance(said, Mapping) else (((), said),):
                values[labels] = values.get(labels, 0) + value
        return values


class LabelledHistogram:
    """A histogram, which counts the values in each bucket, per set of label values."""

    def __init__(self, definition: MetricDefinition) -> None:
        self.definition = definition
        self._bounds = definition.buckets
        self._rows: dict[Labels, list[float]] = {} if definition.labels else {(): self._row()}

    def add(self, value: float, *labels: str, times: int = 1) -> None:
        """Add a value `times` times."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = self._row()
        row[bisect_left(self._bounds, value)] += times
        row[-1] += value * times

    def spreads(self) -> Iterator[tuple[Labels, list[tuple[str, float]], float]]:
        """Yield for each set of label values the cumulative bucket counts and the sum of the values."""
        for labels, row in self._rows.items():
            yield labels, list(self._buckets(row)), row[-1]

    def _row(self) -> list[float]:
        # A row has one count per bucket, one count for values above the last bound, and the sum of the values.
        return [0.0] * (len(self._bounds) + 2)

    def _buckets(self, row: list[float]) -> Iterator[tuple[str, float]]:
        below = 0.0
        for bound, number in zip(self._bounds, row, strict=False):
            below += number
            yield repr(float(bound)), below
        yield "+Inf", below + row[-2]


class StorageOperation:
    """The context manager that counts, times and traces one store operation. A generator-based context manager would
    take five times as long, even without a span."""

    def __init__(self, operation: str, database: str, ended: LabelledCounter, seconds: LabelledHistogram) -> None:
        self._operation = operation
        self._database = database
        self._ended = ended
        self._seconds = seconds
        self._span: AbstractContextManager[object] | None = None
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        if is_traced():
            name = f"{span_names.STORE} {self._operation}"
            self._span = span(name, "client", db__system__name=self._database, db__operation__name=self._operation)
            self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            result = "error" if kind is not None and issubclass(kind, StoreError) else "ok"
            self._ended.add(self._operation, result)
            self._seconds.add(time.perf_counter() - self._started, self._operation)
