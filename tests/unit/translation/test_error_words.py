"""What servers call their errors and endings, word by word, and the words that a client gets in their place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.errors import ApiError
from antiphon.translation.answer.chunk import ending_by, finish_of, plain_finish
from antiphon.translation.answer.upstream_errors import (
    as_event_failure,
    map_transport_error,
    map_upstream_answer,
    media_refusal,
    passed_headers,
    read_stream_error,
)
from antiphon.translation.error_words import CLIENT_STATUSES
from antiphon.translation.events.builder import event_error_type
from antiphon.types.json import raw
from antiphon.types.transport import UpstreamError, UpstreamFault


def _error(status: int, value: Any) -> ApiError:
    return map_upstream_answer(status, (), json.dumps(value).encode())


@pytest.mark.parametrize(
    ("statuses", "shown"),
    [
        ((400, 401, 403, 404, 408, 409, 413, 422, 424, 425, 429, 451), None),
        ((500, 502, 503, 504), None),
        ((402,), 429),
        ((529,), 503),
        ((300, 399, 405, 406, 407, 410, 411, 412, 414, 415, 423, 426, 428, 450, 452, 501, 505, 520, 599), 502),
    ],
)
def test_a_status_is_the_clients_or_the_gateways(statuses: tuple[int, ...], shown: int | None) -> None:
    for status in statuses:
        error = _error(status, {"error": {"message": "m"}})
        assert error.status == (shown or status)
        assert (error.status < 500) == (status in CLIENT_STATUSES or status == 402)


@pytest.mark.parametrize(
    "kind",
    [
        *("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "rate_limit_error"),
        *("insufficient_quota", "tokens", "requests", "server_error"),
    ],
)
def test_a_type_of_openais_stays_and_is_no_code(kind: str) -> None:
    assert _error(422, {"error": {"message": "m", "type": kind}}).type == kind
    code = kind if kind == "insufficient_quota" else None
    assert _error(422, {"error": {"message": "m", "code": kind}}).code == code


def test_a_type_of_the_servers_own_does_not() -> None:
    error = _error(422, {"error": {"message": "m", "type": "BadRequestError", "code": "its_own"}})
    assert (error.type, error.code) == ("invalid_request_error", "its_own")


@pytest.mark.parametrize("name", ["message", "detail", "msg", "Message", "error_message", "title", "reason"])
def test_a_message_has_many_names(name: str) -> None:
    assert _error(400, {name: "what went wrong"}).message == "what went wrong"
    assert _error(400, {"error": {name: "what went wrong"}}).message == "what went wrong"


@pytest.mark.parametrize("name", ["msg", "message", "detail"])
def test_a_problem_of_a_list_has_few(name: str) -> None:
    problems = [{"loc": ["body", "a", 0], name: "bad"}, {name: "worse"}, {"loc": [], name: ["x", "y"]}, {"text": "no"}]
    assert _error(422, {"detail": problems}).message == "a.0: bad; worse; x; y"


def test_of_many_problems_the_first_ones_are_told() -> None:
    assert _error(422, {"detail": [{"msg": f"p{n}"} for n in range(12)]}).message == "; ".join(
        f"p{n}" for n in range(10)
    )
    place = _error(422, {"detail": [{"loc": list("abcdefghij"), "msg": "m"}]}).message
    assert place == "a.b.c.d.e.f.g.h: m"
    assert _error(422, {"detail": [{"loc": ["x" * 300], "msg": "m"}]}).message == f"{'x' * 200}: m"


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ("why", "Bad: why"),
        ([{"message": "why"}, "and"], "Bad: why; and"),
        ("Bad.", "Bad."),
    ],
)
def test_details_complete_a_general_message(details: Any, message: str) -> None:
    assert _error(400, {"error": {"message": "Bad.", "details": details}}).message == message
    assert _error(400, {"error": {"details": "why"}}).message == "why"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "422"}, 422),
        ({"status": 503}, 503),
        ({"status_code": 400}, 400),
        ({"raw_status_code": 409}, 409),
        ({"code": 399}, 502),
        ({"code": 400}, 400),
        ({"code": 599}, 502),
        ({"code": 600}, 502),
        ({"code": True}, 502),
        ({"code": 5007, "status": 404}, 404),
    ],
)
def test_an_error_inside_an_answer_has_the_status_that_it_names(value: dict[str, Any], status: int) -> None:
    assert read_stream_error(json.dumps({"error": {"message": "m", **value}}).encode()).status == status


@pytest.mark.parametrize("name", ["type", "error_type", "__type"])
def test_a_kind_has_several_names(name: str) -> None:
    assert _error(400, {"error": {"message": "m", name: "too_many_prompt_tokens"}}).code == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["exceed_context_size_error", "too_many_prompt_tokens", "context_length_exceeded"])
@pytest.mark.parametrize("place", ["type", "code"])
def test_a_context_that_is_too_long_is_known_by_its_kind(kind: str, place: str) -> None:
    error = _error(500, {"error": {"message": "m", place: kind}})
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "input")


@pytest.mark.parametrize("status", [0, 400, 413, 422])
def test_a_context_that_is_too_long_is_known_by_its_words(status: int) -> None:
    body = json.dumps({"error": {"message": "The prompt is too long."}}).encode()
    error = map_upstream_answer(status, (), body) if status else read_stream_error(body)
    assert error.code == "context_length_exceeded"
    assert map_upstream_answer(409, (), body).code is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("messages", "input"),
        ("messages[2].content", "input"),
        ("messages.2", "input"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("response_format.json_schema", "text.format"),
        ("reasoning_effort", "reasoning.effort"),
        ("verbosity", "text.verbosity"),
        ("tools[0].function", "tools[0].function"),
        ("x" * 128, "x" * 128),
        ("x" * 129, None),
        ("9x", None),
    ],
)
def test_a_parameter_has_the_name_that_the_client_used(theirs: str, ours: str | None) -> None:
    assert _error(400, {"error": {"message": "m", "param": theirs}}).param == ours


@pytest.mark.parametrize(
    ("code", "kept"), [("ab_." * 16, True), ("ab_." * 16 + "c", False), ("a b", False), ("1a", False)]
)
def test_a_code_is_a_short_name(code: str, kept: bool) -> None:
    assert _error(400, {"error": {"message": "m", "code": code}}).code == (code if kept else None)


def test_a_message_is_cut() -> None:
    assert len(_error(400, {"error": {"message": "long " * 1000}}).message) <= 2001
    assert _error(400, {"error": {"message": "ab, " * 499 + "cdef"}}).message == "ab, " * 499 + "cdef"
    text = (("content-type", "text/plain"),)
    assert map_upstream_answer(400, text, b"ab, " * 74 + b"abcd").message == "ab, " * 74 + "abcd"
    assert "no explanation" in map_upstream_answer(400, text, b"ab, " * 74 + b"abcde").message


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/xml"])
def test_what_is_no_plain_text_is_not_shown(kind: str) -> None:
    assert "no explanation" in map_upstream_answer(400, (("content-type", kind),), b"Unauthorized").message


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("x-ratelimit-a", "x" * 256, True),
        ("x-ratelimit-a", "x" * 257, False),
        ("ratelimit-limit", "5", True),
        ("anthropic-ratelimit-a", "5", True),
        ("x-should-retry", "true", True),
        ("retry-after-ms", "86400000", True),
        ("retry-after-ms", "0.1234567", False),
        ("xratelimit", "5", False),
    ],
)
def test_a_header_about_limits_passes(name: str, value: str, passes: bool) -> None:
    assert passed_headers(((name, value),)) == (((name, value),) if passes else ())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            "upstream_cut",
        ),
        (
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
            "connection termination",
            "upstream_cut",
        ),
        (
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            "upstream_unreachable",
        ),
        ("no healthy upstream", "upstream_unreachable"),
        ("upstream request timeout", "upstream_timeout"),
        ("stream timeout", "upstream_timeout"),
    ],
)
def test_envoys_own_words_are_a_failed_call(body: str, code: str) -> None:
    assert map_upstream_answer(503, (), body.encode()).code == code


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (UpstreamFault.UNREACHABLE, 502, "upstream_unreachable"),
        (UpstreamFault.TIMED_OUT, 504, "upstream_timeout"),
        (UpstreamFault.HELD, 504, "upstream_timeout"),
        (UpstreamFault.CUT, 502, "upstream_cut"),
        (UpstreamFault.TOO_LARGE, 502, "upstream_too_large"),
    ],
)
def test_a_failed_call_says_how_it_failed(fault: UpstreamFault, status: int, code: str) -> None:
    error = map_transport_error(UpstreamError(fault, "10.0.0.1"))
    assert (error.status, error.code) == (status, code) and "10.0.0.1" not in error.message


@pytest.mark.parametrize("status", [400, 404, 415, 422, 500, 501])
@pytest.mark.parametrize(
    ("kind", "words"), [("image", "This model does not support images."), ("audio", "audio input is not supported")]
)
def test_a_refusal_of_pictures_or_sound_names_their_place(status: int, kind: str, words: str) -> None:
    sent = {"image": "input[0].content[1]", "audio": "input[1].content[0]"}
    error = media_refusal(status, words, sent)
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", sent[kind])
    assert f"does not accept {'images' if kind == 'image' else 'audio'}." in error.message and words in error.message
    assert media_refusal(status, words, {}) is None and media_refusal(409, words, sent) is None
    assert media_refusal(status, "Something else.", sent) is None


def test_a_refusal_is_quoted_so_far() -> None:
    words = f"audio input is not supported{'x' * 272}"
    for said, told in ((words, words), (f"{words}y", f"{words}…")):
        error = media_refusal(400, said, {"audio": "input[0]"})
        assert error is not None and error.message.endswith(f"The server's message: {told}")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, "invalid_request_error") for code in ("content_filter", "context_length_exceeded", "invalid_api_key")),
        *((code, "invalid_request_error") for code in ("invalid_prompt", "model_not_found", "unsupported_parameter")),
    ],
)
def test_an_error_event_about_the_request_says_so(code: str, kind: str) -> None:
    assert event_error_type(code) == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, "7"),
        ({"retry-after": "0.5"}, "0.5"),
        ({"retry-after-ms": "1500"}, "1.5"),
        ({"retry-after-ms": "1500", "retry-after": "7"}, "1.5"),
        ({"retry-after-ms": "0.5", "retry-after": "7"}, "7"),
        ({"retry-after-ms": "86400000"}, "86400"),
        ({"retry-after": "Sun, 22 Nov 2026 13:00:00 GMT"}, ""),
        ({}, ""),
    ],
)
def test_a_time_to_wait_is_told_in_words(headers: dict[str, str], seconds: str) -> None:
    error = map_upstream_answer(429, tuple(headers.items()), b'{"error":{"message":"Slow down."}}')
    more = f". Please try again in {seconds}s." if seconds else "."
    assert as_event_failure(error) == ("rate_limit_exceeded", f"Slow down{more}")


@pytest.mark.parametrize(
    ("reason", "plain"),
    [
        ("STOP", "stop"),
        ("tool_calls", "tool_calls"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("max_output_tokens", "length"),
        ("model_length", "length"),
        ("SAFETY", "content_filter"),
        ("recitation", "content_filter"),
        ("whatever", "whatever"),
    ],
)
def test_a_finish_reason_is_one_of_chat_completions(reason: str, plain: str) -> None:
    assert plain_finish(reason) == plain


@pytest.mark.parametrize(
    ("finish", "kind", "reason", "code"),
    [
        ("stop", "completed", "", ""),
        ("tool_calls", "completed", "", ""),
        ("length", "incomplete", "max_output_tokens", ""),
        ("content_filter", "incomplete", "content_filter", ""),
        ("error", "failed", "", "server_error"),
    ],
)
def test_a_finish_reason_is_an_ending(finish: str, kind: str, reason: str, code: str) -> None:
    ending = ending_by(finish)
    assert (ending.status, ending.reason or "", ending.code or "") == (kind, reason, code)


def test_an_old_form_of_a_finish_reason() -> None:
    assert finish_of(raw({"type": "max_tokens", "stop": "x"})) == "max_tokens"
    assert finish_of(raw({"type": 5})) == finish_of(raw([])) == ""
