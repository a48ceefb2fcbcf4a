"""The three forms in which `antiphon try` shows events, and the facts of its footer."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from antiphon.commands.try_request import EventView, JsonView, Summary, TextView

_USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
}


def _text(delta: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": delta}


def _reasoning(delta: str) -> dict[str, Any]:
    return {"type": "response.reasoning_text.delta", "delta": delta}


def _done(**item: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": item}


def _end(kind: str = "completed", **response: Any) -> dict[str, Any]:
    return {
        "type": f"response.{kind}",
        "response": {"id": "resp_1", "model": "m", "status": kind, "usage": _USAGE, **response},
    }


def _shown(*events: dict[str, Any]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    view = TextView(out, err)
    for event in events:
        view.receive(event, 0.0)
    view.end()
    return out.getvalue(), err.getvalue()


def test_a_pipe_gets_the_text_alone() -> None:
    out, err = _shown(
        _reasoning("Let me "),
        _reasoning("think."),
        _done(type="reasoning"),
        _text("Hel"),
        _text("lo"),
        _done(type="message"),
        _done(type="web_search_call", status="failed", action={"query": "rivers"}),
        _text("Bye\n"),
        _end(),
    )
    assert out == "Hello\nBye\n"
    assert err == 'Let me think.\n→ web_search_call  failed  {"query": "rivers"}\n'


def test_control_characters_of_a_model_are_escaped_in_every_form() -> None:
    bad = "\x1b[2J\x9b1m\u202e"
    events = [
        _reasoning(bad),
        _text(f"a{bad}\nb"),
        {"type": "response.refusal.delta", "delta": bad},
        _done(type=f"function_call{bad}", status=bad, name=bad, arguments=bad),
        {"type": f"new.kind{bad}", "text": bad},
        _end("incomplete", id=bad, model=bad, status=bad, incomplete_details={"reason": bad}),
    ]
    shown = "".join(_shown(*events))
    summary = Summary()
    for form in (EventView, JsonView):
        out = io.StringIO()
        for event in events:
            form(out).receive(event, 0.0)
            summary.receive(event, 0.0)
        shown += out.getvalue()
    shown += summary.footer(1.0)
    assert "\\x1b[2J" in shown and "\\u001b[2J" in shown
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (_text("Hi\n"), '   1.500  response.output_text.delta  "Hi\\n"'),
        (_end(), "   1.500  response.completed  resp_1 completed"),
        (
            _done(type="function_call", status="completed", name="f", arguments='{"a": 1}'),
            '   1.500  response.output_item.done  function_call  f {"a": 1}',
        ),
        ({"type": "error", "message": "broken", "param": None}, '   1.500  error  {"message": "broken"}'),
        ({"type": "response.x.in_progress", "item_id": "ws_1"}, "   1.500  response.x.in_progress"),
        ({"no": "type"}, '   1.500  ?  {"no": "type"}'),
    ],
)
def test_an_event_on_one_line(event: dict[str, Any], line: str) -> None:
    out = io.StringIO()
    EventView(out).receive(event, 1.5)
    assert out.getvalue() == line + "\n"


def test_an_event_as_json() -> None:
    out = io.StringIO()
    JsonView(out).receive(_text("ü\n"), 0.0)
    assert json.loads(out.getvalue()) == _text("ü\n") and out.getvalue().isascii()


def test_the_footer() -> None:
    summary = Summary()
    summary.receive({"type": "response.created"}, 0.1)
    summary.receive(_reasoning("a"), 0.25)
    summary.receive(_text("b"), 0.5)
    summary.receive(_end(), 0.6)
    told = "resp_1 · m · 12 input tokens (8 cached) · 5 output tokens (2 reasoning) · 0.75 s, first token after 0.25 s"
    assert summary.footer(0.75) == told
    assert summary.error == ""


def test_the_footer_of_a_response_that_a_limit_ended() -> None:
    summary = Summary()
    summary.receive(_end("incomplete", usage=None, incomplete_details={"reason": "max_output_tokens"}), 0.6)
    assert summary.footer(0.75) == "resp_1 · m · 0.75 s · incomplete: max_output_tokens"
    assert summary.error == ""


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([{"type": "error", "message": "flat"}, _end("failed")], "flat"),
        ([{"type": "error", "error": {"message": "nested"}}], "nested"),
        ([_end("failed", error={"message": "of the response"})], "of the response"),
        ([_end("failed", error=None)], "the response failed"),
    ],
)
def test_the_message_of_a_failed_response(events: list[dict[str, Any]], error: str) -> None:
    summary = Summary()
    for event in events:
        summary.receive(event, 0.0)
    assert summary.error == error
