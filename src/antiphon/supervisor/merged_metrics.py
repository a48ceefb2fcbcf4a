"""Merges the metrics of several processes into one exposition.

Lives here: adding up what the processes' texts say, remembering what ended workers' texts had counted, and the text of
`/metrics` of the parent. Imported only where somebody is to be shown it. Not here: asking the workers
(`generation.py`), names and labels (`observability/metric_names.py`), the listener (`commands/metrics_listener.py`).

Invariants: a counter never goes backwards, whichever process ended, was replaced, did not answer this time or answered
late: sums are exact, since those of floats depend on their order, and one bit less is a reset to Prometheus. What a
process counted between its last text and its end is lost, never counted twice. `process_start_time_seconds` is when
this process began, since which the counters count.
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
# Of what all processes show, the largest is the truth.
_OF_ALL = {one.name for one in METRICS if one.merged == "max"} | {"process_max_fds"}
_COUNTED = ("counter", "histogram", "summary")


class MergedMetrics:
    """What was read of every process, by its name (with the number of its generation). A name has one process at a
    time; each of them is a life of it, numbered as they were started. A process that ended is counted with what it had
    counted, and shown no more."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._families: dict[str, str] = {}
        self._ended: defaultdict[_Key, Fraction] = defaultdict(Fraction)
        self._lives: dict[str, int] = {}
        self._latest: dict[str, _Values] = {}
        # The workers' would move with each that is replaced, and who goes by it would take that for a reset.
        self._began = [one for one in ProcessCollector(registry=None).collect() if one.name == _START]

    def take(self, name: str, life: int, text: str) -> None:
        """A text of this life of the process that has this name. Several ask at a time, so it may be older than one
        that was taken before it, or of a process that has ended since."""
        self.forget(name, life)
        if life < self._lives[name]:
            return
        read = self._read(text)
        for key, value in self._latest.get(name, {}).items():
            if self._is_counted(key):
                read[key] = max(value, read.get(key, value))
        self._latest[name] = read

    def forget(self, name: str, life: int) -> None:
        """The lives before this one ended: what they counted stays, what they had at the moment does not."""
        if life > self._lives.get(name, -1):
            self._lives[name] = life
            for key, value in self._latest.pop(name, {}).items():
                if self._is_counted(key):
                    self._ended[key] += Fraction(value)

    def render(self, own: Iterable[Metric] = ()) -> bytes:
        """All of it as text, and the metrics of our own."""
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
            # When a counter or a process began means nothing in a sum.
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
    """What the parent counts itself: how often processes were replaced, and what came of changes of settings."""
    restarts = CounterMetricFamily(RESTARTS.name, RESTARTS.text, labels=tuple(RESTARTS.labels))
    for process in processes:
        restarts.add_metric((process.name, "died"), process.died)
        restarts.add_metric((process.name, "hung"), process.hung)
    counted = CounterMetricFamily(RELOADS.name, RELOADS.text, labels=tuple(RELOADS.labels))
    for result, count in reloads.results.items():
        counted.add_metric((result,), count)
    return [restarts, counted, gauge(RELOADED, float(reloads.last == "accepted"))]
