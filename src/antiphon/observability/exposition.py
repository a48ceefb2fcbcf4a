"""Renders metrics in Prometheus' text format.

Lives here: the use of prometheus_client: metric families from numbers, its process metrics, the text. Not here: the
numbers (`metric_values.py`), the schedule of reading them (`metrics.py`).

Imported at the first scrape (16 ms, 1.5 MiB): a process serves without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from antiphon.observability.metric_names import MetricDefinition
from antiphon.observability.metric_values import LabelledCounter, LabelledHistogram

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Exposition(Collector):
    """A registry of these metrics, which are read at every rendering, and of process metrics."""

    def __init__(self, kept: Sequence[LabelledCounter | LabelledHistogram]) -> None:
        self._kept = kept
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def collect(self) -> Iterable[Metric]:
        """Every family, in order."""
        return [_family(one) for one in self._kept]

    def render(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)


def gauge(definition: MetricDefinition, value: float) -> Metric:
    """A gauge without labels."""
    family = GaugeMetricFamily(definition.name, definition.text)
    family.add_metric((), value)
    return family


def _family(kept: LabelledCounter | LabelledHistogram) -> Metric:
    one = kept.definition
    labels = tuple(one.labels)
    if isinstance(kept, LabelledHistogram):
        histogram = HistogramMetricFamily(one.name, one.text, labels=labels)
        for values, buckets, total in kept.spreads():
            histogram.add_metric(values, buckets, sum_value=total)
        return histogram
    kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
    family = kind(one.name, one.text, labels=labels)
    for values, number in kept.numbers().items():
        family.add_metric(values, number)
    return family
