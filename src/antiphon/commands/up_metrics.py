"""What `antiphon up` shows of itself and its workers.

Lives here: the text of `/metrics` of the parent. Imported only where somebody is to be shown it. Not here: adding up
(`merged_metrics.py`), asking the workers (`up.py`), the listener (`metrics_listener.py`).

Invariant: a process that ended is counted with what it had counted, and shown no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from antiphon.commands.merged_metrics import MergedMetrics
from antiphon.commands.reloading import ReloadCounts
from antiphon.commands.supervisor import Supervised
from antiphon.observability.exposition import gauge
from antiphon.observability.metric_names import RELOADED, RELOADS, RESTARTS


class UpMetrics:
    """`take` is told a worker's text."""

    def __init__(self) -> None:
        self._merged = MergedMetrics()
        self.take = self._merged.take

    def render(self, processes: Sequence[Supervised], reloads: ReloadCounts) -> bytes:
        """The metrics of all workers as one, and our own."""
        restarts = CounterMetricFamily(RESTARTS.name, RESTARTS.text, labels=tuple(RESTARTS.labels))
        for process in processes:
            ended = process.child is not None and process.child.status is not None
            self._merged.forget(process.name, process.life + ended)
            restarts.add_metric((process.name, "died"), process.died)
            restarts.add_metric((process.name, "hung"), process.hung)
        return self._merged.render([restarts, *_of_reloads(reloads)])


def _of_reloads(reloads: ReloadCounts) -> list[Metric]:
    counted = CounterMetricFamily(RELOADS.name, RELOADS.text, labels=tuple(RELOADS.labels))
    for result, count in reloads.results.items():
        counted.add_metric((result,), count)
    return [counted, gauge(RELOADED, float(reloads.last == "accepted"))]
