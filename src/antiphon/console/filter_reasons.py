"""Explains why an attribute filter leaves a file out of a search.

Lives here: the evaluation of a filter on the attributes of one file, with the first condition that fails. Not here: the
filter of real searches, which the databases evaluate (`stores/attributes.py`).

Invariant: `why_left_out` agrees with the databases. A comparison matches only values of the same type. A file that
lacks the attribute matches only `ne` and `nin`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Any, Final

from antiphon.types.search import Attributes, Filter

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": eq,
    "ne": eq,
    "gt": gt,
    "gte": ge,
    "lt": lt,
    "lte": le,
    "in": eq,
    "nin": eq,
}
_SIGNS: Final = {"eq": "=", "ne": "≠", "gt": ">", "gte": "≥", "lt": "<", "lte": "≤", "in": "in", "nin": "not in"}
_NEGATIONS: Final = frozenset({"ne", "nin"})
_TYPES: Final = {"s": "text", "n": "a number", "b": "a boolean"}


def why_left_out(one: Filter, attributes: Attributes) -> str:
    """The first condition of the filter that these attributes fail, with the reason. Empty if they match."""
    if one.kind == "and":
        return next((reason for part in one.parts if (reason := why_left_out(part, attributes))), "")
    if one.kind == "or":
        reasons = [why_left_out(part, attributes) for part in one.parts]
        if not all(reasons):
            return ""
        return (
            reasons[0] if len(reasons) == 1 else f"none of {len(reasons)} alternatives holds, the first: {reasons[0]}"
        )
    return _failure(one, attributes)


def condition(one: Filter) -> str:
    """The filter as a short text."""
    if one.kind in ("and", "or"):
        return "(" + f" {one.kind} ".join(map(condition, one.parts)) + ")"
    return f"{one.key} {_SIGNS[one.kind]} {_shown(one.value)}"


def _failure(one: Filter, attributes: Attributes) -> str:
    wanted = one.value if isinstance(one.value, tuple) else (one.value,)
    negated = one.kind in _NEGATIONS
    if one.key not in attributes:
        return "" if negated else f"{condition(one)} fails: the file has no attribute '{one.key}'"
    found = attributes[one.key]
    same = [value for value in wanted if _kind(value) == _kind(found)]
    holds = any(_COMPARE[one.kind](found, value) for value in same)
    if holds != negated:
        return ""
    if not negated and wanted and not same:
        types = " or ".join(dict.fromkeys(_TYPES[_kind(value)] for value in wanted))
        return f"{condition(one)} fails: '{one.key}' is {_TYPES[_kind(found)]}, {_shown(found)}, not {types}"
    return f"{condition(one)} fails: '{one.key}' is {_shown(found)}"


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "s"
    return "b" if isinstance(value, bool) else "n"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"
