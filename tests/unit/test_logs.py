"""Logs: the form of a line, and that no credential is ever in one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any, Literal

import pytest
import structlog

from antiphon.observability.logs import configure

Lines = Callable[[], list[Any]]


class _Output:
    """What was written to standard error so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._written = ""

    def written(self) -> str:
        self._written += self._capture.readouterr().err
        return self._written


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str], logging_as_before: None) -> _Output:
    """Standard error."""
    return _Output(capsys)


def _configured(output: _Output, level: str = "info", form: Literal["json", "console"] = "json") -> Lines:
    configure(level, form)
    return lambda: [json.loads(line) for line in output.written().splitlines()]


def test_a_line_is_json_with_level_time_and_request_id(output: _Output) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("response", request_id="req_1", status=200)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"message": "response", "level": "info", "request_id": "req_1", "status": 200}


def test_lower_levels_are_left_out(output: _Output) -> None:
    lines = _configured(output, "warning")
    log = structlog.get_logger("x")
    log.debug("a")
    log.info("b")
    log.warning("c")
    assert [line["message"] for line in lines()] == ["c"]


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": "Basic c2VjcmV0Cg"},
        {"Authorization": b"Bearer hunter2hunter2"},
        {"api_key": "hunter2hunter2"},
        {"apikey": "hunter2hunter2"},
        {"client_secret": ["hunter2hunter2"]},
        {"cookie": "a=hunter2hunter2"},
        {"password": "hunter2hunter2"},
        {"access_token": "hunter2hunter2"},
        {"detail": "sent Authorization: Bearer hunter2hunter2"},
        {"detail": "sent authorization: bearer hunter2hunter2"},
        {"detail": "sent Bearer\u00a0hunter2hunter2"},
        # A Kelvin sign and a long s, which the expression takes for a K and an S.
        {"detail": "s\u212a-hunter2hunter2"},
        {"detail": "\u017fk-hunter2hunter2"},
        {"detail": "Incorrect API key provided: sk-hunter2hunter2."},
        {"headers": {"x-api-key": "hunter2hunter2", "accept": "*/*"}},
        {"headers": [("accept", "*/*"), ("authorization", "Basic hunter2hunter2")]},
        {"nested": {"deep": [{"token": "hunter2hunter2"}]}},
        {"ignored": ("sk-secret-hunter2hunter2", "foo")},
        {"authorization": {"value": "hunter2hunter2"}},
        {"headers": {"sk-hunter2hunter2": 1}},
        {"error": ValueError("Bearer hunter2hunter2")},
        {"names": {"sk-hunter2hunter2"}},
        {"ignored": ("foo", "sk-hunter2hunter2")},
        {"model": "gsk_hunter2hunter2"},
        {"path": "/v1/responses/ghp_hunter2hunter2"},
        {"path": "/v1/antiphon/admin/keys/ant_hunter2hunter2_-hunter2"},
    ],
    ids=repr,
)
def test_credentials_are_redacted(output: _Output, fields: dict[str, Any]) -> None:
    _configured(output)
    structlog.get_logger("x").info("message", **fields)
    written = output.written()
    assert "hunter2" not in written and "c2VjcmV0" not in written
    assert "[redacted]" in written


def test_counts_of_tokens_are_no_credentials(output: _Output) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("usage", input_tokens=3, output_tokens=4, model="risk-model", path="/task-1")
    (line,) = lines()
    assert (line["input_tokens"], line["output_tokens"]) == (3, 4)
    assert (line["model"], line["path"]) == ("risk-model", "/task-1")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_is_one_entry_without_credentials(output: _Output, form: Literal["json", "console"]) -> None:
    _configured(output, form=form)
    try:
        raise ValueError("upstream said: Bearer hunter2hunter2")
    except ValueError:
        structlog.get_logger("x").error("failed", exc_info=True)
    written = output.written()
    assert "hunter2" not in written and "ValueError: upstream said" in written
    if form == "json":
        assert written.count("\n") == 1


