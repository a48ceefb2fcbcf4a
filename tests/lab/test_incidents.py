"""How signs of incidents are read: numbers, lines, and what fires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.incidents.scenes import SCENES
from lab.incidents.signs import Lines, fired, moved, promtool, read_sample, total
from tests.support.monitoring_files import alerts, panel_expressions

_TEXT = """# TYPE a_total counter
a_total{x="1",y="p q"} 2.0
a_total{x="2",y="p q"} 3.0
b 1e+09
c_bytes 100.0
d_bytes 100.0
process_open_fds 7.0
"""


def test_numbers_are_read_and_added_up() -> None:
    sample = read_sample(_TEXT)
    assert total(sample, "a_total") == 5 and total(sample, "a_total", x="2") == 3 and total(sample, "b") == 1e9
    assert total(sample, "a") == 0


def test_what_moved_stood_still_before() -> None:
    calm = read_sample(_TEXT)
    restless = {**calm, "b": 2.0}
    after = {
        **calm,
        "b": 3.0,
        'a_total{x="1",y="p q"}': 9.0,
        "c_total": 1.0,
        "process_open_fds": 8.0,
        "c_bytes": 90.0,
        "d_bytes": 1.0,
    }
    assert moved([calm, restless, after], 2) == [
        ('a_total{x="1",y="p q"}', 2.0, 9.0),
        ("c_total", 0.0, 1.0),
        ("d_bytes", 100.0, 1.0),
    ]


def _line(**fields: Any) -> str:
    return json.dumps({"message": "response", "level": "info", **fields})


def test_lines_of_a_kind_are_one() -> None:
    lines = Lines()
    for text in (_line(seconds=1), "no json", "3", _line(head_seconds=12.0), _line(head_seconds=13.0, level="warning")):
        lines.add(text, 4.0)
    lines.add(_line(head_seconds=11.0), 9.0)
    found = lines.first({"message": "response", "level": "info"}, {"head_seconds": 10.0})
    assert found is not None and (found[0]["head_seconds"], found[1], found[2]) == (12.0, 4.0, 2)
    assert lines.first({"message": "response"}, {"head_seconds": 14.0}) is None
    assert len(lines.told()) == 2


def test_every_incident_has_an_alert_of_its_own() -> None:
    known = {alert["alert"] for alert in alerts()}
    wanted = [dict(scene.alert)["alertname"] for scene in SCENES]
    assert set(wanted) <= known and len(set(wanted)) == len(SCENES) == 5
    assert {name for scene in SCENES for name in scene.also} <= known


def test_every_incident_is_to_be_seen_in_a_panel() -> None:
    for scene in SCENES:
        metric = scene.series.partition("{")[0]
        assert any(one.where.startswith(scene.panel) and metric in one.text for one in panel_expressions()), scene.name


@pytest.mark.skipif(promtool() is None, reason="promtool is not installed")
def test_the_rules_are_asked_what_fires(tmp_path: Path) -> None:
    def sample(number: int) -> dict[str, float]:
        return {
            'antiphon_upstream_requests_total{upstream="green",operation="responses",status="401"}': 5.0 * number,
            'responses_total{outcome="error",door="relay",fault="upstream"}': 5.0 * number,
        }

    seen = fired([sample(number) for number in range(20)], tmp_path)
    named = {("alertname", "AntiphonUpstreamRefusesKey"), ("upstream", "green")}
    assert not seen[0] and any(named <= set(alert) for alert in seen[-1])
    assert {dict(alert)["alertname"] for alert in seen[-1]} == {"AntiphonUpstreamRefusesKey"}
