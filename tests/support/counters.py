"""Checks that the counters of one metrics address behave as Prometheus expects from scrape to scrape."""

from __future__ import annotations

import math
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, tuple[tuple[str, str], ...]]


class Watcher:
    """The observations of one scraper. Two concurrent scrapers need one `Watcher` each, because the order of their
    answers is unknown."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.counters: dict[Series, float] = {}
        """The last value of each counter, and of each histogram's buckets, count and sum, by name and labels."""
        self.gauges: dict[Series, float] = {}

    def see(self, text: str) -> None:
        """Check one more scrape. Raises `AssertionError` if a counter is missing or decreased, or if a histogram is
        inconsistent."""
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
        """The sum of the counters with this name and these labels."""
        wanted = labels.items()
        return sum(value for (one, has), value in self.counters.items() if one == name and wanted <= dict(has).items())


def _check_histograms(counters: dict[Series, float]) -> None:
    """Check that the buckets of each histogram increase with their bound, and that the last bucket equals `_count`."""
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
