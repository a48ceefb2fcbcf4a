"""Templates: which variables there are, what comes in their place, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.translation.request.parameters import PARAMETERS
from antiphon.translation.request.prompt_template import TEMPLATE_FIELDS, fill, read_reference, variables_of

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
FILE = {"type": "input_file", "file_url": "https://example.com/a.pdf"}


def filled(template: dict[str, Any], **values: Any) -> tuple[list[Raw], dict[str, Raw]]:
    return fill(
        json.dumps(template).encode(),
        {name: Raw(json.dumps(value).encode()) for name, value in values.items()},
        max_bytes=1 << 20,
    )


def instructions(text: str, **values: Any) -> Any:
    return json.loads(bytes(filled({"instructions": text}, **values)[1]["instructions"]))


def messages(content: Any, role: str = "user", **values: Any) -> list[Any]:
    found = filled({"input": [{"role": role, "content": content}]}, **values)
    return [json.loads(bytes(message)) for message in found[0]]


def refused(template: dict[str, Any], **values: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        filled(template, **values)
    return caught.value


def test_texts_in_instructions() -> None:
    assert instructions("You are {{who}}, {{ who }} from {{a.b-c}}.", who="Ann", **{"a.b-c": 'Ü\n"漢"'}) == (
        'You are Ann, Ann from Ü\n"漢".'
    )
    assert instructions("{{x}}{{y}}", x={"type": "input_text", "text": "a"}, y="") == "a"


def test_what_looks_like_a_variable_in_a_value_is_none() -> None:
    assert instructions("{{a}} {{b}}", a="{{b}}", b="{{a}}") == "{{b}} {{a}}"


@pytest.mark.parametrize("text", ["{x}", "{{}}", "{{ }}", "{{1x}}", "{{x y}}", "{ {x} }", "{{x}", "}}x{{", "{{é}}"])
def test_what_is_no_variable(text: str) -> None:
    assert variables_of(json.dumps({"instructions": text}).encode()) == ()
    assert instructions(text) == text


def test_variables_are_found_in_their_order() -> None:
    template = {
        "instructions": "{{b}} {{a}}",
        "input": [
            {"role": "user", "content": "{{c}} {{b}}"},
            {"role": "user", "content": [{"type": "input_text", "text": "{{d}}"}, IMAGE]},
        ],
        "tools": [{"type": "function", "name": "f", "description": "{{no}}"}],
    }
    assert variables_of(json.dumps(template).encode()) == ("c", "b", "d", "a")


def test_a_string_as_input_is_a_users_message() -> None:
    found = filled({"input": "Tell me of {{x}}."}, x="Rome")
    assert [json.loads(bytes(message)) for message in found[0]] == [{"role": "user", "content": "Tell me of Rome."}]


def test_messages_keep_what_else_they_have() -> None:
    message = {"type": "message", "role": "assistant", "phase": "commentary", "content": "I am {{x}}"}
    (made,) = filled({"input": [message]}, x="here")[0]
    assert json.loads(bytes(made)) == {**message, "content": "I am here"}


@pytest.mark.parametrize("part", [IMAGE, FILE])
def test_a_picture_or_file_cuts_the_text(part: dict[str, str]) -> None:
    (message,) = messages("Look: {{it}} What is {{that}}?", it=part, that="this")
    assert message["content"] == [
        {"type": "input_text", "text": "Look: "},
        part,
        {"type": "input_text", "text": " What is this?"},
    ]
    assert messages("{{it}}", it=part)[0]["content"] == [part]


def test_a_picture_in_the_middle_of_parts() -> None:
    parts = [IMAGE, {"type": "input_text", "text": "a{{it}}b", "other": 1}, {"type": "input_text", "text": "c"}]
    (message,) = messages(parts, it=FILE)
    assert message["content"] == [
        IMAGE,
        {"type": "input_text", "text": "a", "other": 1},
        FILE,
        {"type": "input_text", "text": "b", "other": 1},
        {"type": "input_text", "text": "c"},
    ]


@pytest.mark.parametrize("content", [None, 5, {"text": "{{x}}"}])
def test_content_that_has_no_text_stays_as_it_is(content: Any) -> None:
    """Whoever reads the request refuses it; what is in it is no variable."""
    assert messages(content) == [{"role": "user", "content": content}]
    assert filled({"input": [{"role": "user"}]})[0][0] == Raw(b'{"role": "user"}')


@pytest.mark.parametrize(
    "part", [5, {}, {"type": 5, "text": "{{x}}"}, {"type": "input_text"}, {"type": "input_text", "text": 5}]
)
def test_a_part_that_has_no_text_stays_as_it_is(part: Any) -> None:
    assert messages([part, {"type": "input_text", "text": "{{x}}"}], x="y")[0]["content"] == [
        part,
        {"type": "input_text", "text": "y"},
    ]


def test_an_empty_text_stays_a_part() -> None:
    assert messages([{"type": "input_text", "text": "{{x}}"}], x="")[0]["content"] == [
        {"type": "input_text", "text": ""}
    ]


def test_missing_and_unknown_variables() -> None:
    template = {"instructions": "{{a}} {{b}} {{c}}"}
    error = refused(template, b="x")
    assert (error.param, error.code) == ("prompt.variables", "missing_required_parameter")
    assert error.message == "Missing prompt variables: a, c."
    error = refused(template, a="x", b="x", c="x", d="x")
    assert (error.param, error.code) == ("prompt.variables", "unknown_parameter")
    assert "d" in error.message


@pytest.mark.parametrize(
    "value",
    [5, None, True, [], {}, {"type": "input_text"}, {"type": "input_audio"}, {"type": 1}, [IMAGE], {"text": "x"}],
)
def test_values_of_other_types(value: Any) -> None:
    error = refused({"instructions": "{{a}}"}, a=value)
    assert (error.param, error.code) == ("prompt.variables.a", "invalid_type")


@pytest.mark.parametrize(
    "template",
    [
        {"instructions": "{{a}}"},
        {"input": [{"role": "developer", "content": "{{a}}"}]},
        {"input": [{"role": "system", "content": [{"type": "input_text", "text": "{{a}}"}]}]},
    ],
)
def test_a_picture_where_only_text_may_stand(template: dict[str, Any]) -> None:
    error = refused(template, a=IMAGE)
    assert (error.param, error.code) == ("prompt.variables.a", "invalid_value")


@pytest.mark.parametrize(
    ("value", "param"),
    [(5, "input"), ({}, "input"), ([5], "input[0]"), ([{"type": "function_call"}], "input[0].type")],
)
def test_templates_hold_messages(value: Any, param: str) -> None:
    assert refused({"input": value}).param == param


def test_references() -> None:
    assert read_reference(Raw(b"null")) is None and read_reference(Raw(b"")) is None
    read = read_reference(Raw(b'{"id":"pmpt_1","version":"7","variables":{"a":"b"}}'))
    assert read is not None
    assert (read.id, read.version, {name: bytes(value) for name, value in read.variables.items()}) == (
        *("pmpt_1", 7),
        {"a": b'"b"'},
    )
    for text in (b'{"id":"pmpt_1"}', b'{"id":"pmpt_1","version":null,"variables":null}'):
        read = read_reference(Raw(text))
        assert read is not None and (read.version, read.variables) == (None, {})
    read = read_reference(Raw(b'{"id":"pmpt_1","version":3}'))
    assert read is not None and read.version == 3


@pytest.mark.parametrize("version", ['"0"', '"-1"', '"1.0"', '"one"', '""', '"01"', '"99999999999"', "0", "-1"])
def test_versions_that_are_none(version: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_reference(Raw(b'{"id":"p","version":%b}' % version.encode()))
    assert caught.value.param == "prompt.version"


_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(st.lists(st.tuples(st.text(max_size=20), _NAMES), max_size=6), st.data())
def test_any_text_any_values(pieces: list[tuple[str, str]], data: st.DataObject) -> None:
    """What is between variables stays, and every value stands in its variable's place, whatever is in it."""
    values = {name: data.draw(st.text(max_size=20)) for _, name in pieces}
    text = "".join(before.replace("{{", "") + " {{" + name + "}}" for before, name in pieces)
    expected = "".join(before.replace("{{", "") + " " + values[name] for before, name in pieces)
    for surrogate in (text, *values.values()):
        if any(0xD800 <= ord(letter) < 0xE000 for letter in surrogate):
            return
    assert instructions(text, **values) == expected


def test_a_template_says_what_belongs_to_the_answer_and_nothing_of_the_call() -> None:
    of_answers = """
        model input instructions max_output_tokens max_tool_calls temperature top_p presence_penalty frequency_penalty
        top_logprobs parallel_tool_calls text reasoning truncation service_tier context_management include tools
        tool_choice
    """
    assert {*of_answers.split(), *PARAMETERS} == TEMPLATE_FIELDS