def test_what_libraries_log_comes_out_in_the_same_form(output: _Output) -> None:
    lines = _configured(output)
    logging.getLogger("some.library").warning("%d of %s", 3, "authorization: Bearer hunter2hunter2")
    logging.getLogger("some.library").info("too low")
    logging.getLogger("some.library").log(35, "a level of its own")
    first, second = lines()
    assert (first["logger"], first["level"]) == ("some.library", "warning")
    assert first["message"] == "3 of authorization: Bearer [redacted]"
    assert second["message"] == "a level of its own"


def test_bytes_that_are_no_text_do_not_fail_a_line(output: _Output) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("request", path="/\udcff", other=object())
    assert lines()[0]["path"] == "/\udcff"


def test_what_is_no_json_is_told_as_text(output: _Output) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("a", huge=2**70, names={"b"}, nested={1: b"c\xff"}, pair=("token", "hunter2hunter2"))
    (line,) = lines()
    assert line["huge"] == 2**70 and line["names"] == "{'b'}" and line["nested"] == {"1": "c\ufffd"}
    assert line["pair"] == ["token", "[redacted]"]


def test_a_line_about_the_past_has_its_time(output: _Output) -> None:
    lines = _configured(output)
    log = structlog.get_logger("x")
    log.info("then", timestamp=1_000_000_000.25)
    log.info("now", timestamp="not a time")
    then, now = lines()
    assert then["timestamp"] == "2001-09-09T01:46:40.250000Z"
    assert list(then) == ["level", "timestamp", "message"]
    assert now["timestamp"] > then["timestamp"] and len(now["timestamp"]) == len(then["timestamp"])


@pytest.mark.parametrize(("secret", "kept"), [("sk-12345", True), ("sk-123456", False), ("Bearer 12345", True)])
def test_a_credential_has_six_letters_at_least(output: _Output, secret: str, kept: bool) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("a", detail=f"it said {secret}, no more")
    (line,) = lines()
    assert (secret in line["detail"]) is kept
    assert kept or line["detail"] == "it said sk-[redacted], no more"


def test_a_secret_key_without_a_value_has_none(output: _Output) -> None:
    lines = _configured(output)
    structlog.get_logger("x").info("a", password=None, tokens=3, detail="Bearer hunter2hunter2")
    (line,) = lines()
    assert (line["password"], line["tokens"], line["detail"]) == (None, 3, "Bearer [redacted]")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_each_level_has_what_is_as_grave_and_libraries_warn_at_most(output: _Output, level: str) -> None:
    levels = ["debug", "info", "warning", "error"]
    lines = _configured(output, level)
    for name in levels:
        getattr(structlog.get_logger("x"), name)(name)
        logging.getLogger("some.library").log(getattr(logging, name.upper()), "library %s", name)
    said = [line["message"] for line in lines()]
    expected = levels[levels.index(level) :]
    assert [each for each in said if " " not in each] == expected
    assert [each for each in said if " " in each] == [f"library {name}" for name in expected if name in levels[2:]]


def test_a_websockets_library_is_heard_about_errors_alone(output: _Output) -> None:
    lines = _configured(output, "debug")
    log = logging.getLogger("aiohttp.websocket")
    log.warning("Client protocols ['openai-insecure-api-key'] do not overlap")
    log.error("it is broken")
    assert [line["message"] for line in lines()] == ["it is broken"]


def test_a_librarys_traceback_comes_along(output: _Output) -> None:
    lines = _configured(output)
    try:
        raise KeyError("hunter2")
    except KeyError:
        logging.getLogger("some.library").exception("it failed")
    (line,) = lines()
    assert (line["message"], line["level"]) == ("it failed", "error") and "KeyError: 'hunter2'" in line["exception"]


def test_a_closed_standard_error_fails_nothing(output: _Output) -> None:
    _configured(output)
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    with redirect_stderr(closed):
        structlog.get_logger("x").info("nobody reads this")


def test_the_console_form_is_readable(output: _Output) -> None:
    _configured(output, form="console")
    structlog.get_logger("x").info("draining", seconds=5, api_key="hunter2")
    assert output.written().endswith("draining  seconds=5  api_key=[redacted]\n")
