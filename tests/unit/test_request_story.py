"""What `antiphon tail` and `antiphon show` print of a request, and what a terminal must not interpret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest

from antiphon.commands.journal import as_json, contents, facts, heading, row
from antiphon.console.broken_ends import call_end, client_end
from antiphon.console.charts import steps_of, waterfall
from antiphon.console.formats import tick
from antiphon.console.story import tell, why_no_contents, why_no_entry
from antiphon.engine.ports.journal import REFUSED, Detail, Entry, JournalSpan, Part, Recording
from antiphon.observability.outcome import hint_for
from antiphon.types.transport import LOCAL_REPLY

ESCAPE = "\x1b[31mred\x07"


def entry(**changes: object) -> Entry:
    values = {
        **dict.fromkeys(
            ("key_id", "key_name", "team", "previous_id", "conversation_id", "fault", "code", "response_id"), ""
        ),
        **dict.fromkeys(("cached_tokens", "reasoning_tokens", "cost"), 0),
        "id": "req_1",
        "owner": "n:anna",
        "door": "relay",
        "model": "qwen3",
        "upstream": "default",
        "outcome": "completed",
        "status": 200,
        "stored": True,
        "recorded": True,
        "seconds": 2.0,
        "first": 0.5,
        "calls": 1,
        "input_tokens": 1200,
        "output_tokens": 34,
        "estimated": False,
        "ended_at": 1_800_000_000.0,
    }
    return Entry(**{**values, **changes})  # type: ignore[arg-type]


def test_the_rows_of_tail_have_columns_of_a_fixed_width() -> None:
    entries = [
        entry(response_id="resp_1"),
        entry(model="a-model-with-a-very-long-name", response_id="resp_2"),
        entry(outcome="error", fault="upstream", code="upstream_error", status=429, response_id="resp_3"),
        entry(outcome="error", fault="client", status=404, code="model_not_found", calls=0, id="entry_4"),
        entry(outcome=REFUSED, fault="client", status=401, code="invalid_api_key", owner="", model="", id="entry_5"),
    ]
    lines = [heading(), *[row(one, colors=False) for one in entries]]
    places = [re.search(r"\b(?:id$|resp_\d|entry_\d)", line) for line in lines]
    assert len({found.start() for found in places if found is not None}) == 1 and None not in places
    statuses = lines[0].index("HTTP")
    assert [line[statuses : statuses + 4].strip() for line in lines[1:]] == ["200", "200", "429", "404", "401"]
    assert lines[4].split()[2:5] == ["error", "404", "model_not_found"] and "a-model-with-a-ve…" in lines[2]


def test_a_row_names_what_matters() -> None:
    line = row(entry(outcome="failed", fault="upstream", code="upstream_cut", response_id="resp_1"), colors=False)
    for part in ("2027-01-15 08:00:00", "failed", "qwen3", "anna", "1.2k → 34", "2.0 s", "upstream_cut", "resp_1"):
        assert part in line
    assert "\x1b" not in line


def test_colours_are_only_where_they_are_wanted() -> None:
    assert "\x1b[32m" in row(entry(), colors=True)
    assert "\x1b[31m" in row(entry(fault="upstream", outcome="failed"), colors=True)


def test_no_text_of_a_client_reaches_the_terminal() -> None:
    hostile = entry(
        model=ESCAPE, code=ESCAPE, detail=Detail(message=ESCAPE, spans=(JournalSpan("call", ESCAPE, 0.0, 1.0),))
    )
    story = tell(Recording((Part(0.0, "request", ESCAPE.encode()), Part(0.1, "event", f"data: {ESCAPE}\n\n".encode()))))
    shown = "\n".join([*facts(hostile, colors=False), *contents(story, hostile, colors=False)])
    assert "\x1b" not in shown and "\x07" not in shown and "red" in shown


def test_a_row_of_refused_requests_names_their_path_and_their_number() -> None:
    told = {"outcome": REFUSED, "fault": "client", "status": 401, "code": "invalid_api_key", "owner": "", "model": ""}
    detail = Detail(path="/v1/files", alike=1234)
    line = row(entry(**told, detail=detail), colors=False)
    assert (
        line.split()[2:6] == ["refused", "401", "invalid_api_key", "/v1/files"]
        and "(1,234 times; path and id of the newest)" in line
    )
    assert "\n".join(facts(entry(**told, detail=detail), colors=False)).count("/v1/files") == 2
    assert "before it began a response" in why_no_contents(entry(**told, recorded=False))
    line = row(entry(outcome=REFUSED, model="", detail=Detail(path="/v1/x")), colors=False)
    assert line.split()[2:7] == ["refused", "200", "-", "/v1/x", "anna"]
    unread = entry(outcome="error", fault="client", status=400, code="invalid_json", model="", calls=0)
    assert row(unread, colors=False).split()[2:7] == ["error", "400", "invalid_json", "-", "anna"]


def test_a_model_call_ends_with_its_request() -> None:
    spans = (JournalSpan("call", "default", 0.0, 3.0), JournalSpan("save", "", 2.0, 2.5))
    lines = list(facts(entry(seconds=1.5, detail=Detail(spans=spans)), colors=False))
    assert [line.split()[-2] for line in lines if "█" in line] == ["1.5", "500"]
    bars = waterfall(spans, 1.5)
    assert [(bar.at, bar.seconds) for bar in bars] == [(0.0, 1.5), (2.0, 0.5)]


def test_a_silent_upstream_is_named_before_the_client_s_timeout() -> None:
    def hint(*calls: Mapping[str, object]) -> str:
        spans = tuple(JournalSpan("call", "dead", n / 2, n / 2 + 0.5, told) for n, told in enumerate(calls))
        gone = entry(fault="cancelled", code="client_gone", seconds=1.9, first=None, detail=Detail(spans=spans))
        return hint_for(gone)

    silent = "after 1.9 s. Until then the upstream 'dead' had sent nothing. Check the upstream first"
    assert silent in hint({"status": 0})
    assert "had sent nothing for the last model call" in hint({"status": 200, "head": 0.1}, {"status": 0})
    for told in ({"status": 200, "head": 0.1}, {"first": 0.2}):
        assert hint(told) == "the client closed the connection; check the client's timeouts"
    assert hint() == hint({"head": 0.1})


def test_a_wrong_key_has_advice() -> None:
    told = {"outcome": REFUSED, "fault": "client", "status": 401, "code": "invalid_api_key", "recorded": False}
    message = "Incorrect API key provided."
    wrong = entry(**told, detail=Detail(message=message, cause=message))
    assert "owner.keys or owner.api_keys, or is revoked or expired" in hint_for(wrong)
    assert "what to change" not in why_no_contents(wrong)
    assert "owner.keys" not in hint_for(entry(**told, detail=Detail(upstream_status=401)))
    unknown = entry(**{**told, "code": "unknown_url", "status": 404}, detail=Detail(message="did you mean /v1/x?"))
    assert "The message above tells the client what to change." in why_no_contents(unknown)


def test_the_hint_on_a_quota_does_not_promise_that_a_retry_helps() -> None:
    hint = hint_for(entry(fault="client", code="rate_limit_exceeded", status=429))
    assert "says whether a retry can help" in hint and "may retry later" not in hint


def test_the_failure_and_the_steps_are_told() -> None:
    detail = Detail(
        message="The upstream failed.", cause="status 500", advice="look at its log", ignored=("user",),
        spans=(JournalSpan("call", "default", 0.5, 2.0), JournalSpan("load", "", 0.0, 0.5)),
    )  # fmt: skip
    lines = list(facts(entry(fault="upstream", detail=detail), colors=False))
    assert any("cause" in line and "status 500" in line for line in lines)
    assert any("advice" in line and "look at its log" in line for line in lines)
    steps = [line for line in lines if "█" in line]
    assert [line.split()[0] for line in steps] == ["load", "call"]


def test_a_failure_without_a_token_has_no_first_token() -> None:
    spans = (JournalSpan("call", "default", 0.0, 2.0), JournalSpan("first_token", "default", 0.0, 0.5))
    failed = "\n".join(
        facts(entry(fault="upstream", code="upstream_error", output_tokens=0, detail=Detail(spans=spans)), colors=False)
    )
    assert "first token" not in failed and "read its log at the time of this request" in failed
    lines = list(facts(entry(detail=Detail(spans=spans)), colors=False))
    assert "\n".join(lines).count("first token") == 2
    assert [line.split()[0] for line in lines if "█" in line] == ["call", "first"], "as on the page of the request"


def test_both_sides_are_printed_in_order() -> None:
    story = tell(
        Recording(
            (
                Part(
                    0.0,
                    "request",
                    b'{"input": "hi"}',
                    {"method": "POST", "path": "/v1/r", "headers": [["accept", "a"]]},
                ),
                Part(0.1, "call", b'{"messages": []}', {"upstream": "default", "path": "/chat"}),
                Part(0.2, "head", b"", {"status": 503, "headers": []}),
                Part(0.3, "data", b"busy"),
                Part(0.4, "tool", b"42", {"name": "web_search"}),
                Part(0.5, "event_head", b"", {"status": 502}),
                Part(0.5, "event", b'{"error": {}}'),
            ),
            cut=True,
        )
    )
    shown = "\n".join(contents(story, entry(), colors=False))
    named = ("POST /v1/r", "accept: a", '"input"', "/chat", '"messages"')
    places = [shown.index(part) for part in (*named, "busy", "42", '"error"', "contents are cut")]
    assert places == sorted(places)


def test_json_holds_the_bodies_as_values() -> None:
    story = tell(Recording((Part(0.0, "request", b'{"input": "hi"}'), Part(0.1, "call", b"no json", {}))))
    told = json.loads(as_json(entry(), story))
    assert told["entry"]["id"] == "req_1"
    assert told["story"]["request"] == {"input": "hi"} and told["story"]["calls"][0]["body"] == "no json"
    assert "story" not in json.loads(as_json(entry(), None))


@pytest.mark.parametrize(
    ("name", "few"),
    [("resp_019c", True), ("req_01", True), ("0b9d1c44-5e1f", True), ("0b9d1c44-5e1f-4a7", False), ("job-9", False)],
)
def test_a_request_without_a_row_is_explained_by_its_id(name: str, few: bool) -> None:
    assert ("at least 16 digits" in why_no_entry(name)) is few
    assert ("in a shared row" in why_no_entry(name)) is not few


def test_the_advice_on_recording_fits_the_outcome() -> None:
    assert "to 'all'" in why_no_contents(entry(recorded=False))
    assert "to 'failures' or 'all'" in why_no_contents(entry(recorded=False, fault="upstream"))


def test_numbers_that_json_does_not_have_stay_text() -> None:
    bodies = [b'{"n": NaN}', b'{"n": [-Infinity]}', b'{"n": 1e999}']
    story = tell(Recording((Part(0.0, "request", bodies[0]), Part(0.1, "call", bodies[1]))))
    story.answer = bodies[2]
    line = as_json(entry(), story)
    told = json.loads(line, parse_constant=pytest.fail)["story"]
    assert [told["request"], told["calls"][0]["body"], told["answer"]] == [body.decode() for body in bodies]
    assert "\n".join(contents(story, entry(), colors=False)).count('{"n": ') == 3


def test_the_step_that_failed_is_marked() -> None:
    facts_of_call = {"operation": "responses", "status": 0, "fault": "unreachable", "head": 0.018}
    spans = (
        JournalSpan("call", "default", 0.0, 0.2, {"operation": "responses", "status": 200}),
        JournalSpan("tool", "web_search", 0.2, 0.3, {"error": "failed"}),
        JournalSpan("call", "default", 0.3, 0.4, facts_of_call),
    )
    failed = entry(fault="upstream", code="upstream_unreachable", outcome="error", detail=Detail(spans=spans))
    bars = waterfall(steps_of(failed), 2.0)
    assert [bar.error for bar in bars] == ["", "failed", "upstream_unreachable"]
    assert dict(bars[2].span.facts) == {"operation": "responses", "answer": "none", "error": "upstream_unreachable"}
    steps = [line for line in facts(failed, colors=False) if "█" in line]
    assert [line.partition("✕ ")[2] for line in steps] == ["", "failed", "upstream_unreachable"]


@pytest.mark.parametrize(
    ("told", "changes", "error"),
    [
        ({"status": 200}, {}, ""),
        ({}, {}, ""),
        ({"status": 503}, {}, "HTTP 503"),
        ({"status": 503}, {"fault": "upstream", "code": "scripted_failure"}, "scripted_failure"),
        ({"status": 400}, {"fault": "client", "code": "context_length_exceeded"}, "HTTP 400"),
        ({"status": 200}, {"fault": "upstream", "code": "upstream_invalid"}, "upstream_invalid"),
        ({"status": 200, "fault": "cancelled"}, {"fault": "cancelled", "code": "client_gone"}, "client_gone"),
        ({"status": 200}, {"fault": "ours", "code": "storage_failed"}, ""),
        ({"status": 0}, {}, "no answer"),
    ],
)
def test_the_error_of_a_model_call(told: Mapping[str, object], changes: Mapping[str, object], error: str) -> None:
    spans = (JournalSpan("call", "default", 0.0, 1.0, told),)
    (step,) = steps_of(entry(**changes, detail=Detail(spans=spans)))
    assert step.facts.get("error", "") == error


def test_an_error_of_another_step_is_not_the_model_calls() -> None:
    spans = (JournalSpan("call", "default", 0.0, 1.0, {"status": 200}),)
    detail = Detail(spans=spans, operation="run_tools")
    (step,) = steps_of(entry(fault="upstream", code="tool_timeout", detail=detail))
    assert "error" not in step.facts


def broken(*more: Part) -> Recording:
    return Recording(
        (
            Part(0.1, "call", b"{}"),
            Part(0.12, "head", b"", {"status": 200}),
            Part(0.13, "data", b'data: {"choices":[]}\n\n'),
            Part(0.14, "event_head", b"", {"status": 200}),
            Part(0.15, "event", b"event: response.created\ndata: {}\n\n"),
            *more,
        )
    )


def test_a_stream_that_broke_off_says_so_on_both_sides() -> None:
    failed = entry(fault="upstream", code="upstream_cut", outcome="failed", seconds=0.193)
    shown = "\n".join(contents(tell(broken()), failed, colors=False))
    assert "✕ The answer broke off at 0.193 s." in shown
    assert "✕ The stream broke off at 0.193 s. The client got no final event." in shown
    gone = entry(fault="cancelled", code="client_gone", outcome="cancelled", seconds=0.5)
    shown = "\n".join(contents(tell(broken()), gone, colors=False))
    assert "The client disconnected at 0.500 s" in shown and "Antiphon ended this model call at 0.500 s" in shown


def test_a_stream_with_a_final_event_did_not_break_off() -> None:
    final = Part(0.2, "event", b"event: response.failed\ndata: {}\n\n")
    end = Part(0.2, "end", b"", {"fault": "cut", "detail": "no more data"})
    failed = entry(fault="upstream", code="upstream_cut", outcome="failed")
    story = tell(broken(end, final))
    assert client_end(failed, story) == ""
    assert call_end(failed, story, story.calls[0]) == "The answer broke off at 0.200 s: no more data"
    whole = tell(broken(Part(0.2, "data", b"data: [DONE]\n\n"), final))
    assert call_end(failed, whole, whole.calls[0]) == "" and call_end(entry(), story, tell(broken()).calls[0]) == ""


def test_envoys_own_answer_is_not_the_model_servers() -> None:
    headers = [[LOCAL_REPLY, "unreachable:x"]]
    parts = (Part(0.1, "call", b"{}"), Part(0.2, "head", b"", {"status": 502, "headers": headers}))
    story = tell(Recording((*parts, Part(0.3, "data", b'{"error": {}}'), Part(0.3, "end"))))
    shown = "\n".join(contents(story, entry(fault="upstream", code="upstream_unreachable"), colors=False))
    assert "answer 1: no answer; Envoy wrote the following, not the model server" in shown


def test_the_attempts_of_a_retried_call_are_told() -> None:
    span = JournalSpan("call", "night", 0.0, 2.0, {"status": 0, "attempts": 3, "retry_cause": "connection refused"})
    told = "\n".join(facts(entry(detail=Detail(spans=(span,))), colors=False))
    assert "3 attempts to reach the upstream night. The last retry followed this failure: connection refused." in told


def test_the_end_of_a_background_response_has_no_status_of_a_client() -> None:
    assert " 200 " in row(entry(), colors=False) and " 200 " not in row(entry(door="background"), colors=False)


def test_the_id_of_another_object_gets_no_hint_about_expired_rows() -> None:
    assert "another object" in why_no_entry("file-abc") and "console.keep" not in why_no_entry("file-abc")


def test_the_marks_of_a_short_axis_differ() -> None:
    assert [tick(0.003 * part, 0.003) for part in (0.25, 0.5, 0.75, 1)] == ["0.8 ms", "1.5 ms", "2.3 ms", "3.0 ms"]
    assert tick(0.5, 2.0) == "500 ms"
