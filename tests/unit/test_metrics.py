"""Metrics: the names, labels and values in the text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from antiphon.observability.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_operators_rely_on_is_there() -> None:
    metrics = Metrics()
    metrics.response_finished("completed", "relay", 0.2)
    metrics.response_finished("completed", "relay", 7.0)
    metrics.response_finished("failed", "drive", 0.1)
    metrics.storage_operation("save", "ok", 0.001)
    metrics.tool_execution("file_search", 0.5)
    metrics.in_flight.inc()
    found = _samples(metrics)
    assert found["responses_total", (("door", "relay"), ("outcome", "completed"))] == 2
    assert found["responses_total", (("door", "drive"), ("outcome", "failed"))] == 1
    assert found["response_duration_seconds_count", (("door", "relay"),)] == 2
    assert found["response_duration_seconds_sum", (("door", "relay"),)] == 7.2
    assert found["response_duration_seconds_bucket", (("door", "relay"), ("le", "0.25"))] == 1
    assert found["storage_operations_total", (("operation", "save"), ("result", "ok"))] == 1
    assert found["tool_execution_duration_seconds_count", (("tool", "file_search"),)] == 1
    assert found["responses_in_flight", ()] == 1


def test_two_processes_worth_of_metrics_do_not_share_a_registry() -> None:
    one, other = Metrics(), Metrics()
    one.response_finished("completed", "http", 1.0)
    assert ("responses_total", (("door", "http"), ("outcome", "completed"))) not in _samples(other)


def test_the_metrics_are_described() -> None:
    text = Metrics().render().decode()
    for name, kind in (
        ("responses_total", "counter"),
        ("response_duration_seconds", "histogram"),
        ("tool_execution_duration_seconds", "histogram"),
        ("storage_operations_total", "counter"),
    ):
        assert f"# HELP {name} " in text and f"# TYPE {name} {kind}" in text
    assert Metrics.content_type.startswith("text/plain")


def test_what_is_described_is_what_there_is() -> None:
    metrics = Metrics()
    metrics.response_finished("completed", "relay", 0.2)
    metrics.storage_operation("save", "ok", 0.001)
    metrics.tool_execution("file_search", 0.5)
    metrics.file_ingested("completed")
    metrics.refused("limits.owner_requests")
    metrics.searched("words", 0.1)
    described = {one.name.removesuffix("_total"): one for one in metrics.described}
    families = [
        family
        for family in text_string_to_metric_families(metrics.render().decode())
        if not family.name.endswith("_created")
    ]
    assert {family.name for family in families} == set(described)
    for family in families:
        one = described[family.name]
        assert (family.type, family.documentation) == (one.kind, one.text)
        assert set(family.samples[0].labels) - {"le"} == set(one.labels)
        for label in one.labels:
            assert family.samples[0].labels[label] in one.labels[label] or label == "tool", (family.name, label)
