"""Filters on attributes as SQL over `file_attributes`.

Lives here: what each comparison means in SQL, and how attributes become rows. Not here: the shape a client sends
(`api/`), and the searches that use the condition.

Invariant: keys and values travel as parameters; a comparison looks at values of its own kind only, so that `"5"`, `5`
and `true` never meet.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from antiphon.types.search import Attributes, Filter

_OPERATORS = {"eq": "=", "ne": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_NEGATIONS = frozenset({"ne", "nin"})
_COLUMNS = {"s": ("text", "text"), "n": ("number", "numeric"), "b": ("number", "numeric")}


def filter_condition(filters: Filter | None, store: int, first: int) -> tuple[str, list[Any]]:
    """A condition on `f.id` (a row of `vector_files` as `f`, of this store), and its parameters; they are numbered from
    `first` on."""
    parameters: list[Any] = []
    return ("true" if filters is None else _condition(filters, store, first, parameters)), parameters


def attribute_columns(attributes: Attributes) -> list[tuple[str, bytes, str | None, Decimal | None]]:
    """Key, kind, text and number of each attribute."""
    rows: list[tuple[str, bytes, str | None, Decimal | None]] = []
    for key, value in attributes.items():
        kind, plain = _typed(value)
        text, number = (plain, None) if isinstance(plain, str) else (None, plain)
        rows.append((key, kind.encode(), text, number))
    return rows


def _condition(one: Filter, store: int, first: int, parameters: list[Any]) -> str:
    def given(value: Any) -> str:
        parameters.append(value)
        return f"${first + len(parameters) - 1}"

    if one.kind in ("and", "or"):
        parts = [_condition(part, store, first, parameters) for part in one.parts]
        return "(" + f" {one.kind.upper()} ".join(parts) + ")"
    by_kind: dict[str, list[str | Decimal]] = {}
    for value in one.value if isinstance(one.value, tuple) else (one.value,):
        kind, plain = _typed(value)
        by_kind.setdefault(kind, []).append(plain)
    tests = []
    for kind, values in by_kind.items():
        column, cast = _COLUMNS[kind]
        if one.kind in ("in", "nin"):
            tests.append(f"kind = '{kind}' AND {column} = ANY({given(values)}::{cast}[])")
        else:
            tests.append(f"kind = '{kind}' AND {column} {_OPERATORS[one.kind]} {given(values[0])}::{cast}")
    if not tests:
        # An empty list fits nothing.
        return "true" if one.kind in _NEGATIONS else "false"
    key = given(one.key)
    found = " UNION ALL ".join(
        f"SELECT file FROM file_attributes WHERE store_number = {store:d} AND key = {key}::text AND {test}"
        for test in tests
    )
    return f"f.id {'NOT IN' if one.kind in _NEGATIONS else 'IN'} ({found})"


def _typed(value: str | float | bool) -> tuple[str, str | Decimal]:
    if isinstance(value, bool):
        return "b", Decimal(int(value))
    if isinstance(value, str):
        return "s", value
    return "n", Decimal(value)
