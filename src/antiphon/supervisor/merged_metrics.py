"""Merges the metrics of all workers into the `/metrics` text of the parent process.

This module adds up the values of all workers, and keeps the counts of workers that have ended. The parent process
imports this module only if it serves metrics. `generation.py` queries the workers, `observability/metric_names.py`
defines names and labels, and `commands/metrics_listener.py` answers the scrapes.

Invariants: a counter never decreases, even when a worker ends, is replaced, does not answer or answers late. Prometheus
would treat a decrease as a reset. So the module adds counters as exact fractions, because a sum of floats depends on
the order of the numbers. Counts that a worker adds after the parent process has last queried it are lost. No count is
added twice. `process_start_time_seconds` is the start time of the parent process, because the counters began at that
time.
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
# All processes report the same value of these metrics, so the merged value is the largest one.
_OF_ALL = {one.name for one in METRICS if one.merged == "max"} | {"process_max_fds"}
_COUNTED = ("counter", "histogram", "summary")


class MergedMetrics:
    """Stores the last metrics of each worker, by the generation's number and the worker's name. When a worker restarts,
    the new process has the same name and the next number `life`. When a process ends, this class keeps its counts and
    drops its gauges."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._families: dict[str, str] = {}
        self._ended: defaultdict[_Key, Fraction] = defaultdict(Fraction)
        self._lives: dict[str, int] = {}
        self._latest: dict[str, _Values] = {}
        # The parent's start time is used. A worker's start time would change with each replacement, and Prometheus
        # would take the change for a reset.
        self._began = [one for one in ProcessCollector(registry=None).collect() if one.name == _START]

    def take(self, name: str, life: int, text: str) -> None:
        """Store the metrics text of one process. `life` is the number of the process among all processes with this
        name. Because queries overlap, the text may be older than the stored text, or may come from a process that has
        ended."""
        self.forget(name, life)
        if life < self._lives[name]:
            return
        read = self._read(text)
        for key, value in self._latest.get(name, {}).items():
            if self._is_counted(key):
                read[key] = max(value, read.get(key, value))
        self._latest[name] = read

    def forget(self, name: str, life: int) -> None:
        """Record that the processes with this name and a number below `life` have ended. Keep their counts and drop
        their gauges."""
        if life > self._lives.get(name, -1):
            self._lives[name] = life
            for key, value in self._latest.pop(name, {}).items():
                if self._is_counted(key):
                    self._ended[key] += Fraction(value)

    def render(self, own: Iterable[Metric] = ()) -> bytes:
        """Return the metrics of all workers and `own`, the parent process's own metrics, as Prometheus text."""
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
            # The creation time of a counter and the start time of a process have no meaning in a sum.
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
    """Return the metrics of the parent process itself: the number of replaced processes, and the results of reloads."""
    restarts = CounterMetricFamily(RESTARTS.name, RESTARTS.text, labels=tuple(RESTARTS.labels))
    for process in processes:
        restarts.add_metric((process.name, "died"), process.died)
        restarts.add_metric((process.name, "hung"), process.hung)
    counted = CounterMetricFamily(RELOADS.name, RELOADS.text, labels=tuple(RELOADS.labels))
    for result, count in reloads.results.items():
        counted.add_metric((result,), count)
    return [restarts, counted, gauge(RELOADED, float(reloads.last == "accepted"))]
