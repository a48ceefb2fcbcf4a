"""Validates values against OpenAI's and Open Responses' published schemas and Antiphon's own document, and locates
violations.

Lives here: validation of stream events, responses, errors and requests. Antiphon's document must describe every member
of an answer. Each violation has a stable position. Not here: the known violations (`tests/schemas/contradictions.py`),
the grammar of a stream (`judge.py`).

A position is the innermost typed object and the path from it: `response.usage`, `function_call.namespace`,
`response.output_text.delta.logprobs[]`. In a union the validator follows the branch whose `type` matches the value. So
a violation is never only "not valid under any of the given schemas".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError, ValidationErrorKind

from tests.support.whole_api import strict_components

OPENAI = "openai"
OPEN_RESPONSES = "open responses"
OWN = "own"
_FOLDER = Path(__file__).parent.parent / "schemas"
_FILES = {OPENAI: "openai-subset.json", OPEN_RESPONSES: "openresponses-openapi.json"}
_SCHEMAS = (*_FILES, OWN)
_RESPONSE = {OPENAI: "Response", OPEN_RESPONSES: "ResponseResource", OWN: "Response"}


@dataclass(frozen=True)
class Violation:
    """A violation: `schema` has the rule `rule` (a JSON Schema keyword), which the value breaks at `place`. `message`
    is for humans."""

    schema: str
    place: str
    rule: str
    message: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.schema, self.place, self.rule


@cache
def _components(schema: str) -> dict[str, Any]:
    if schema == OWN:
        return strict_components()
    found: dict[str, Any] = json.loads((_FOLDER / _FILES[schema]).read_text())["components"]
    return found


@cache
def _validator(schema: str, name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": _components(schema)})


@cache
def _events(schema: str) -> dict[str, str]:
    """The names of the event schemas by the event's `type`."""
    names = {}
    for name, found in _components(schema)["schemas"].items():
        said = found.get("properties", {}).get("type", {})
        kind = said.get("const", said.get("enum", [""])[0])
        if (name.endswith("Event") or schema == OWN) and (kind.startswith("response.") or kind == "error"):
            names[kind] = name
    return names


def _type_of(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type", value.get("object"))
    return kind if isinstance(kind, str) else None


def _place(root: Any, path: list[str | int], missing: str = "") -> str:
    place, value, foreign = _type_of(root) or "", root, False
    for step in path:
        value = value[step]
        # A `type` inside a JSON Schema is not the type of one of our objects.
        foreign = foreign or step in ("schema", "parameters")
        kind = None if foreign else _type_of(value)
        if kind is not None:
            place = kind
        else:
            place += "[]" if isinstance(step, int) else f".{step}"
    return f"{place}.{missing}" if missing else place


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The relevant violations. Of a union, only the violations of the branch with the matching `type` are relevant."""
    if not isinstance(error.kind, (ValidationErrorKind.AnyOf, ValidationErrorKind.OneOfNotValid)):
        yield error
        return
    depth = len(error.instance_path)
    # A branch is irrelevant if the value itself has another JSON type or another `type`.
    meant = [
        branch
        for branch in error.kind.context
        if not any(
            (inner.kind.name in ("type", "enum", "const") and len(inner.instance_path) == depth)
            or inner.instance_path[depth:] in (["type"], ["role"])
            for inner in branch
        )
    ]
    if len(meant) != 1:
        meant = [branch for branch in meant if all(inner.kind.name != "anyOf" for inner in branch)][:1]
    if not meant:
        yield error
        return
    for inner in meant[0]:
        yield from _leaves(inner)


def _violations(schema: str, name: str, value: Any) -> Iterator[Violation]:
    for found in _validator(schema, name).iter_errors(value):
        for error in _leaves(found):
            kind = error.kind
            missing = kind.property if isinstance(kind, ValidationErrorKind.Required) else ""
            yield Violation(schema, _place(value, error.instance_path, missing), kind.name, error.message[:200])


def event_violations(event: dict[str, Any]) -> list[Violation]:
    """The violations of a stream event. If a schema does not know the event, the violation's rule is `unknown`."""
    found = []
    for schema in _SCHEMAS:
        name = _events(schema).get(event["type"])
        if name is None:
            found.append(Violation(schema, event["type"], "unknown", "no such event"))
        else:
            found += _violations(schema, name, event)
    return found


def response_violations(response: dict[str, Any]) -> list[Violation]:
    """The violations of a response object."""
    return [found for schema, name in _RESPONSE.items() for found in _violations(schema, name, response)]


def check_error(body: dict[str, Any]) -> None:
    """Assert that an error body has OpenAI's form."""
    assert valid(OPENAI, "ErrorResponse", body) == [], body
    assert set(body) == {"error"} and set(body["error"]) - {"request_id"} == {"message", "type", "param", "code"}


def valid(schema: str, name: str, value: Any) -> list[str]:
    """The violations of a value against one named schema, as texts. Empty if the value is valid."""
    return [f"{found.place}: {found.rule}: {found.message}" for found in _violations(schema, name, value)]
