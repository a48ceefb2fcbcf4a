"""Checks schemas and grammars for forms that OpenAI refuses, although most chat servers accept them.

The setting `strict: true` adds these checks. `types/tolerance.py` refuses unknown fields and values, and `fields.py`
and `tools.py` refuse requests that no server can accept.

Sources: the guides of OpenAI to structured outputs ("Supported schemas") and to custom tools, and the texts of OpenAI's
errors. `docs/reference/limits.md` lists the checks of this module, and the rules that it does not check.

Invariant: every error names the path of the schema in the request, and the path of the problem inside the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest, invalid_parameter, wrong_value
from antiphon.translation.request.tools import decode_tools
from antiphon.types.chat import ChatMessage
from antiphon.types.json import decode_any, first, given
from antiphon.types.request import CreateResponse, ToolDeclaration
from antiphon.types.views import CustomFormat

_FORBIDDEN: Final = ("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas")
_MOST_PROPERTIES: Final = 5_000
_MOST_VALUES: Final = 1_000
_DEEPEST: Final = 10
_FORMAT: Final = msgspec.json.Decoder(CustomFormat)

Place = tuple[str, ...]


class _Unfit(Exception):
    """A problem in a schema, in the words of OpenAI's errors."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"In context={place!r}, {problem}")


def check_forms(request: CreateResponse) -> None:
    """Raise `InvalidRequest` for a schema or a grammar that OpenAI refuses."""
    form = request.text.format if request.text is not None else None
    if form is not None and form.type == "json_schema" and form.strict:
        what = f"response_format '{form.name}'"
        _check_schema("text.format.schema", what, form.schema, "invalid_json_schema")
    for where, tool in _declared("tools", request.tools):
        if tool.type == "function" and tool.strict and first(tool.parameters) == b"{":
            what = f"function '{tool.name}'"
            _check_schema(f"{where}.parameters", what, tool.parameters, "invalid_function_parameters")
        elif tool.type == "custom" and given(tool.format):
            _check_grammar(f"{where}.format.definition", _FORMAT.decode(tool.format))


def check_json_word(messages: Iterable[ChatMessage]) -> None:
    """Raise `InvalidRequest` unless a message contains the word "json". A model that must answer with JSON, but has no
    instruction to do so, may write endless whitespace."""
    if not any(isinstance(said := message.content, Raw) and b"json" in bytes(said).lower() for message in messages):
        raise wrong_value(
            "Response input messages must contain the word 'json' in some form to use 'text.format' of type "
            "'json_object'.",
            "input",
        )


def _declared(where: str, tools: Iterable[ToolDeclaration]) -> Iterator[tuple[str, ToolDeclaration]]:
    """Yield all tools, including the tools in namespaces, each with its path in the request."""
    for number, tool in enumerate(tools):
        place = f"{where}[{number}]"
        yield place, tool
        if tool.type == "namespace":
            yield from _declared(f"{place}.tools", decode_tools(f"{place}.tools", tool.tools))


def _check_schema(where: str, what: str, schema: Raw, code: str) -> None:
    try:
        _check_root(decode_any(bytes(schema)))
    except (_Unfit, ValueError) as error:
        raise InvalidRequest(f"Invalid schema for {what}: {error}.", param=where, code=code) from None


def _check_root(schema: object) -> None:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise _Unfit((), "the schema must have type 'object', not 'anyOf' or any other, at its root")
    properties = 0
    # The loop uses a list instead of recursion, so that this check, not Python's recursion limit, bounds a schema's
    # depth.
    left: list[tuple[Place, object, int]] = [((), schema, 1)]
    while left:
        place, one, depth = left.pop()
        if not isinstance(one, dict):
            continue
        properties += _check_one(place, one, depth)
        if properties > _MOST_PROPERTIES:
            raise _Unfit((), f"a schema may have at most {_MOST_PROPERTIES} properties in all")
        left += _inside(place, one, depth)


def _check_one(place: Place, schema: dict[str, object], depth: int) -> int:
    """Check one schema without its nested schemas. Returns the schema's number of properties."""
    if depth > _DEEPEST:
        raise _Unfit(place[:8], f"a schema may be nested at most {_DEEPEST} levels deep")
    for name in _FORBIDDEN:
        if name in schema:
            raise _Unfit(place, f"'{name}' is not permitted")
    values = schema.get("enum")
    if isinstance(values, list) and len(values) > _MOST_VALUES:
        raise _Unfit(place, f"'enum' may have at most {_MOST_VALUES} values")
    properties = schema.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or names:
        if schema.get("additionalProperties") is not False:
            raise _Unfit(place, "'additionalProperties' is required to be supplied and to be false")
        required = schema.get("required")
        there = {name for name in required if isinstance(name, str)} if isinstance(required, list) else frozenset()
        missing = next((name for name in names if name not in there), None)
        if missing is not None:
            raise _Unfit(
                place,
                "'required' is required to be supplied and to be an array including every key in properties. "
                f"Missing '{missing[:64]}'",
            )
    return len(names)


def _inside(place: Place, schema: dict[str, object], depth: int) -> Iterator[tuple[Place, object, int]]:
    """Yield the schemas that a schema directly contains, each with its path and depth."""
    for holder in ("properties", "$defs", "definitions"):
        held = schema.get(holder)
        for name, one in held.items() if isinstance(held, dict) else ():
            yield (*place, holder, name[:64]), one, depth + (holder == "properties")
    alternatives = schema.get("anyOf")
    for number, one in enumerate(alternatives if isinstance(alternatives, list) else ()):
        yield (*place, "anyOf", str(number)), one, depth
    yield (*place, "items"), schema.get("items"), depth


# Syntax that Python spells differently from OpenAI's regular expressions (Rust's).
_OF_RUST: Final = (
    (re.compile(r"\\[pP](?:\{[^}]*\}|.)"), r"\\w"),
    (re.compile(r"\(\?<(?![=!])"), "(?P<"),
    (re.compile(r"\\z"), r"\\Z"),
)


def _check_grammar(where: str, form: CustomFormat) -> None:
    if form.type != "grammar" or form.syntax != "regex" or form.definition is None:
        return
    pattern = form.definition
    for theirs, ours in _OF_RUST:
        pattern = theirs.sub(ours, pattern)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise invalid_parameter(
            where, f"the definition is not a valid regular expression ({error})", "invalid_grammar"
        ) from None
