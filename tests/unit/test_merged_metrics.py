"""Metrics of several processes as those of one: sums that never go backwards."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from antiphon.observability.metric_names import BUILD, FOLLOWERS, METRICS, QUEUED
from antiphon.observability.metrics import Metrics
from antiphon.supervisor.merged_metrics import MergedMetrics

_SUM = """\
# TYPE it_seconds histogram
it_seconds_bucket{{le="+Inf"}} 1
it_seconds_count 1
it_seconds_sum {}
"""


def _process(finished: int, in_flight: int = 0) -> str:
    metrics = Metrics()
    for number in range(finished):
        metrics.response_finished("completed", "http", number / 10)
    metrics.in_flight.add(by=in_flight)
    return metrics.render().decode()


def _value(merged: MergedMetrics, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(merged.render().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no {name}")


def test_processes_are_added_up() -> None:
    merged = MergedMetrics()
    merged.take("a", 1, _process(3, in_flight=2))
    merged.take("b", 2, _process(4, in_flight=1))
    assert _value(merged, "responses_total", outcome="completed", door="http") == 7
    assert _value(merged, "antiphon_responses_in_flight") == 3
    assert _value(merged, "response_duration_seconds_count", door="http") == 7
    assert _value(merged, "response_duration_seconds_bucket", door="http", le="+Inf") == 7
    assert _value(merged, "response_duration_seconds_bucket", door="http", le="0.05") == 2


def test_a_later_text_replaces_the_earlier_one() -> None:
    merged = MergedMetrics()
    merged.take("a", 1, _process(3))
    merged.take("a", 1, _process(5))
    assert _value(merged, "responses_total") == 5


def test_counters_of_processes_that_ended_stay_and_gauges_go() -> None:
    merged = MergedMetrics()
    merged.take("a", 1, _process(3, in_flight=2))
    merged.forget("a", 1)
    assert _value(merged, "antiphon_responses_in_flight") == 2
    merged.forget("a", 2)
    merged.forget("a", 2)
    assert _value(merged, "responses_total") == 3
    merged.take("a", 2, _process(1, in_flight=1))
    assert _value(merged, "responses_total") == 4 and _value(merged, "antiphon_responses_in_flight") == 1
    # Another one in its place, whose predecessor's end nobody saw.
    merged.take("a", 3, _process(1))
    assert _value(merged, "responses_total") == 5 and _value(merged, "antiphon_responses_in_flight") == 0


def test_what_all_of_them_show_of_one_thing_is_not_added_up() -> None:
    merged = MergedMetrics()
    shared = {
        "antiphon_background_queued",
        "antiphon_background_oldest_queued_seconds",
        "antiphon_database_bytes",
        "antiphon_blobs_bytes",
    }
    shared |= {
        f"antiphon_database_{name}" for name in ("table_bytes", "connections", "connections_max", "oldest_xmin_age")
    }
    shared |= {
        "antiphon_not_ready_seconds",
        "antiphon_disk_free_bytes",
        "antiphon_settings_loaded_timestamp_seconds",
        "antiphon_build_info",
    }
    assert shared == {one.name for one in METRICS if one.merged == "max"}
    for pid, queued in ((1, 5.0), (2, 7.0)):
        metrics = Metrics()
        metrics.read(QUEUED, partial(float, queued))
        metrics.read(FOLLOWERS, lambda: 2)
        metrics.read(BUILD, lambda: {("1", "3", "", ""): 1})
        merged.take(str(pid), pid, metrics.render().decode())
    assert _value(merged, "antiphon_background_queued") == 7 and _value(merged, "antiphon_build_info", version="1") == 1
    assert _value(merged, "antiphon_background_followers") == 4


def test_what_a_process_says_of_itself_makes_sense_in_the_sum() -> None:
    merged = MergedMetrics()
    text = _process(0)
    alone = MergedMetrics()
    alone.take("a", 1, text)
    for pid in (1, 2):
        merged.take(str(pid), pid, text)
    for name, times in (
        ("process_resident_memory_bytes", 2),
        ("process_cpu_seconds_total", 2),
        ("process_open_fds", 2),
        ("process_max_fds", 1),
    ):
        assert _value(merged, name) == times * _value(alone, name), name
    merged.forget("2", 3)
    assert _value(merged, "process_cpu_seconds_total") == 2 * _value(alone, "process_cpu_seconds_total")
    assert _value(merged, "process_resident_memory_bytes") == _value(alone, "process_resident_memory_bytes")


def test_a_text_that_comes_late_takes_nothing_back() -> None:
    """Two scrapes ask the same process, and the answers overtake each other."""
    merged = MergedMetrics()
    older, newer = _process(3, in_flight=2), _process(5, in_flight=1)
    merged.take("a", 1, newer)
    merged.take("a", 1, older)
    for name in ("responses_total", "response_duration_seconds_count", "response_duration_seconds_bucket"):
        assert _value(merged, name, door="http") == (5 if name != "response_duration_seconds_bucket" else 1), name
    # A gauge is whatever was read last.
    assert _value(merged, "antiphon_responses_in_flight") == 2


def test_a_text_of_a_process_that_has_ended_is_not_counted_twice() -> None:
    merged = MergedMetrics()
    text = _process(3, in_flight=2)
    merged.take("a", 1, text)
    merged.forget("a", 2)
    merged.take("a", 1, text)
    assert _value(merged, "responses_total") == 3
    merged.take("a", 2, _process(1))
    merged.take("a", 1, text)
    merged.take("a", 2, _process(2))
    assert _value(merged, "responses_total") == 5 and _value(merged, "antiphon_responses_in_flight") == 0


def test_sums_do_not_depend_on_who_ended() -> None:
    """0.1 + 0.2 + 0.3 is 0.6 or 0.6000000000000001, by the order; to Prometheus the less is a counter that began anew,
    all of which it adds to the rate."""
    seconds = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 1e-17, "e": 0.7}
    for order in permutations(seconds):
        merged, sums = MergedMetrics(), set()
        for name in sorted(seconds):
            merged.take(name, 1, _SUM.format(seconds[name]))
        for name in order:
            sums.add(_value(merged, "it_seconds_sum"))
            merged.forget(name, 2)
        sums.add(_value(merged, "it_seconds_sum"))
        assert sums == {math.fsum(seconds.values())}, order


def test_the_counters_began_with_this_process() -> None:
    """Whoever takes a new start for a reset must not see one when a worker is replaced."""
    own = CollectorRegistry()
    ProcessCollector(registry=own)
    began = own.get_sample_value("process_start_time_seconds")
    merged = MergedMetrics()
    for life in (1, 2):
        later = _process(1).replace("\nprocess_start_time_seconds ", f"\nprocess_start_time_seconds {life}")
        merged.take("a", life, later)
        assert _value(merged, "process_start_time_seconds") == began
        assert merged.render().count(b"\nprocess_start_time_seconds ") == (began is not None)


def test_what_comes_out_is_what_prometheus_reads() -> None:
    merged = MergedMetrics()
    merged.take("a", 1, _process(1))
    text = merged.render().decode()
    assert "# TYPE responses_total counter" in text and "# TYPE response_duration_seconds histogram" in text
    assert "_created" not in text
    assert text.count('responses_total{door="http",fault="none",outcome="completed"} 1.0') == 1
