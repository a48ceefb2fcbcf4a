"""The dashboard, the rules and the runbook fit the metrics there are, and each other. No Prometheus is needed."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from antiphon.observability.metric_names import METRICS, OF_UP, MetricDefinition
from antiphon.observability.metrics import Metrics
from tests.support.monitoring_files import (
    DASHBOARD,
    FOLDER,
    PROMETHEUS,
    RULES,
    RUNBOOK,
    Expression,
    alerts,
    panel_expressions,
    rule_expressions,
    rules,
    scaled,
)

# What Prometheus itself adds to every series, or has.
_TARGET = {"job", "instance"}
_OWN = {"up": _TARGET, "ALERTS": {"alertname", "alertstate", "severity"}}
_RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def _series(one: MetricDefinition) -> dict[str, set[str]]:
    labels = {*one.labels, *_TARGET}
    if one.kind != "histogram":
        return {one.name: labels}
    return {f"{one.name}_bucket": {*labels, "le"}, f"{one.name}_sum": labels, f"{one.name}_count": labels}


def _known() -> dict[str, set[str]]:
    known = {name: labels for one in (*METRICS, *OF_UP) for name, labels in _series(one).items()}
    # Those of the process and of Python itself come with the library.
    library = re.findall(r"^((?:process|python)_\w+)(?:\{(.*)\})?", Metrics().render().decode(), re.MULTILINE)
    return known | _OWN | {name: {*re.findall(r'(\w+)="', labels), *_TARGET} for name, labels in library}


_KNOWN = _known()
_LABELS = {label for labels in _KNOWN.values() for label in labels} | {"reason"}


@pytest.mark.parametrize("expression", [*rule_expressions(), *panel_expressions()], ids=lambda one: one.where)
def test_an_expression_asks_for_what_there_is(expression: Expression) -> None:
    asked = list(expression.asked_for())
    assert asked
    own = {"reason"}
    for name, labels in asked:
        if name in _RECORDED:
            assert labels <= _LABELS, (name, labels)
            own |= _LABELS
        else:
            assert name in _KNOWN, f"there is no metric {name}"
            assert labels <= _KNOWN[name], f"{name} has no label {labels - _KNOWN[name]}"
            own |= _KNOWN[name]
        if name == "ALERTS":
            own |= _LABELS
    assert expression.grouped_by() <= own


def test_what_there_is_not_is_noticed() -> None:
    asked = dict(
        Expression("", 'sum by (x) (rate(responses_total{fault="a,b=c", colour=~"d"}[5m])) / nothing').asked_for()
    )
    assert asked == {"responses_total": {"fault", "colour"}, "nothing": set()}
    assert Expression("", "sum by (x, job) (a) > 0.5 and on (job) b == 3").without_threshold == (
        "sum by (x, job) (a) and on (job) b"
    )


@pytest.mark.parametrize("alert", alerts(), ids=lambda one: one["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page == "docs/how-to/operations.md" and anchor == str(alert["alert"]).lower()
    assert anchor in _anchors()


def _anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower() for heading in headings}


def test_the_runbook_has_no_alert_that_there_is_not() -> None:
    told = set(re.findall(r"^#+ (Antiphon\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert told == {alert["alert"] for alert in alerts()}


def test_every_alert_has_a_test_of_promtools() -> None:
    tried: set[str] = set()
    for file in (FOLDER / "tests").glob("*.yml"):
        for test in yaml.safe_load(file.read_text())["tests"]:
            tried |= {one["alertname"] for one in test.get("alert_rule_test", ()) if one["exp_alerts"]}
    assert tried == {alert["alert"] for alert in alerts()}


def test_the_dashboard_is_laid_out() -> None:
    """Numbers are unique and nothing lies on something else; every panel but a row shows something."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_every_metric_is_shown_or_watched() -> None:
    asked = {name for one in (*rule_expressions(), *panel_expressions()) for name, _ in one.asked_for()}
    unseen = {one.name for one in (*METRICS, *OF_UP) if not asked & set(_series(one))}
    assert unseen == set()


def test_prometheus_reads_the_rules_and_the_job_that_they_are_about() -> None:
    config = yaml.safe_load(PROMETHEUS.read_text())
    assert config["rule_files"] == [RULES.name]
    assert [one["job_name"] for one in config["scrape_configs"]] == ["antiphon"]


def test_rules_can_be_made_faster() -> None:
    fast = scaled("expr: predict_linear(a[6h], 14400) > 60 and rate(b[5m])\nfor: 30m", 20)
    assert fast == "expr: predict_linear(a[1080s], 720) > 60 and rate(b[15s])\nfor: 90s"
