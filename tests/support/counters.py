"""Whether the counters of one address behave as Prometheus expects, from scrape to scrape."""

from __future__ import annotations

import math
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, tuple[tuple[str, str], ...]]


class Watcher:
    """What one scraper has seen. Two that scrape at a time need one each: which of their answers is the newer, nobody
    knows."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.counters: dict[Series, float] = {}
        """Counters, and buckets, counts and sums of histograms, by name and labels."""
        self.gauges: dict[Series, float] = {}

    def see(self, text: str) -> None:
        """One more scrape. Raises `AssertionError` when a series of counters is gone or less than it was, or when a
        histogram is not one."""
        counters: dict[Series, float] = {}
        gauges: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            kept = gauges if family.type == "gauge" else counters
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in kept, f"{key} is there twice"
                kept[key] = sample.value
        for key, before in self.counters.items():
            assert key in counters, f"scrape {self.scrapes}: {key} was {before!r} and is gone"
            assert counters[key] >= before, f"scrape {self.scrapes}: {key} was {before!r} and is {counters[key]!r}"
        _check_histograms(counters)
        self.counters, self.gauges = counters, gauges
        self.scrapes += 1

    def total(self, name: str, **labels: str) -> float:
        """The sum of the counters of this name with these labels."""
        wanted = labels.items()
        return sum(value for (one, has), value in self.counters.items() if one == name and wanted <= dict(has).items())


def _check_histograms(counters: dict[Series, float]) -> None:
    """Buckets grow with their bound, and the last one holds as many as `_count` says."""
    histograms: defaultdict[Series, list[tuple[float, float]]] = defaultdict(list)
    for (name, labels), value in counters.items():
        if name.endswith("_bucket"):
            others = tuple(label for label in labels if label[0] != "le")
            histograms[name.removesuffix("_bucket"), others].append((float(dict(labels)["le"]), value))
    for (name, labels), buckets in histograms.items():
        bounds, values = zip(*sorted(buckets), strict=True)
        assert list(values) == sorted(values), f"{name} {labels}: {buckets}"
        assert bounds[-1] == math.inf and values[-1] == counters[name + "_count", labels], f"{name} {labels}"
        assert counters[name + "_sum", labels] >= 0
