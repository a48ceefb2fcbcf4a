"""Merges the metrics of several processes into one exposition.

Lives here: adding up the processes' expositions, storing the counts of ended workers, and the parent's `/metrics` text.
Imported only if the parent serves metrics. Not here: querying the workers (`generation.py`), names and labels
(`observability/metric_names.py`), the listener (`commands/metrics_listener.py`).

Invariants: a counter never decreases, whichever process ended, was replaced, did not answer or answered late. So sums
are exact fractions: sums of floats depend on their order, and for Prometheus one bit less is a reset. Counts between a
process's last exposition and its end are lost, never counted twice. `process_start_time_seconds` is the start of this
process, when the counters began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from antiphon.observability.exposition import gauge
from antiphon.observability.metric_names import METRICS, RELOADED, RELOADS, RESTARTS
from antiphon.supervisor.changed_settings import ReloadCounts
from antiphon.supervisor.supervision import Supervised

_Labels = tuple[tuple[str, str], ...]
_Key = tuple[str, _Labels]
_Values = dict[_Key, float]

_START = "process_start_time_seconds"
# For values that all processes report, the largest is right.
_OF_ALL = {one.name for one in METRICS if one.merged == "max"} | {"process_max_fds"}
_COUNTED = ("counter", "histogram", "summary")


class MergedMetrics:
    """The last expositions of all processes, by name (with the number of the generation). A name has one process at a
    time; its processes are numbered as lives. The counts of an ended process stay, and its gauges are dropped."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._families: dict[str, str] = {}
        self._ended: defaultdict[_Key, Fraction] = defaultdict(Fraction)
        self._lives: dict[str, int] = {}
        self._latest: dict[str, _Values] = {}
        # The workers' start times would change with each replacement, and a reader would take that for a reset.
        self._began = [one for one in ProcessCollector(registry=None).collect() if one.name == _START]

    def take(self, name: str, life: int, text: str) -> None:
        """Store the exposition of this life of the named process. Queries overlap, so it may be older than a stored
        one, or come from a process that has ended."""
        self.forget(name, life)
        if life < self._lives[name]:
            return
        read = self._read(text)
        for key, value in self._latest.get(name, {}).items():
            if self._is_counted(key):
                read[key] = max(value, read.get(key, value))
        self._latest[name] = read

    def forget(self, name: str, life: int) -> None:
        """The lives before this one have ended: keep their counts, and drop their gauges."""
        if life > self._lives.get(name, -1):
            self._lives[name] = life
            for key, value in self._latest.pop(name, {}).items():
                if self._is_counted(key):
                    self._ended[key] += Fraction(value)

    def render(self, own: Iterable[Metric] = ()) -> bytes:
        """The exposition of all processes, with the parent's own metrics."""
        counts = defaultdict(Fraction, self._ended)
        moments: _Values = {}
        for read in self._latest.values():
            for key, value in read.items():
                if self._is_counted(key):
                    counts[key] += Fraction(value)
                elif self._families[key[0]] in _OF_ALL:
                    moments[key] = max(moments.get(key, value), value)
                else:
                    moments[key] = moments.get(key, 0.0) + value
        found: dict[str, Metric] = {}
        rounded = {key: float(count) for key, count in counts.items()}
        for (name, labels), value in (rounded | moments).items():
            family = self._families[name]
            if family not in found:
                kind, text = self._kinds[family]
                found[family] = Metric(family, text, kind)
            found[family].add_sample(name, dict(labels), value)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Fixed([*found.values(), *self._began, *own]))
        return generate_latest(registry)

    def _read(self, text: str) -> _Values:
        read: _Values = {}
        for family in text_string_to_metric_families(text):
            # The creation time of a counter or the start of a process has no meaning in a sum.
            if family.name.endswith("_created") or family.name == _START:
                continue
            self._kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._families[sample.name] = family.name
                    read[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        return read

    def _is_counted(self, key: _Key) -> bool:
        return self._kinds[self._families[key[0]]][0] in _COUNTED


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def own_counts(processes: Iterable[Supervised], reloads: ReloadCounts) -> list[Metric]:
    """The parent's own counters: replaced processes, and results of reloads."""
    restarts = CounterMetricFamily(RESTARTS.name, RESTARTS.text, labels=tuple(RESTARTS.labels))
    for process in processes:
        restarts.add_metric((process.name, "died"), process.died)
        restarts.add_metric((process.name, "hung"), process.hung)
    counted = CounterMetricFamily(RELOADS.name, RELOADS.text, labels=tuple(RELOADS.labels))
    for result, count in reloads.results.items():
        counted.add_metric((result,), count)
    return [restarts, counted, gauge(RELOADED, float(reloads.last == "accepted"))]
