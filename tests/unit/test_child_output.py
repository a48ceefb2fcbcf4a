"""Lines of children as the parent forwards them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.settings import Settings
from antiphon.observability.logs import configure
from antiphon.supervisor.child_output import ChildOutput, last_words

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def to_captured_stderr(capsys: Captured) -> None:
    """Lines go where this test looks, whichever descriptor a test before this one has set up."""
    configure("info", "json")


def _output(form: str = "json", *, ready: bool = True) -> ChildOutput:
    made = ChildOutput(Settings.model_validate({"log": {"format": form}}))
    made.everything_is_ready = ready
    return made


def _lines(capsys: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_gets_the_name_of_its_process(capsys: Captured) -> None:
    _output().take("sidecar 0", '{"level":"info","message":"serving"}')
    assert _lines(capsys) == [{"process": "sidecar 0", "level": "info", "message": "serving"}]


@pytest.mark.parametrize(
    ("line", "level", "message", "rest"),
    [
        ("antiphon: the disk is full", "error", "process_failed", {"cause": "the disk is full"}),
        ("something printed", "info", "process_output", {"text": "something printed"}),
        ('{"cut off', "info", "process_output", {"text": '{"cut off'}),
    ],
)
def test_a_plain_line_becomes_one_like_the_others(
    line: str, level: str, message: str, rest: dict[str, str], capsys: Captured
) -> None:
    _output().take("envoy", line)
    (told,) = _lines(capsys)
    assert told.pop("timestamp").endswith("Z")
    assert told == {"process": "envoy", "level": level, "message": message, **rest}


def test_a_reason_of_several_lines_is_an_error_to_its_end(capsys: Captured) -> None:
    output = _output()
    for line in ("antiphon: 2 settings are wrong:", "  listen: x", "  data: y", "later"):
        output.take("sidecar 0", line)
    assert [line["level"] for line in _lines(capsys)] == ["error", "error", "error", "info"]


def test_until_everything_is_ready_the_reason_is_left_to_who_gives_the_child_up(capsys: Captured) -> None:
    output = _output(ready=False)
    for line in ("antiphon: 2 settings are wrong:", "  listen: x", "later"):
        output.take("sidecar 0", line)
    assert [line["text"] for line in _lines(capsys)] == ["later"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ""),
        (["just", "output"], ""),
        (["x", "antiphon: no data", "bye"], "no data"),
        (["antiphon: 2 settings are wrong:", "  a", "  b"], "2 settings are wrong:\n  a\n  b"),
        (["antiphon: first", "antiphon: last"], "last"),
    ],
)
def test_the_last_words_of_a_child(lines: list[str], words: str) -> None:
    assert last_words(lines) == words


def test_at_a_terminal_all_lines_have_one_form(capsys: Captured) -> None:
    output = _output("console")
    output.take("sidecar 0", '{"timestamp":"2026-11-24T12:00:00Z","level":"info","message":"response","model":"m"}')
    output.take("envoy", "plain")
    output.take("sidecar 0", "antiphon: no data")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("  m") and second == "envoy | plain"
    assert third.endswith("error  process_failed  [sidecar 0]  cause='no data'")


def test_no_key_of_a_path_is_in_a_line_of_envoy(capsys: Captured, tmp_path: Path) -> None:
    key, own = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz", "upstream-secret-0123456789"
    heard: list[str] = []

    def hear(line: str) -> bool:
        heard.append(line)
        return False

    (tmp_path / "admin.token").write_text("0123456789" * 5)
    given = {"upstream": {"url": "http://model/v1", "api_key": own}, "data": tmp_path, "console": {"enabled": True}}
    settings = Settings.model_validate(given)
    output = ChildOutput(settings, hear)
    paths = {
        f"/v1/zz/{key}": "/v1/zz/[redacted]",
        f"/v1/{own}/x?token=hidden-in-the-query": "/v1/[redacted]/x",
        f"/v1/%75pstream-secret-0123456789/{key}": "/v1/[redacted]/[redacted]",
        f"/v1/{'x' * 235}/{key}"[:256]: f"/v1/{'x' * 235}/…",
        f"/v1/{'0123456789' * 5}": "/v1/[redacted]",
        "/v1/nothing": "/v1/nothing",
    }
    for path in paths:
        output.take("envoy", json.dumps({"message": "request", "path": path, "request_id": "req_1"}))
    assert [line["path"] for line in _lines(capsys)] == list(paths.values())
    assert [json.loads(line)["path"] for line in heard] == list(paths.values())
    for path, shown in (
        ("/v1/anna-key-0123456789abcdef/x", "/v1/[redacted]/x"),
        ("/v2/responses-api", "/v2/responses-api"),
    ):
        output.take("envoy", json.dumps({"message": "request", "path": path, "code": "unknown_url"}))
        assert _lines(capsys)[0]["path"] == shown
    output.take("envoy", f"[debug] ':path', '/v1/{own}'")
    assert _lines(capsys)[0]["text"] == "[debug] ':path', '/v1/[redacted]'"
