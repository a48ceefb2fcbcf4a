"""The metrics of several processes as those of one.

Lives here: adding up what the processes' texts say, and remembering what ended ones had counted. Not here: asking them
(`up.py`), names and labels (`observability/metrics.py`).

Invariant: a counter never goes backwards, whichever process ended, was replaced or did not answer this time. What a
process counted between its last text and its end is lost, never counted twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from antiphon.observability.metric_names import METRICS

_Labels = tuple[tuple[str, str], ...]
_Sums = dict[tuple[str, _Labels], float]

# Of what all processes show, the largest is the truth.
_OF_ALL = {one.name for one in METRICS if one.merged == "max"} | {"process_start_time_seconds", "process_max_fds"}


class MergedMetrics:
    """What was read of every process, by its name and process id."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._families: dict[str, str] = {}
        self._ended: _Sums = defaultdict(float)
        self._latest: dict[str, tuple[int, _Sums]] = {}

    def take(self, name: str, pid: int, text: str) -> None:
        """A text of the process with this id that has this name."""
        read: _Sums = {}
        for family in text_string_to_metric_families(text):
            # When a counter began means nothing in a sum.
            if family.name.endswith("_created"):
                continue
            self._kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._families[sample.name] = family.name
                    read[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        before = self._latest.get(name)
        if before is not None and before[0] != pid:
            self._bury(before[1])
        self._latest[name] = (pid, read)

    def forget(self, name: str) -> None:
        """The process of this name ended: what it counted stays, what it had at the moment does not."""
        before = self._latest.pop(name, None)
        if before is not None:
            self._bury(before[1])

    def render(self, own: Iterable[Metric] = ()) -> bytes:
        """All of it as text, and the metrics of our own."""
        sums: _Sums = defaultdict(float, self._ended)
        for _, read in self._latest.values():
            for (name, labels), value in read.items():
                if self._families[name] in _OF_ALL:
                    sums[name, labels] = max(sums.get((name, labels), value), value)
                else:
                    sums[name, labels] += value
        found: dict[str, Metric] = {}
        for (name, labels), value in sums.items():
            family = self._families[name]
            if family not in found:
                kind, text = self._kinds[family]
                found[family] = Metric(family, text, kind)
            found[family].add_sample(name, dict(labels), value)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Fixed([*found.values(), *own]))
        return generate_latest(registry)

    def _bury(self, read: _Sums) -> None:
        for (name, labels), value in read.items():
            if self._kinds[self._families[name]][0] in ("counter", "histogram", "summary"):
                self._ended[name, labels] += value


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
