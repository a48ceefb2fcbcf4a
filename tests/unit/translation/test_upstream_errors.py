"""What becomes of an upstream's errors: every recording, every shape, and bytes that are neither."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.engine.ports.actions import RequestHead
from antiphon.errors import ApiError
from antiphon.translation.answer.upstream_errors import (
    as_event_failure,
    map_upstream_answer,
    passed_headers,
    read_stream_error,
)
from antiphon.translation.events.builder import event_error_type
from tests.support.exchanges import JSON, Outcome, make_exchange, pump, run
from tests.support.recordings import Recording, all_recordings

INVALID = "invalid_request_error"
PLAIN = (400, INVALID, None, None)
NO_PATH = (502, "server_error", "upstream_misconfigured", None)
NO_MODEL, NO_MODEL_400 = ((status, INVALID, "model_not_found", "model") for status in (404, 400))
RATE = (429, "rate_limit_error", "rate_limit_exceeded", None)
QUOTA = (429, "insufficient_quota", "insufficient_quota", None)
BROKEN = (502, "server_error", "upstream_error", None)
BUSY = (503, "server_error", "server_is_overloaded", None)

# Status, type, code, param, and the beginning of the message: looked at one by one.
RECORDED: dict[str, tuple[int, str, str | None, str | None, str]] = {
    "azure/ollmetry-opentelemetry-instrumentation-openai-test-azure-test-chat-reasoning-1": (
        *NO_MODEL,
        "The API deployment for this resource does not exist.",
    ),
    "azure/req_llm-azure-mai-ds-r1-tool-round-trip-1": (
        *(422, INVALID, None, None),
        "invalid input error: tool_choice: Input should be a valid string",
    ),
    "azure/ruby_llm-chat-real-error-scenarios--asoning-handles-context-length-exceeded-errors": (
        *RATE,
        "Your requests to grok-4-1-fast-non-reasoning",
    ),
    "deepseek/rig-deepseek-wire-shape-matrix-blocking-image-base64-part-reaches-the-wire": (
        *PLAIN,
        "Failed to deserialize the JSON body",
    ),
    "doubleword/rig-doubleword-error-matrix-invalid-temperature-blocking": (
        *PLAIN,
        "Validation: Temperature must be between 0 and 2, got 100",
    ),
    "doubleword/rig-doubleword-error-matrix-unknown-model-blocking": (
        *NO_MODEL,
        "The model `rig/definitely-not-a-doubleword-model` does not exist",
    ),
    "groq/pydantic-test-groq-test-tool-regular-error": (
        *NO_MODEL,
        "The model `non-existent` does not exist",
    ),
    "llamacpp/rig-llamacpp-error-matrix-context-overflow-blocking": (
        *(400, INVALID, "context_length_exceeded", "input"),
        "request (2009 tokens) exceeds the available context size (512 tokens)",
    ),
    "mistral/ai-mistral-tests-bad-request-response": (
        *NO_MODEL_400,
        "Invalid model: mistral-does-not-exist",
    ),
    "mistral/ruby_llm-chat-error-handling-with-m--ral-small-latest-raises-appropriate-auth-error": (
        *(401, INVALID, "invalid_api_key", None),
        "Invalid API Key",
    ),
    "ollama/ruby_llm-chat-error-handling-with-o--oud-gpt-oss-120b-raises-appropriate-auth-error": (
        *(401, INVALID, "invalid_api_key", None),
        "Unauthorized",
    ),
    "openai/dd-trace-py-openai-v1-chat-completion-error": (
        *(401, INVALID, "invalid_api_key", None),
        "Incorrect API key provided: <[redacted]>.",
    ),
    "openai/edot-instrumentation-elastic-op--entation-openai-test-chat-with-model-not-found": (
        *NO_MODEL,
        "The model `not-found-TEST_CHAT_MODEL` does not exist",
    ),
    "openai/otelpy-instrumentation-genai-open--ation-openai-v2-test-async-chat-completion-404": (
        *NO_MODEL,
        "The model `this-model-does-not-exist` does not exist",
    ),
    "openai/req_llm-openai-text-embedding-3-large-basic": (
        *(403, INVALID, None, None),
        "You are not allowed to sample from this model",
    ),
    "openrouter/ruby_llm-chat-error-handling-with-o--claude-haiku-4-5-raises-appropriate-auth-error": (
        *(401, INVALID, "invalid_api_key", None),
        "Missing Authentication header",
    ),
    "perplexity/ruby_llm-chat-real-error-scenarios--y-sonar-handles-context-length-exceeded-errors": (
        *(400, INVALID, "context_length_exceeded", "input"),
        "The total length of all messages is too long.",
    ),
    "xai/req_llm-xai-grok-code-fast-1-reasoning-basic": (
        *PLAIN,
        "Model grok-code-fast-1 does not support parameter reasoningEffort.",
    ),
}


def refused() -> list[Recording]:
    return [recording for recording in all_recordings() if recording.status != 200]


def seen(error: ApiError) -> tuple[int, str, str | None, str | None]:
    return error.status, error.type, error.code, error.param


@pytest.mark.parametrize("recording", refused(), ids=lambda recording: recording.name)
def test_quirk_42_every_recorded_error(recording: Recording) -> None:
    error = map_upstream_answer(recording.status, (("content-type", recording.content_type),), recording.body)
    *expected, message = RECORDED[recording.name]
    assert seen(error) == tuple(expected)
    assert error.message.startswith(message)


def test_no_recorded_error_was_forgotten() -> None:
    assert {recording.name for recording in refused()} == set(RECORDED)


@pytest.mark.parametrize(
    ("status", "value", "expected", "message"),
    [
        (
            400,
            {"error": {"message": "m", "type": INVALID, "param": "top_p", "code": "c"}},
            (400, INVALID, "c", "top_p"),
            "m",
        ),
        (400, {"error": {"message": "m", "type": "BadRequestError", "code": 400}}, PLAIN, "m"),
        (400, {"error": "m"}, PLAIN, "m"),
        (400, {"code": "Some words", "error": "m"}, PLAIN, "m"),
        (400, {"object": "error", "message": "m", "type": "x", "code": 400}, PLAIN, "m"),
        (400, {"object": "error", "message": {"detail": [{"msg": "a"}, {"msg": "b"}]}}, PLAIN, "a; b"),
        (400, {"detail": "m"}, PLAIN, "m"),
        (422, {"detail": [{"loc": ["body", "tools", 0], "msg": "m"}]}, (422, INVALID, None, None), "tools.0: m"),
        (400, {"code": 400, "message": "m", "type": "Bad Request"}, PLAIN, "m"),
        (
            400,
            [{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}],
            (400, INVALID, "INVALID_ARGUMENT", None),
            "m",
        ),
        (400, {"errors": [{"code": 5007, "message": "m"}], "success": False}, PLAIN, "m"),
        (400, {"message": "m", "__type": "ValidationException"}, PLAIN, "m"),
        (400, {"error": ["a", "b"]}, PLAIN, "a; b"),
        (400, {"title": "m", "status": 400}, PLAIN, "m"),
        (400, {"error": {"message": "m", "param": "messages[0].role"}}, (400, INVALID, None, "input"), "m"),
        (400, {"error": {"message": "m", "param": "max_tokens"}}, (400, INVALID, None, "max_output_tokens"), "m"),
        (400, {"error": {"message": "m", "param": "response_format"}}, (400, INVALID, None, "text.format"), "m"),
        (400, {"error": {"message": "m", "param": "not a name"}}, PLAIN, "m"),
        (
            401,
            {"error": {"message": "m", "type": "authentication_error"}},
            (401, "authentication_error", "invalid_api_key", None),
            "m",
        ),
        (402, {"error": {"message": "Insufficient Balance"}}, QUOTA, "Insufficient Balance"),
        (
            429,
            {
                "error": {
                    "message": "You exceeded your current quota, please check your plan",
                    "code": "insufficient_quota",
                }
            },
            QUOTA,
            "You exceeded",
        ),
        (
            429,
            {
                "error": {
                    "message": "You exceeded your current quota. Please retry in 3.5s.",
                    "status": "RESOURCE_EXHAUSTED",
                }
            },
            RATE,
            "You exceeded",
        ),
        (
            429,
            {"error": {"message": "m", "type": "tokens", "code": "rate_limit_exceeded"}},
            (429, "tokens", "rate_limit_exceeded", None),
            "m",
        ),
        (429, {}, RATE, "The upstream answered with status 429"),
        # A code that says something else than the status stays.
        (429, {"error": {"message": "m", "code": "engine_busy"}}, (*RATE[:2], "engine_busy", None), "m"),
        # A status as text, in the place of a code.
        (400, {"error": {"message": "m", "code": "400"}}, PLAIN, "m"),
        (400, {"error": {"message": "m", "code": "12345"}}, PLAIN, "m"),
        # No object at all.
        (400, "Bad things happened.", PLAIN, "Bad things happened."),
        (400, ["Bad things happened."], PLAIN, "The upstream answered with status 400"),
        (400, 5, PLAIN, "5"),
        # Deeper than anybody looks.
        (400, {"message": [[[[["m"]]]]]}, PLAIN, "The upstream answered with status 400"),
        (
            400,
            {"message": {"detail": [{"message": [{"message": "m"}]}]}},
            PLAIN,
            "The upstream answered with status 400",
        ),
        (400, {"message": [[["m"]]]}, PLAIN, "m"),
        (413, {"error": {"message": "Request too large"}}, (413, INVALID, None, None), "Request too large"),
        (404, {"error": "model 'x' not found, try pulling it first"}, NO_MODEL, "model 'x'"),
        (400, {"error": {"message": "foo/bar is not a valid model ID"}}, NO_MODEL_400, "foo"),
        (404, {"error": {"message": "No endpoints found for foo/bar."}}, NO_MODEL, "No"),
        (400, {"error": {"message": "The model called tool f, which was not found"}}, PLAIN, "The model called"),
        (400, {"error": {"message": "unknown model parameter x"}}, PLAIN, "unknown"),
        (404, {"error": {"message": "no such tool"}}, (404, INVALID, None, None), "no such tool"),
        # The path is the gateway's: as FastAPI, llama.cpp, Azure, OpenAI, Express and our demo say that they lack it.
        (404, {"error": {"message": "no such path"}}, NO_PATH, "The upstream does not have the requested path."),
        (404, {"detail": "Not Found"}, NO_PATH, "The upstream does not have the requested path."),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, NO_PATH, "The"),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, NO_PATH, "The"),
        (404, {"error": {"message": "Invalid URL (POST /chat/completions)"}}, NO_PATH, "The"),
        (404, {"message": "Cannot POST /chat/completions"}, NO_PATH, "The"),
        (404, {"error": "The requested URL /chat/completions was not found on this server."}, NO_PATH, "The"),
        (404, {}, NO_PATH, "The"),
        (405, {"detail": "Method Not Allowed"}, BROKEN, "Method"),
        (415, {}, BROKEN, "The upstream answered with status 415"),
        (500, {"error": {"message": "m", "code": "internal"}}, (500, "server_error", "internal", None), "m"),
        (503, {"error": {"message": "The model is overloaded"}}, BUSY, "The"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, BUSY, "Overloaded"),
        (524, {}, BROKEN, "The upstream answered with status 524"),
        (302, {}, BROKEN, "The upstream answered with status 302"),
    ],
    ids=str,
)
def test_quirk_42_shapes(status: int, value: Any, expected: tuple[Any, ...], message: str) -> None:
    error = map_upstream_answer(status, (), json.dumps(value).encode())
    assert seen(error) == expected
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The input token count (2000000) exceeds the maximum number of tokens allowed (1048575).",
        "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
        "Prompt contains 50000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
        "Input is too long for requested model.",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    ],
)
def test_a_prompt_that_is_too_long_has_one_code(message: str) -> None:
    error = map_upstream_answer(400, (), json.dumps({"error": {"message": message}}).encode())
    assert seen(error) == (400, INVALID, "context_length_exceeded", "input")


def test_openrouters_general_message_is_completed_by_the_providers() -> None:
    said = "temperature is too hot"
    for inner in (
        json.dumps({"error": {"message": said}}),
        json.dumps({"error": said}),
        json.dumps({"message": said, "error": None}),
        said,
    ):
        value = {
            "error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": inner}},
            "user_id": "user_2x9",
        }
        error = map_upstream_answer(400, (), json.dumps(value).encode())
        assert error.message == f"Provider returned error: {said}"


@pytest.mark.parametrize("raw", ["[1,2]", '"busy"', "{}", '{"error":5}'])
def test_what_a_provider_says_without_a_message_is_told_as_it_is(raw: str) -> None:
    value = {"error": {"message": "Provider returned error", "metadata": {"raw": raw}}}
    error = map_upstream_answer(400, (), json.dumps(value).encode())
    assert error.message == f"Provider returned error: {raw}"


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("text/plain", b"Unauthorized", "Unauthorized"),
        ("", b"404 page not found\n", "404 page not found"),
        ("text/html", b"Unauthorized", ""),
        ("text/plain", b"<html>x</html>", ""),
        ("text/plain", b"a\nb", ""),
        ("text/plain", b"\xff\xfe", ""),
        ("text/plain", b"x" * 1000, ""),
        ("text/plain", b"failed at /usr/lib/x with sk-abcdefghijkl", "failed at [path] with [redacted]"),
    ],
)
def test_a_plain_text_is_shown_when_it_is_short(kind: str, body: bytes, message: str) -> None:
    error = map_upstream_answer(403, (("content-type", kind),), body)
    assert error.message == (message or "The upstream answered with status 403 and no explanation.")


SECRETS = ("sk-proj-abcdefgh1234", "10.20.30.40", "/usr/lib/python3/x.py", "org-AbCdEf123", "user_2abCDEF12345")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "shape",
    [
        {"error": {"message": "<>", "type": "<>", "param": "<>", "code": "<>"}},
        {"error": "<>"},
        {"detail": [{"loc": ["<>"], "msg": "<>"}]},
        {
            "error": {"message": "x", "metadata": {"raw": '{"error":{"message":"<>"}}', "provider_name": "<>"}},
            "user_id": "<>",
        },
        {"error": {"message": "x", "details": [{"msg": "<>"}]}},
        {"message": {"detail": "<>"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_no_secret_of_an_upstream_reaches_a_client(shape: Any, secret: str, status: int) -> None:
    body = json.dumps(shape).replace("<>", f"the {secret} is wrong").encode()
    for error in (map_upstream_answer(status, (), body), read_stream_error(body)):
        assert secret.encode() not in error.body()
    exact = json.dumps(shape).replace("<>", secret).encode()
    assert secret not in (map_upstream_answer(status, (), exact).message or "")


# Headers


def test_of_an_upstreams_headers_those_about_limits_are_kept() -> None:
    kept = (
        ("retry-after", "3"),
        ("retry-after-ms", "2500"),
        ("x-should-retry", "true"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-requests", "1s"),
        ("anthropic-ratelimit-requests-limit", "5"),
    )
    others = (
        ("set-cookie", "x"),
        ("server", "internal"),
        ("openai-organization", "org-x"),
        ("x-ratelimit-odd", "a\r\nb"),
        ("retry-after", "x" * 1000),
        ("x-ratelimit-odd", "\xff"),
    )
    assert passed_headers((*others, *kept, *others)) == kept
    assert map_upstream_answer(429, (*others, *kept), b"").headers == kept


_WHEN = "Sun, 22 Nov 2026 13:00:00 GMT"


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("retry-after", "0", True),
        ("retry-after", "0.5", True),
        ("retry-after", "86400", True),
        ("retry-after", _WHEN, True),
        ("retry-after", "86401", False),
        ("retry-after", "99999999999", False),
        ("retry-after", "-5", False),
        ("retry-after", "abc", False),
        ("retry-after", "1e3", False),
        ("retry-after", "Infinity", False),
        ("retry-after", "", False),
        ("retry-after", "soon, " + _WHEN, False),
        ("retry-after-ms", "1500", True),
        ("retry-after-ms", "86400001", False),
        ("retry-after-ms", _WHEN, False),
        ("x-should-retry", "false", True),
        ("x-should-retry", "perhaps", False),
    ],
)
def test_a_time_to_wait_passes_when_it_is_one(name: str, value: str, passes: bool) -> None:
    assert passed_headers(((name, value),)) == (((name, value),) if passes else ())


@pytest.mark.parametrize("stream", [True, False])
def test_limits_are_told_with_good_answers_too(stream: bool) -> None:
    limits = (("x-ratelimit-remaining-requests", "7"), ("x-internal", "x"))
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    if stream:
        body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    kind = (("content-type", "text/event-stream"),) if stream else JSON
    outcome = run({"model": "m", "input": "x", "stream": stream}, [body], headers=(*kind, *limits))
    assert outcome.head is not None and outcome.head.status == 200
    assert limits[0] in outcome.head.headers and limits[1] not in outcome.head.headers


# Errors inside an answer


@pytest.mark.parametrize(
    ("value", "status", "code", "message"),
    [
        ({"error": {"message": "m", "code": "tool_use_failed", "status_code": 400}}, 400, "tool_use_failed", "m"),
        ({"error": {"message": "m", "code": 429}}, 429, "rate_limit_exceeded", "m"),
        ({"error": {"message": "m", "type": "rate_limit_error"}}, 429, "rate_limit_exceeded", "m"),
        ({"error": {"message": "Quota gone", "type": "insufficient_quota"}}, 429, "insufficient_quota", "Quota gone"),
        ({"error": {"message": "maximum context length is 5", "code": 400}}, 400, "context_length_exceeded", "maximum"),
        (
            {"error": {"message": "Please retry in 32.4s", "code": 429}},
            429,
            "rate_limit_exceeded",
            "Please retry in 32.4s. Please try again in 32.4s.",
        ),
        (
            {"error": {"message": "Provider returned error", "code": 502}},
            502,
            "server_error",
            "Provider returned error",
        ),
        ({"error": "m"}, 502, "server_error", "m"),
        ({}, 502, "server_error", "The upstream reported an error."),
    ],
    ids=str,
)
def test_quirk_43_errors_in_an_answer(value: Any, status: int, code: str, message: str) -> None:
    body = json.dumps(value).encode()
    assert read_stream_error(body).status == status
    shown = as_event_failure(read_stream_error(body))
    assert shown[0] == code and shown[1].startswith(message)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ((("retry-after", "7"),), "Slow down. Please try again in 7s."),
        ((("retry-after", "9"), ("retry-after-ms", "1500")), "Slow down. Please try again in 1.5s."),
        ((("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),), "Slow down."),
        ((("retry-after", "9999999"),), "Slow down."),
        ((), "Slow down."),
    ],
)
def test_codex_reads_its_waiting_time_from_the_message(headers: tuple[tuple[str, str], ...], words: str) -> None:
    error = map_upstream_answer(429, headers, b'{"error":{"message":"Slow down."}}')
    assert as_event_failure(error) == ("rate_limit_exceeded", words)
    again = map_upstream_answer(429, headers, b'{"error":{"message":"Please try again in 3s."}}')
    assert as_event_failure(again)[1] == "Please try again in 3s."


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("rate_limit_exceeded", "too_many_requests"),
        ("insufficient_quota", "insufficient_quota"),
        ("context_length_exceeded", INVALID),
        ("server_error", "server_error"),
        ("anything", "server_error"),
    ],
)
def test_the_type_of_an_error_event(code: str, kind: str) -> None:
    assert event_error_type(code) == kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"message": "m", "code": 429}, 429, "rate_limit_exceeded"),
        ({"message": "no", "code": 400}, 400, None),
        ({"message": "prompt is too long"}, 400, "context_length_exceeded"),
        ({"message": "m", "type": "insufficient_quota"}, 429, "insufficient_quota"),
        ({"message": "m"}, 502, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_pitfall_86_an_error_with_status_200_is_an_http_error(error: Any, status: int, code: str, stream: bool) -> None:
    body = json.dumps({"error": error}).encode()
    outcome = run({"model": "m", "input": "x", "stream": stream}, [body], headers=(*JSON, ("retry-after", "4")))
    assert outcome.head is not None and outcome.head.status == status
    assert outcome.json["error"]["code"] == code
    assert ("retry-after", "4") in outcome.head.headers
    assert outcome.finish is not None and outcome.finish.outcome == "error" and not outcome.records


# Whatever comes


_NAMES = [
    "error",
    "message",
    "code",
    "type",
    "param",
    "detail",
    "details",
    "msg",
    "loc",
    "metadata",
    "raw",
    "status",
    "errors",
    "x",
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(st.integers(100, 999), st.binary(max_size=300) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_an_openai_error(status: int, body: bytes) -> None:
    error = map_upstream_answer(status, (("content-type", "text/plain"),), body)
    assert 400 <= error.status < 600
    fields = json.loads(error.body())["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    assert fields["message"] and len(fields["message"]) <= 2_000
    assert all(fields[name] is None or isinstance(fields[name], str) for name in ("type", "param", "code"))
    code, message = as_event_failure(read_stream_error(body))
    assert code and message


@pytest.mark.parametrize("stream", [True, False])
def test_quirk_43_an_error_inside_a_choice_is_a_failure(stream: bool) -> None:
    """A whole answer, calls and finish_reason included, that says inside its choice that it is broken."""
    (recording,) = (one for one in all_recordings() if one.name.endswith("gemini-2-5-flash-lite-object-basic"))
    outcome = run({"model": "m", "input": "x", "stream": stream}, [recording.body], headers=JSON)
    assert outcome.head is not None and outcome.head.status == 502
    assert outcome.json["error"]["message"].startswith("Provider returned error: Malformed function call")
    null = recording.body.replace(b'"error": {', b'"error": null, "x": {', 1)
    assert run({"model": "m", "input": "x"}, [null], headers=JSON).head.status == 200  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [True, False])
def test_quirk_43_a_finish_that_is_an_error_is_a_failure(stream: bool) -> None:
    if stream:
        body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"error"}]}\n\ndata: [DONE]\n\n'
        outcome = run({"model": "m", "input": "x", "stream": True}, [body])
        assert outcome.finish is not None and outcome.finish.outcome == "failed"
    else:
        body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"error"}]}'
        assert run({"model": "m", "input": "x"}, [body], headers=JSON).head.status == 502  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"error":{"message":"overheated","code":500}}\n\n',
        b'event: error\ndata: {"message":"overheated"}\n\n',
        b'error: {"error":{"message":"overheated"}}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":null}],"error":{"message":"overheated"}}\n\ndata: [DONE]\n\n',
    ],
)
def test_pitfall_68_an_error_inside_a_stream_fails_the_response(last: bytes) -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' + last
    outcome = run({"model": "m", "input": "x", "stream": True}, [body])
    assert outcome.finish is not None and outcome.finish.outcome == "failed"
    events = [json.loads(line[6:]) for line in outcome.body.splitlines() if line.startswith(b"data: {")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "overheated"}
    assert b"response.completed" not in outcome.body


def test_a_refusal_that_comes_after_the_stream_was_opened_is_an_event_with_its_waiting_time() -> None:
    exchange, outcome = make_exchange(), Outcome()
    body = json.dumps({"model": "m", "input": "x", "stream": True}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    pump(exchange, outcome)
    exchange.receive_silence()
    exchange.receive_upstream_head(429, (*JSON, ("retry-after", "7")))
    exchange.receive_upstream_data(b'{"error":{"message":"Too fast, sk-abcdefghijkl.","type":"requests"}}')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status == 200
    failed = json.loads(outcome.body.split(b"\n\n")[-3].partition(b"data: ")[2])
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {
        "code": "rate_limit_exceeded",
        "message": "Too fast, [redacted]. Please try again in 7s.",
    }


# Secrets that are known

_OURS = "hunter2plainkey"


@pytest.mark.parametrize("written", [_OURS, _OURS.upper(), "aHVudGVyMnBsYWlua2V5"])
def test_known_secrets_stand_in_no_part_of_an_error(written: str) -> None:
    error = {"message": f"the key {written} is wrong", "type": written, "code": written, "param": written}
    body = json.dumps({"error": error}).encode()
    headers = (("retry-after", written), ("x-ratelimit-reset-tokens", written))
    mapped = map_upstream_answer(400, headers, body, (_OURS,))
    assert mapped.message == "the key [redacted] is wrong"
    assert (mapped.code, mapped.param, mapped.headers) == (None, None, ())
    assert written not in str(mapped.body()) and written not in repr(read_stream_error(body, (_OURS,)).body())


@pytest.mark.parametrize("name", ["code", "param"])
def test_what_looks_like_a_secret_is_no_name(name: str) -> None:
    body = json.dumps({"error": {"message": "no", name: "sk-abcdefghijklmnop"}}).encode()
    mapped = map_upstream_answer(400, (), body)
    assert (mapped.code, mapped.param) == (None, None)
