"""Describes everything that a JSON schema allows as a set of positions, to compare documents of different origin.

A position is a path from the root: `.tools[]<function>.name`. `<function>` is the `type` of one kind of object, and
`=low` is one of the permitted values. Unions, references and `allOf` leave no trace. So two documents with the same
meaning have the same positions.

Lives here: positions, and the open ones, whose content the schema does not describe. Not here: the comparison
(`api_differences.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STEP = re.compile(r"\.[^.\[<=]+|\[\]|<[^>]*>|=.*")
_DEEPEST = 9


@dataclass
class Shape:
    """The positions of a schema. `places` has all positions. The schema does not describe the content of a position in
    `open`."""

    places: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)

    def is_open(self, place: str) -> bool:
        """Whether the position is inside an open position."""
        return any(above in self.open for above in above_of(place))


def above_of(place: str) -> list[str]:
    """The positions that contain this one, from the root inwards."""
    first = _STEP.search(place)
    start = place[: first.start()] if first is not None else place
    steps = _STEP.findall(place)
    return [start + "".join(steps[:number]) for number in range(len(steps))]


def shape_of(schema: Mapping[str, Any], whole: Mapping[str, Any], *, without: frozenset[str] = frozenset()) -> Shape:
    """The shape of a schema of the document `whole`. Skips the content of members named in `without`."""
    shape = Shape()
    _walk(schema, "", whole, shape, without, ())
    return shape


def _walk(
    schema: Any,
    place: str,
    whole: Mapping[str, Any],
    shape: Shape,
    without: frozenset[str],
    above: tuple[str, ...],
) -> None:
    if not isinstance(schema, dict) or len(above_of(place)) > _DEEPEST:
        shape.open.add(place)
        return
    if "$ref" in schema:
        if schema["$ref"] in above:
            shape.open.add(place)
            return
        above = (*above, schema["$ref"])
        schema = _resolve(schema["$ref"], whole)
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    told = any(isinstance(one, dict) and one.keys() & {"properties", "$ref"} for one in branches)
    for branch in branches:
        # A branch for "any other object" next to described branches adds no position.
        if not (
            told and isinstance(branch, dict) and not branch.keys() - {"type", "description"} and _is_object(branch)
        ):
            _walk(branch, place, whole, shape, without, above)
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    shape.places |= {f"{place}={word}" for word in words if isinstance(word, str)}
    if "items" in schema:
        shape.places.add(f"{place}[]")
        _walk(schema["items"], f"{place}[]", whole, shape, without, above)
    members = schema.get("properties")
    if members:
        for kind in _kinds(members.get("type"), whole) or [""]:
            here = f"{place}<{kind}>" if kind else place
            shape.places.add(here)
            if schema.get("additionalProperties") is True:
                shape.open.add(here)
            for name, inner in members.items():
                shape.places.add(f"{here}.{name}")
                if name in without:
                    shape.open.add(f"{here}.{name}")
                elif not (name == "type" and kind):
                    _walk(inner, f"{here}.{name}", whole, shape, without, above)
    if not branches and not words and not members and (_is_object(schema) or not schema.keys() - {"description"}):
        shape.open.add(place)


def _is_object(schema: Mapping[str, Any]) -> bool:
    return "object" in schema.get("type", [])


def _kinds(schema: Any, whole: Mapping[str, Any]) -> list[str]:
    """The values that identify the kind of an object, usually one."""
    if isinstance(schema, dict) and "$ref" in schema:
        schema = _resolve(schema["$ref"], whole)
    if not isinstance(schema, dict):
        return []
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [word for word in words if isinstance(word, str)]


def _resolve(reference: str, whole: Mapping[str, Any]) -> Any:
    value: Any = whole
    for step in reference.removeprefix("#/").split("/"):
        value = value[step]
    return value
