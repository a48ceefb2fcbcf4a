"""Reading a create-response body: what is refused names the field, what is ignored is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.errors import InvalidRequest
from antiphon.translation.request.body import read_request
from antiphon.translation.request.checks import has_half_characters
from antiphon.types.request import CreateResponse

_MESSAGE = {"role": "user", "content": "x"}
_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def _read(**fields: Any) -> CreateResponse:
    """`strict` is none of the fields."""
    strict = fields.pop("strict", False)
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    return read_request(body, max_items=10, max_tools=3, strict=strict)


def _refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        # What is left out otherwise is refused too.
        _read(**fields, strict=True)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"model": " "}, "model", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": {}}, "input", "invalid_type"),
        ({"input": [3]}, "input[0]", "invalid_type"),
        ({"input": [{"role": 3}]}, "input[0].role", "invalid_type"),
        ({"input": [{}] * 11}, "input", "array_above_max_length"),
        ({"instructions": ["x"]}, "instructions", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 1.5}, "max_output_tokens", "invalid_type"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k" * 65: "x"}}, "metadata", "string_above_max_length"),
        ({"metadata": {"k": "x" * 513}}, "metadata", "string_above_max_length"),
        ({"safety_identifier": "x" * 129}, "safety_identifier", "string_above_max_length"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"service_tier": "gold"}, "service_tier", "invalid_value"),
        ({"reasoning": {"effort": "lots"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "invalid_type"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing_required_parameter"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
            "text.format.name",
            "invalid_value",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"include": ["nonsense"]}, "include", "invalid_value"),
        ({"background": True, "store": False}, "background", "invalid_value"),
        ({"prompt": "p"}, "prompt", "invalid_type"),
        ({"prompt": {}}, "prompt.id", "missing_required_parameter"),
        ({"prompt": {"id": "p", "version": "one"}}, "prompt.version", "invalid_value"),
        ({"prompt": {"id": "p", "variables": []}}, "prompt.variables", "invalid_type"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"response_format": {}}, "response_format", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"reasoning": {"generate_summary": "some"}}, "reasoning.generate_summary", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": []}}},
            "text.format.schema",
            "invalid_type",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
        ({"tools": [_TOOL, _TOOL]}, "tools[1].name", "invalid_value"),
        ({"tools": [{**_TOOL, "parameters": []}]}, "tools[0].parameters", "invalid_type"),
        ({"tools": [_TOOL] * 4}, "tools", "array_above_max_length"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "unsupported_tool"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "unsupported_tool"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "perhaps"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [_TOOL]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "web_search"}, "tools": [_TOOL]}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": {"name": "f"}, "tools": [_TOOL]}, "tool_choice.type", "missing_required_parameter"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "g"}]}, "tools": [_TOOL]},
            "tool_choice.tools[0]",
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = _refused(**fields)
    assert (error.param or "").replace("[...]", "") == param.replace("[...]", "")
    assert error.code == code and error.status == 400
    assert error.message.endswith((".", "?"))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (b'{"input":"\\ud83d"}', 10),
        (b'{"input":"cut here \\uD83d, and more of the same text"}', 19),
        (b'{"input":"\\udc00"}', 10),
        (b'{"input":"\\ud83d\\ud83d\\ude00"}', 10),
        (b'{"input":"\\ud83d\\ude00\\ude00"}', 22),
        (b'{"input":[{"content":"\\\\\\ud83d"}]}', 24),
        (b'{"\\ud83d":1}', 2),
    ],
)
def test_half_a_character_is_told_as_that(text: bytes, at: int) -> None:
    """What a client in JavaScript makes of a text that it cuts inside of an emoji: nothing truncated it on its way."""
    with pytest.raises(InvalidRequest) as caught:
        read_request(text, max_items=10, max_tools=10)
    assert (caught.value.code, caught.value.param) == ("invalid_json", None)
    assert f"an unpaired surrogate at byte {at} " in caught.value.message
    assert has_half_characters(text) and not has_half_characters(b'{"input":"\\ud83d\\ude00"}')


@pytest.mark.parametrize("text", [b'{"input":"x', b'{"input":"\\ud83d\\ude00', b'{"input":"\\\\ud83d'])
def test_other_broken_json_holds_no_half_character(text: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_request(text, max_items=10, max_tools=10)
    assert "surrogate" not in caught.value.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"\xff{}", b'{"a":\xff}', b"[" * 100_000, b'{"model":"\\ud800"}']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_request(body, max_items=10, max_tools=10)
    assert caught.value.code in ("invalid_json", "invalid_type")


def test_pitfall_4_the_chat_name_of_a_field_is_answered_with_the_one_to_use() -> None:
    error = _refused(response_format={"type": "json_object"})
    assert "'text.format'" in error.message
    # Null is the same as not sending it.
    assert set(_read(response_format=None, max_tokens=None).others) == {"max_tokens", "response_format"}


def test_pitfall_114_a_probe_with_no_input_and_one_token_gets_the_answer_openai_gives() -> None:
    error = _refused(input=[], max_output_tokens=1)
    assert error.status == 400 and error.param == "max_output_tokens" and "16" in error.message
    assert _refused(input=[], max_output_tokens=16).param == "input"


def test_what_has_no_effect_is_named() -> None:
    request = _read(
        client_metadata={"a": 1},
        include=["reasoning.encrypted_content", "file_search_call.results"],
        tools=[{"type": "web_search"}, _TOOL],
        stream_options={"include_obfuscation": True},
    )
    assert set(request.ignored) == {
        "client_metadata",
        "include:file_search_call.results",
        "tools.web_search",
    }
    assert request.encrypted_reasoning and request.obfuscation and not request.logprobs
    assert [tool.name for tool in request.tools] == ["f"]


def test_defaults_and_nulls_are_the_same() -> None:
    names = ("tools", "tool_choice", "temperature", "text", "reasoning", "metadata", "store", "stream", "include")
    assert _read(**dict.fromkeys(names)) == _read()
    assert _read().store is True and _read().stream is False and _read().ignored == ()


def test_large_parts_stay_slices_of_the_request() -> None:
    text = "x" * 100_000
    request = _read(input=[{"role": "user", "content": text}])
    assert bytes(request.input[0].content) == json.dumps(text).encode()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
        ("top_logprobs", 0, 20),
        ("max_output_tokens", 16, 2**53),
        ("max_tool_calls", 1, 2**53),
    ],
)
def test_a_number_may_be_the_least_and_the_most(name: str, low: int, high: int) -> None:
    for value in (low, high):
        request = _read(**{name: value})
        assert request.forwarded.get(name, getattr(request, name, None)) == value
    for value, code in ((low - 1, "below_min_value"), (high + 1, "above_max_value")):
        error = _refused(**{name: value})
        assert error.param == name and (error.code or "").endswith(code)
        assert f"of {low if value < low else high:g}" in error.message


@pytest.mark.parametrize(
    ("fits", "over", "param"),
    [
        ({"safety_identifier": "x" * 128}, {"safety_identifier": "x" * 129}, "safety_identifier"),
        ({"prompt_cache_key": "x" * 1024}, {"prompt_cache_key": "x" * 1025}, "prompt_cache_key"),
        ({"metadata": {str(n): "" for n in range(16)}}, {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 64: "v" * 512}}, {"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k" * 64: "v" * 512}}, {"metadata": {"k": "v" * 513}}, "metadata"),
        (
            {"input": [{"role": "user", "content": "x"}] * 10},
            {"input": [{"role": "user", "content": "x"}] * 11},
            "input",
        ),
        (
            {"tools": [{**_TOOL, "name": f"f{n}"} for n in range(3)]},
            {"tools": [{**_TOOL, "name": f"f{n}"} for n in range(4)]},
            "tools",
        ),
        (
            {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
            {"context_management": [{"type": "compaction", "compact_threshold": 999}]},
            "context_management[0].compact_threshold",
        ),
    ],
)
def test_what_is_as_large_as_may_be_is_taken_and_one_more_is_not(
    fits: dict[str, Any], over: dict[str, Any], param: str
) -> None:
    _read(**fits, strict=True)
    assert _refused(**over).param == param


def test_tools_of_a_namespace_count_as_tools() -> None:
    def namespace(count: int) -> dict[str, Any]:
        return {"type": "namespace", "name": "n", "tools": [{**_TOOL, "name": f"f{n}"} for n in range(count)]}

    _read(tools=[namespace(2)])
    assert _refused(tools=[namespace(2), {**_TOOL, "name": "g"}, {**_TOOL, "name": "h"}]).param == "tools"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("code_interpreter", "the operator has not enabled the tool ('code_interpreter.sandbox')"),
        ("mcp", "the server lacks the extra 'mcp', or the operator has disabled the tool ('mcp.enabled')"),
    ],
)
def test_a_hosted_tool_that_cannot_run_says_why(kind: str, why: str) -> None:
    error = _refused(tools=[{"type": kind}])
    assert error.message == f"The hosted tool '{kind}' cannot run here: {why}. Remove the tool from 'tools'."


def test_an_enabled_tool_that_did_not_start_says_so() -> None:
    why = "the operator has enabled the tool, but its sandbox did not start"
    for fields in ({"tools": [{"type": "code_interpreter"}]}, {"tool_choice": {"type": "code_interpreter"}}):
        body = json.dumps({"model": "m", "input": "x", **fields}).encode()
        with pytest.raises(InvalidRequest, match=why):
            read_request(body, max_items=9, max_tools=9, not_started=frozenset({"code_interpreter"}))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": 5}, "input", "expected a string or a list of items"),
        ({"instructions": 5}, "instructions", "expected a string"),
        ({"temperature": "hot"}, "temperature", "expected a number, but got a string instead"),
        ({"stream": 1}, "stream", "expected a boolean, but got an integer instead"),
        ({"max_output_tokens": []}, "max_output_tokens", "expected an integer, but got an array instead"),
        ({"include": {}}, "include", "expected an array, but got an object instead"),
        ({"user": 0.5}, "user", "expected a string, but got a number instead"),
        ({"store": None, "background": "x"}, "background", "expected a boolean, but got a string instead"),
        ({"metadata": []}, "metadata", "expected an object, but got an array instead"),
    ],
    ids=str,
)
def test_a_wrong_type_is_told_in_plain_words(fields: dict[str, Any], param: str, words: str) -> None:
    error = _refused(**fields)
    assert (error.param, error.code) == (param, "invalid_type") and words in error.message
