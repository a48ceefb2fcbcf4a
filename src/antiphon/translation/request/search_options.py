"""Reads the filters and ranking options of a search.

Lives here: reading filters and options from decoded JSON. Not here: applying filters and options to an index
(`stores/`), and the search itself.

Source: OpenAI's ComparisonFilter, CompoundFilter and the two forms of ranking options.

Invariant: a search accepts every value that this module returns. Any other input raises an `InvalidRequest` that names
the path.
"""

from __future__ import annotations

from typing import Final

from antiphon.errors import invalid_type, invalid_value
from antiphon.types.search import Filter, Ranking

_COMPARISONS: Final = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
_COMPOUNDS: Final = ("and", "or")
_LISTS: Final = ("in", "nin")
_ORDERED: Final = ("gt", "gte", "lt", "lte")
_MAX_DEPTH: Final = 8
_MAX_PARTS: Final = 64
_MAX_IN_ALL: Final = 256
_RANKERS: Final = ("none", "auto", "default-2024-11-15", "default_2024_08_21")

_NULL: Final = {"type": "null"}
_SCALARS: Final = ["string", "number", "boolean"]
FILTERS: Final[dict[str, object]] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "type": {"enum": [*_COMPARISONS]},
                "key": {"type": "string", "minLength": 1, "maxLength": 64},
                "value": {
                    "anyOf": [
                        {"type": _SCALARS},
                        {"type": "array", "items": {"type": _SCALARS}, "maxItems": _MAX_PARTS},
                    ]
                },
            },
            "required": ["type", "key", "value"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"enum": [*_COMPOUNDS]},
                "filters": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": _MAX_PARTS},
            },
            "required": ["type", "filters"],
        },
        _NULL,
    ]
}
"""The JSON schema of a filter. The entries in `filters` are filters too."""

_WEIGHT: Final = {"type": ["number", "null"], "minimum": 0}
RANKING: Final[dict[str, object]] = {
    "type": ["object", "null"],
    "properties": {
        "ranker": {"enum": [*_RANKERS, None]},
        "score_threshold": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "hybrid_search": {
            "type": ["object", "null"],
            "properties": {"embedding_weight": _WEIGHT, "text_weight": _WEIGHT},
        },
    },
}
"""The JSON schema of ranking options."""


def read_filters(value: object, where: str) -> Filter | None:
    """Read a filter. Returns None when the value is null. Raises `InvalidRequest`."""
    found = None if value is None else _filter(value, where, _MAX_DEPTH)
    if found is not None and _size(found) > _MAX_IN_ALL:
        raise invalid_value(where, f"use at most {_MAX_IN_ALL} comparisons in all")
    return found


def read_ranking(value: object, where: str) -> Ranking:
    """Read ranking options. Returns the defaults when the value is null. Raises `InvalidRequest`."""
    if value is None:
        return Ranking()
    options = _object(value, where)
    ranker = options.get("ranker")
    if ranker is not None and ranker not in _RANKERS:
        raise invalid_value(f"{where}.ranker", f"choose one of {', '.join(_RANKERS)}")
    threshold = _number(options.get("score_threshold"), f"{where}.score_threshold", 0.0)
    if threshold > 1:
        raise invalid_value(f"{where}.score_threshold", "use a number from 0 to 1")
    hybrid = options.get("hybrid_search")
    if hybrid is None:
        return Ranking(threshold)
    place = f"{where}.hybrid_search"
    weights = _object(hybrid, place)
    embedding = _number(weights.get("embedding_weight"), f"{place}.embedding_weight", 0.5)
    text = _number(weights.get("text_weight"), f"{place}.text_weight", 0.5)
    if not embedding and not text:
        raise invalid_value(place, "one of the weights must be more than 0")
    return Ranking(threshold, embedding, text)


def _filter(value: object, where: str, depth: int) -> Filter:
    given = _object(value, where)
    kind: object = given.get("type")
    if kind in _COMPOUNDS:
        parts = given.get("filters")
        if not isinstance(parts, list) or not 1 <= len(parts) <= _MAX_PARTS:
            raise invalid_value(f"{where}.filters", f"use a list of 1 to {_MAX_PARTS} filters")
        if not depth:
            raise invalid_value(where, f"filters may be nested {_MAX_DEPTH} deep at most")
        return Filter(
            kind,
            parts=tuple(_filter(part, f"{where}.filters[{number}]", depth - 1) for number, part in enumerate(parts)),
        )
    if kind not in _COMPARISONS:
        raise invalid_value(f"{where}.type", f"choose one of {', '.join((*_COMPARISONS, *_COMPOUNDS))}")
    key = given.get("key")
    if not isinstance(key, str) or not 0 < len(key) <= 64:
        raise invalid_value(f"{where}.key", "use the name of an attribute, 1 to 64 characters")
    compared = given.get("value")
    if kind in _LISTS:
        if not isinstance(compared, list) or len(compared) > _MAX_PARTS:
            raise invalid_value(f"{where}.value", f"'{kind}' takes a list of at most {_MAX_PARTS} values")
        return Filter(kind, key, tuple(_scalar(each, f"{where}.value") for each in compared))
    scalar = _scalar(compared, f"{where}.value")
    if kind in _ORDERED and isinstance(scalar, bool):
        raise invalid_value(f"{where}.value", f"'{kind}' takes a number or a string")
    return Filter(kind, key, scalar)


def _size(one: Filter) -> int:
    return 1 + sum(map(_size, one.parts))


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise invalid_type(where, "expected an object")
    return value


def _scalar(value: object, where: str) -> str | float | bool:
    if not isinstance(value, str | int | float):
        raise invalid_value(where, "use a string, a number or a boolean")
    return value


def _number(value: object, where: str, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise invalid_value(where, "use a number that is not negative")
    return float(value)
