"""Metrics: the names, labels and values in the text format."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from antiphon.engine.ports.actions import Usage
from antiphon.errors import StoreError
from antiphon.observability.metric_names import CUT_KINDS, METRICS, OF_UP, QUEUED, THREADS
from antiphon.observability.metrics import Metrics
from tests.support.fake_time import in_fake_time


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("error", "results"),
    [(None, {"ok": 1}), (StoreError("no"), {"error": 1}), (KeyError(), {"ok": 1}), (asyncio.CancelledError(), {})],
)
def test_how_a_store_operation_ended_is_counted(error: BaseException | None, results: dict[str, int]) -> None:
    metrics = Metrics()

    def operation() -> None:
        with metrics.storage("save"):
            if error is not None:
                raise error

    if error is None:
        operation()
    else:
        with pytest.raises(type(error)):
            operation()
    found = _samples(metrics)
    counted = {
        dict(labels)["result"]: value for (name, labels), value in found.items() if name.endswith("operations_total")
    }
    assert counted == results
    assert found.get(("antiphon_storage_operation_duration_seconds_count", (("operation", "save"),)), 0) == len(results)


def test_what_operators_rely_on_is_there() -> None:
    metrics = Metrics()
    metrics.response_finished("completed", "relay", 0.2)
    metrics.response_finished("completed", "relay", 7.0)
    metrics.response_finished("failed", "drive", 0.1, fault="upstream", code="server_error", upstream="a")
    with metrics.storage("save"):
        pass
    metrics.tool_execution("file_search", 0.5)
    metrics.in_flight.add()
    found = _samples(metrics)
    assert found["responses_total", (("door", "relay"), ("fault", "none"), ("outcome", "completed"))] == 2
    assert found["responses_total", (("door", "drive"), ("fault", "upstream"), ("outcome", "failed"))] == 1
    assert found["response_duration_seconds_count", (("door", "relay"),)] == 2
    assert found["response_duration_seconds_sum", (("door", "relay"),)] == 7.2
    assert found["response_duration_seconds_bucket", (("door", "relay"), ("le", "0.25"))] == 1
    assert found["storage_operations_total", (("operation", "save"), ("result", "ok"))] == 1
    assert found["tool_execution_duration_seconds_count", (("tool", "file_search"),)] == 1
    assert found["antiphon_responses_in_flight", ()] == 1


def test_two_processes_worth_of_metrics_do_not_share_a_registry() -> None:
    one, other = Metrics(), Metrics()
    one.response_finished("completed", "http", 1.0)
    assert ("responses_total", (("door", "http"), ("fault", "none"), ("outcome", "completed"))) not in _samples(other)


def test_a_name_has_the_prefix_or_is_one_of_four() -> None:
    without = {one.name for one in (*METRICS, *OF_UP) if not one.name.startswith("antiphon_")}
    assert without == {
        "responses_total",
        "response_duration_seconds",
        "tool_execution_duration_seconds",
        "storage_operations_total",
    }


def test_what_is_rendered_has_these_names_and_the_librarys() -> None:
    shown = {family.name for family in text_string_to_metric_families(Metrics().render().decode())}
    ours = {one.name.removesuffix("_total") for one in METRICS}
    assert {name for name in shown - ours if not name.startswith(("process_", "python_"))} == set()


def test_the_metrics_are_described() -> None:
    text = Metrics().render().decode()
    for name, kind in (
        ("responses_total", "counter"),
        ("response_duration_seconds", "histogram"),
        ("tool_execution_duration_seconds", "histogram"),
        ("storage_operations_total", "counter"),
    ):
        assert f"# HELP {name} " in text and f"# TYPE {name} {kind}" in text
    assert Metrics.content_type().startswith("text/plain")


_OF_THE_PROCESS = ("process_", "python_gc_")


def test_what_is_described_is_what_there_is() -> None:
    metrics = Metrics()
    described = {one.name.removesuffix("_total"): one for one in METRICS}
    families = {one.name: one for one in text_string_to_metric_families(metrics.render().decode())}
    own = {name: one for name, one in families.items() if not name.startswith(_OF_THE_PROCESS)}
    assert set(own) == set(described)
    for name, family in own.items():
        assert (family.type, family.documentation) == (described[name].kind, described[name].text)
    assert "process_resident_memory_bytes" in families and "python_gc_collections" in families


def test_no_series_says_when_it_was_created() -> None:
    metrics = Metrics()
    metrics.response_finished("completed", "relay", 0.2)
    assert "_created" not in metrics.render().decode()


def test_a_histogram_counts_what_is_at_most_its_bound() -> None:
    metrics = Metrics()
    for seconds in (0.25, 0.2500001, 600, 601):
        metrics.response_finished("completed", "relay", seconds)
    found = _samples(metrics)
    below = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "response_duration_seconds_bucket"
    }
    assert (below["0.1"], below["0.25"], below["0.5"], below["600.0"], below["+Inf"]) == (0, 1, 2, 3, 4)
    assert found["response_duration_seconds_sum", (("door", "relay"),)] == 0.25 + 0.2500001 + 600 + 601


def test_a_label_that_others_choose_has_at_most_a_hundred_values() -> None:
    metrics, usage = Metrics(), Usage(3, 2, 5)
    for number in range(102):
        metrics.spent(f"model-{number}", "", usage)
    metrics.spent("model-99", "", usage)
    inputs = {
        dict(labels)["model"]: value
        for (name, labels), value in _samples(metrics).items()
        if name == "antiphon_tokens_total" and dict(labels)["kind"] == "input"
    }
    assert len(inputs) == 101
    assert (inputs["model-99"], inputs["other"]) == (6, 6)


async def test_what_others_know_is_asked_at_a_scrape() -> None:
    metrics, known = Metrics(), {"waiting": 0.0}

    async def refresh() -> None:
        known["waiting"] += 2

    metrics.before_scrape(refresh)
    metrics.read(QUEUED, lambda: known["waiting"])
    metrics.read(THREADS, lambda: {("files",): 1.0})
    metrics.read(THREADS, lambda: {("files",): 2.0, ("names",): 1.0})
    text = (await metrics.scraped()).decode()
    assert "antiphon_background_queued 2.0" in text
    assert 'antiphon_threads_busy{pool="files"} 3.0' in text and 'antiphon_threads_busy{pool="names"} 1.0' in text


async def test_a_scrape_does_not_fail_with_the_store_and_says_so_once() -> None:
    metrics, failing = Metrics(), True

    async def refresh() -> None:
        if failing:
            raise StoreError("the disk stands still")

    metrics.before_scrape(refresh)
    metrics.before_scrape(refresh)
    with capture_logs() as lines:
        for _ in range(3):
            assert b"antiphon_responses_in_flight 0.0" in await metrics.scraped()
        failing = False
        await metrics.scraped()
    assert [(line["event"], line.get("cause")) for line in lines] == [
        ("metrics_not_fresh", "the disk stands still"),
        ("metrics_fresh_again", None),
    ]


def test_what_a_drain_may_cut_is_there_before_it_does() -> None:
    assert {labels for (name, labels) in _samples(Metrics()) if name == "antiphon_requests_cut_total"} == {
        (("kind", kind),) for kind in CUT_KINDS
    }


def test_a_name_longer_than_names_are_is_no_label() -> None:
    metrics = Metrics()
    metrics.spent("m" * 257, "a", Usage(1, 2, 3))
    assert _samples(metrics)["antiphon_tokens_total", (("kind", "input"), ("model", "other"), ("upstream", "a"))] == 1


def test_each_metric_is_on_the_page_as_it_is_rendered() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    for one in (*METRICS, *OF_UP):
        labels = "; ".join(f"`{name}`: {values}" for name, values in one.labels.items())
        row = f"| `{one.name}` | {one.kind} | {one.text} | {labels} |\n"
        # The page lists a long text below its table.
        entry = [f"- **`{one.name}`**: {one.text}", *(f"  - `{name}`: {values}" for name, values in one.labels.items())]
        assert row in page or (f"| `{one.name}` | {one.kind} | " in page and "\n".join(entry) in page)


_LONG = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 30.0 60.0 120.0 300.0 600.0 +Inf"
_SHORT = "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 +Inf"


def test_the_bounds_of_histograms_are_those_that_dashboards_have_series_of() -> None:
    metrics = Metrics()
    metrics.response_finished("completed", "relay", 0.2)
    metrics.streamed("relay", 0.1, 0.1)
    metrics.writer_group.add(1, "sessions")
    metrics.searches.add(1, "words")
    bounds: dict[str, list[str]] = {}
    for name, labels in _samples(metrics):
        if name.endswith("_bucket"):
            bounds.setdefault(name.removesuffix("_bucket"), []).append(dict(labels)["le"])
    assert {name: " ".join(sorted(found, key=float)) for name, found in bounds.items()} == {
        "response_duration_seconds": _LONG,
        "antiphon_response_first_event_seconds": _LONG,
        "antiphon_response_event_gap_seconds": _SHORT,
        "antiphon_search_duration_seconds": _LONG,
        "antiphon_event_loop_lag_seconds": _SHORT,
        "antiphon_storage_writer_group": "1.0 2.0 4.0 8.0 16.0 32.0 64.0 128.0 +Inf",
    }


def test_each_event_changes_its_numbers_and_no_others() -> None:
    metrics = Metrics()
    metrics.response_finished("failed", "drive", 0.5, fault="upstream", code="server_error", upstream="a")
    metrics.streamed("relay", 2.0, None)
    metrics.streamed("relay", 3.0, 0.25)
    metrics.spent("m", "a", Usage(7, 5, 12, cached_tokens=3, reasoning_tokens=2), 0.5)
    metrics.spent("m", "b", Usage(4, 1, 5), estimated=True)
    metrics.request_finished("GET /v1/files/{}", 404, "client")
    metrics.request_finished("GET /v1/models", 200)
    metrics.upstream_called("a", "responses", "200", 0.75)
    metrics.upstream_called("a", "models", "unreachable", None)
    for code in ("conversation_locked", "invalid_encrypted_content", "another"):
        metrics.refused_for(code)
    metrics.tool_execution("mcp", 1.5, "timed_out")
    metrics.lag.add(0.125, times=3)
    found = {
        (name.removeprefix("antiphon_"), *dict(labels).values()): value
        for (name, labels), value in _samples(metrics).items()
        if value and not name.startswith(("process_", "python_")) and not name.endswith("_bucket")
    }
    # The values of labels are in the order of the labels' names.
    assert found == {
        ("responses_total", "drive", "upstream", "failed"): 1,
        ("response_failures_total", "server_error", "upstream", "a"): 1,
        ("response_duration_seconds_count", "drive"): 1,
        ("response_duration_seconds_sum", "drive"): 0.5,
        ("response_first_event_seconds_count", "relay"): 2,
        ("response_first_event_seconds_sum", "relay"): 5,
        ("response_event_gap_seconds_count", "relay"): 1,
        ("response_event_gap_seconds_sum", "relay"): 0.25,
        ("cost_total", "m"): 0.5,
        ("tokens_total", "input", "m", "a"): 7,
        ("tokens_total", "output", "m", "a"): 5,
        ("tokens_total", "cached_input", "m", "a"): 3,
        ("tokens_total", "reasoning", "m", "a"): 2,
        ("tokens_total", "estimated_input", "m", "b"): 4,
        ("tokens_total", "estimated_output", "m", "b"): 1,
        ("requests_total", "client", "GET /v1/files/{}", "404"): 1,
        ("requests_total", "none", "GET /v1/models", "200"): 1,
        ("upstream_requests_total", "responses", "200", "a"): 1,
        ("upstream_requests_total", "models", "unreachable", "a"): 1,
        ("upstream_head_seconds_count", "a"): 1,
        ("upstream_head_seconds_sum", "a"): 0.75,
        ("conversation_conflicts_total",): 1,
        ("sealed_content_refused_total",): 1,
        ("tool_execution_duration_seconds_count", "mcp"): 1,
        ("tool_execution_duration_seconds_sum", "mcp"): 1.5,
        ("tool_executions_total", "timed_out", "mcp"): 1,
        ("event_loop_lag_seconds_count",): 3,
        ("event_loop_lag_seconds_sum",): 0.375,
    }


def test_a_scrape_waits_a_second_for_values_and_then_goes_without() -> None:
    async def scrape() -> None:
        metrics, loop = Metrics(), asyncio.get_running_loop()
        metrics.render()
        metrics.before_scrape(asyncio.Event().wait)  # type: ignore[arg-type]
        began = loop.time()
        with capture_logs() as lines:
            assert b"antiphon_responses_in_flight 0.0" in await metrics.scraped()
        assert loop.time() - began == 1
        assert [line["cause"] for line in lines] == ["the values of the gauges were not read within 1 s"]

    in_fake_time(scrape())


def test_a_gauge_that_nobody_feeds_is_known() -> None:
    metrics = Metrics()
    assert {QUEUED.name, THREADS.name} <= metrics.unfed()
    metrics.read(QUEUED, lambda: 1.0)
    assert QUEUED.name not in metrics.unfed() and THREADS.name in metrics.unfed()


def test_a_name_of_just_the_longest_length_is_a_label() -> None:
    metrics = Metrics()
    metrics.spent("m" * 256, "", Usage(1, 2, 3))
    assert _samples(metrics)["antiphon_tokens_total", (("kind", "input"), ("model", "m" * 256), ("upstream", ""))] == 1
