"""What `strict: true` refuses in schemas and grammars, as OpenAI does; without it they go to the chat server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.exchanges import Outcome, run

STRING = {"type": "string"}
WHOLE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": STRING, "b": {"type": ["string", "null"]}},
    "required": ["b", "a"],
    "additionalProperties": False,
}


def _with(**changed: Any) -> dict[str, Any]:
    return {**WHOLE, **changed}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


REFUSED: list[tuple[Any, str]] = [
    (
        {"type": "object", "properties": {}},
        "In context=(), 'additionalProperties' is required to be supplied and to be",
    ),
    (_with(additionalProperties=True), "'additionalProperties' is required"),
    (_with(required=["a"]), "Missing 'b'"),
    (_with(required=None), "Missing 'a'"),
    (_with(required="a"), "Missing 'a'"),
    ({"anyOf": [WHOLE]}, "must have type 'object'"),
    ({"type": "array", "items": WHOLE}, "must have type 'object'"),
    (
        _with(properties={"a": {"type": "object"}, "b": STRING}),
        "In context=('properties', 'a'), 'additionalProperties'",
    ),
    (
        _with(properties={"a": {"type": "array", "items": _with(required=[])}, "b": STRING}),
        "('properties', 'a', 'items')",
    ),
    (
        _with(properties={"a": {"anyOf": [STRING, _with(required=[])]}, "b": STRING}),
        "('properties', 'a', 'anyOf', '1')",
    ),
    (_with(**{"$defs": {"d": _with(required=[])}}), "('$defs', 'd')"),
    (_with(properties={"a": {"type": ["object", "null"]}, "b": STRING}), "'additionalProperties'"),
    *(
        (_with(**{name: []}), f"'{name}' is not permitted")
        for name in ("allOf", "oneOf", "not", "if", "dependentSchemas")
    ),
    (_with(properties={"a": {"enum": ["x"] * 1001}, "b": STRING}), "'enum' may have at most 1000 values"),
    (_nested(11), "at most 10 levels"),
    (
        _with(properties={f"p{n}": STRING for n in range(5001)}, required=[f"p{n}" for n in range(5001)]),
        "at most 5000 properties",
    ),
]
TAKEN: list[Any] = [
    WHOLE,
    {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
    {"type": "object", "additionalProperties": False},
    _nested(9),
    _with(
        properties={"a": {"$ref": "#/$defs/d"}, "b": {"anyOf": [STRING, {"type": "null"}]}}, **{"$defs": {"d": WHOLE}}
    ),
    _with(
        properties={"a": {"type": "string", "pattern": "x", "format": "uuid"}, "b": {"type": "array", "items": STRING}}
    ),
]


def _text(schema: Any, **more: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True, **more}}}


def _function(schema: Any, **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "f", "parameters": schema, "strict": True, **more}]}


def _namespace(schema: Any, **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "namespace", "name": "n", "tools": _function(schema, **more)["tools"]}]}


def _update(schema: Any, **more: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "hi"}, {"type": "configuration_update", **_text(schema, **more)}]}


WAYS = [
    (_text, "text.format.schema", "invalid_json_schema", "response_format 'x'"),
    (_update, "text.format.schema", "invalid_json_schema", "response_format 'x'"),
    (_function, "tools[0].parameters", "invalid_function_parameters", "function 'f'"),
    (_namespace, "tools[0].tools[0].parameters", "invalid_function_parameters", "function 'f'"),
]
ways = pytest.mark.parametrize(("way", "param", "code", "what"), WAYS, ids=["text", "update", "function", "namespace"])


def _ask(fields: dict[str, Any], *, strict: bool = True, **more: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **fields}, strict=strict, **more)


@ways
@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_a_strict_schema_that_openai_refuses(
    way: Any, param: str, code: str, what: str, schema: Any, words: str
) -> None:
    outcome = _ask(way(schema))
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    error = outcome.json["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"Invalid schema for {what}: In context=") and words in error["message"]
    assert _ask(way(schema), strict=False).calls, "only where the gateway is strict"
    assert _ask(way(schema, strict=False)).calls, "only where the schema is"


@ways
@pytest.mark.parametrize("schema", TAKEN)
def test_a_strict_schema_that_openai_takes(way: Any, param: str, code: str, what: str, schema: Any) -> None:
    assert _ask(way(schema)).calls


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({}, False),
        ({"input": "Answer in JSON."}, True),
        ({"instructions": "Give json."}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "as jSoN"}]}]}, True),
    ],
)
def test_json_alone_is_asked_for_in_words_too(fields: dict[str, Any], taken: bool) -> None:
    asked = {**fields, "text": {"format": {"type": "json_object"}}}
    for profile in ("generic", "llamacpp", "deepseek"):
        outcome = _ask(asked, profile=profile)
        assert bool(outcome.calls) is taken
        if not taken:
            error = outcome.json["error"]
            assert error["param"] == "input" and "must contain the word 'json'" in error["message"]
    assert _ask(asked, strict=False).calls


@pytest.mark.parametrize(
    ("syntax", "definition", "taken"),
    [
        ("regex", "[0-9]+", True),
        ("regex", r"^(?<year>\p{Nd}{4})-\pL\z", True),
        ("regex", "(", False),
        ("regex", "[a", False),
        ("regex", "a**", False),
        # Nobody here reads Lark.
        ("lark", "start: (", True),
    ],
)
def test_a_grammar_that_is_no_regular_expression(syntax: str, definition: str, taken: bool) -> None:
    form = {"type": "grammar", "syntax": syntax, "definition": definition}
    outcome = _ask({"tools": [{"type": "custom", "name": "c", "format": form}]})
    assert bool(outcome.calls) is taken
    if not taken:
        error = outcome.json["error"]
        assert (error["param"], error["code"]) == ("tools[0].format.definition", "invalid_grammar")
    assert _ask({"tools": [{"type": "custom", "name": "c", "format": form}]}, strict=False).calls
