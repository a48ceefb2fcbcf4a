"""Metrics of several processes as those of one: sums that never go backwards."""

from __future__ import annotations

from functools import partial

from prometheus_client.parser import text_string_to_metric_families

from antiphon.commands.merged_metrics import MergedMetrics
from antiphon.observability.metric_names import BUILD, FOLLOWERS, METRICS, QUEUED
from antiphon.observability.metrics import Metrics


def _process(finished: int, in_flight: int = 0) -> str:
    metrics = Metrics()
    for number in range(finished):
        metrics.response_finished("completed", "http", number / 10)
    metrics.in_flight.value = in_flight
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
    assert _value(merged, "responses_in_flight") == 3
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
    merged.forget("a")
    merged.forget("a")
    assert _value(merged, "responses_total") == 3
    merged.take("a", 2, _process(1, in_flight=1))
    assert _value(merged, "responses_total") == 4 and _value(merged, "responses_in_flight") == 1
    # Another one in its place, whose predecessor's end nobody saw.
    merged.take("a", 3, _process(1))
    assert _value(merged, "responses_total") == 5 and _value(merged, "responses_in_flight") == 0


def test_what_all_of_them_show_of_one_thing_is_not_added_up() -> None:
    merged = MergedMetrics()
    shared = {"background_queued", "background_oldest_queued_seconds", "database_bytes", "blobs_bytes"}
    shared |= {"disk_free_bytes", "settings_loaded_timestamp_seconds", "build_info"}
    assert shared == {one.name for one in METRICS if one.merged == "max"}
    for pid, queued in ((1, 5.0), (2, 7.0)):
        metrics = Metrics()
        metrics.read(QUEUED, partial(float, queued))
        metrics.read(FOLLOWERS, lambda: 2)
        metrics.read(BUILD, lambda: {("1", "3", "", ""): 1})
        merged.take(str(pid), pid, metrics.render().decode())
    assert _value(merged, "background_queued") == 7 and _value(merged, "build_info", version="1") == 1
    assert _value(merged, "background_followers") == 4


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
        ("process_start_time_seconds", 1),
    ):
        assert _value(merged, name) == times * _value(alone, name), name
    merged.forget("2")
    assert _value(merged, "process_cpu_seconds_total") == 2 * _value(alone, "process_cpu_seconds_total")
    assert _value(merged, "process_resident_memory_bytes") == _value(alone, "process_resident_memory_bytes")


def test_what_comes_out_is_what_prometheus_reads() -> None:
    merged = MergedMetrics()
    merged.take("a", 1, _process(1))
    text = merged.render().decode()
    assert "# TYPE responses_total counter" in text and "# TYPE response_duration_seconds histogram" in text
    assert "_created" not in text
    assert text.count('responses_total{door="http",fault="none",outcome="completed"} 1.0') == 1
