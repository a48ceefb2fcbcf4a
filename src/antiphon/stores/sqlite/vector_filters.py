"""Filters on attributes as SQL over `file_attributes`.

Lives here: what each comparison means in SQL, and how attributes become rows. Not here: the shape a client sends
(`api/`), and the search that uses the condition.

Invariant: keys and values travel as parameters; a comparison looks at values of its own kind only, so that `"5"`, `5`
and `true` never meet.
"""

from __future__ import annotations

import json
from typing import Any

from antiphon.types.search import Attributes, Filter

_OPERATORS = {"eq": "=", "ne": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_BIG = 1 << 63
_NEGATIONS = frozenset({"ne", "nin"})


def filter_condition(filters: Filter | None) -> tuple[str, dict[str, Any]]:
    """A condition on `f.no` (a row of `vector_files` as `f`, whose store is `:store`), and its parameters."""
    if filters is None:
        return "1", {}
    parameters: dict[str, Any] = {}
    return _condition(filters, parameters), parameters


def attribute_rows(attributes: Attributes) -> list[tuple[str, str, str | float]]:
    """Key, kind and value of each attribute."""
    return [(key, *_typed(value)) for key, value in attributes.items()]


def _condition(one: Filter, parameters: dict[str, Any]) -> str:
    if one.kind in ("and", "or"):
        parts = [_condition(part, parameters) for part in one.parts]
        return "(" + f" {one.kind.upper()} ".join(parts) + ")"
    number = len(parameters)
    key, tests = f"key{number}", []
    parameters[key] = one.key
    values = one.value if isinstance(one.value, tuple) else (one.value,)
    by_kind: dict[str, list[str | float]] = {}
    for value in values:
        kind, plain = _typed(value)
        by_kind.setdefault(kind, []).append(plain)
    for kind, plain_values in by_kind.items():
        name = f"{key}{kind}"
        if one.kind in ("in", "nin"):
            parameters[name] = json.dumps(plain_values)
            tests.append(f"kind = '{kind}' AND value IN (SELECT value FROM json_each(:{name}))")
        else:
            parameters[name] = plain_values[0]
            tests.append(f"kind = '{kind}' AND value {_OPERATORS[one.kind]} :{name}")
    found = " UNION ALL ".join(
        f"SELECT file_no FROM file_attributes WHERE store_no = :store AND key = :{key} AND {test}" for test in tests
    )
    # An empty list fits nothing.
    found = found or "SELECT NULL WHERE 0"
    return f"f.no {'NOT IN' if one.kind in _NEGATIONS else 'IN'} ({found})"


def _typed(value: str | float | bool) -> tuple[str, str | float]:
    if isinstance(value, bool):
        return "b", int(value)
    if isinstance(value, str):
        return "s", value
    # SQLite's integers have 64 bits.
    return "n", value if isinstance(value, float) or -_BIG <= value < _BIG else float(value)
