"""Reading what a search is asked: `filters`, `ranking_options`, `attributes`.

Lives here: their shapes and limits, for the endpoints and for the tool `file_search` alike. Not here: what they mean
in a database.

Invariant: every error names the field it is about.
"""

from __future__ import annotations

import math
from typing import Any, cast

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.types.json import given
from antiphon.types.search import Attributes, Filter, Ranking

__all__ = ["MOST_ATTRIBUTES", "read_attributes", "read_filter", "read_ranking"]

MOST_ATTRIBUTES = 16
_MOST_KEY, _MOST_VALUE = 64, 512
_MOST_NODES, _MOST_DEPTH, _MOST_LIST = 200, 16, 1_000

_COMPARISONS = frozenset({"eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"})
_COMPOUNDS = frozenset({"and", "or"})
_RANKERS = frozenset({"auto", "none", "default-2024-08-21", "default-2024-11-15", "default_2024_08_21"})


def read_filter(name: str, value: Raw) -> Filter | None:
    """A filter, or None when there is none. Raises `InvalidRequest`."""
    if not given(value):
        return None
    budget = [_MOST_NODES]
    return _filter(name, _decode(name, value), budget, _MOST_DEPTH)


def read_ranking(name: str, value: Raw) -> Ranking:
    """How to rank. Rankers are accepted by their names and change nothing: there is one. Raises `InvalidRequest`."""
    if not given(value):
        return Ranking()
    options = _object(name, _decode(name, value))
    ranker = options.get("ranker")
    if ranker is not None and ranker not in _RANKERS:
        raise _invalid(f"{name}.ranker", f"expected one of {', '.join(sorted(_RANKERS))}")
    threshold = _number(f"{name}.score_threshold", options.get("score_threshold"), 0.0)
    if not 0 <= threshold <= 1:
        raise _invalid(f"{name}.score_threshold", "expected a number between 0 and 1")
    hybrid = options.get("hybrid_search")
    if hybrid is None:
        return Ranking(threshold=threshold)
    where = f"{name}.hybrid_search"
    weights = []
    for side in ("embedding_weight", "text_weight"):
        weight = _number(f"{where}.{side}", _object(where, hybrid).get(side), 0.0)
        if weight < 0:
            raise _invalid(f"{where}.{side}", "expected a number of at least 0")
        weights.append(weight)
    if not any(weights):
        raise _invalid(where, "at least one of the weights must be greater than 0")
    return Ranking(threshold, *weights)


def read_attributes(name: str, value: Raw) -> Attributes:
    """A file's attributes; absent or null is none. Raises `InvalidRequest`."""
    if not given(value):
        return {}
    attributes = _object(name, _decode(name, value))
    if len(attributes) > MOST_ATTRIBUTES:
        raise _invalid(name, f"it may have at most {MOST_ATTRIBUTES} pairs", "object_above_max_properties")
    for key, one in attributes.items():
        if len(key) > _MOST_KEY:
            raise _invalid(name, f"keys may have at most {_MOST_KEY} characters", "string_above_max_length")
        if isinstance(one, str) and len(one) > _MOST_VALUE:
            where = f"{name}.{key}"
            raise _invalid(where, f"values may have at most {_MOST_VALUE} characters", "string_above_max_length")
        _scalar(f"{name}.{key}", one)
    return attributes


def _filter(name: str, value: Any, budget: list[int], depth: int) -> Filter:
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise _invalid(name, f"a filter may have at most {_MOST_NODES} parts, {_MOST_DEPTH} deep")
    node = _object(name, value)
    kind = node.get("type")
    if kind in _COMPOUNDS:
        parts = node.get("filters")
        if not isinstance(parts, list) or not parts:
            raise _invalid(f"{name}.filters", "expected a list of filters that is not empty")
        read = tuple([_filter(f"{name}.filters[{at}]", part, budget, depth - 1) for at, part in enumerate(parts)])
        return Filter(cast(Any, kind), parts=read)
    if kind not in _COMPARISONS:
        raise _invalid(f"{name}.type", f"expected one of {', '.join(sorted(_COMPARISONS | _COMPOUNDS))}")
    key = node.get("key")
    if not isinstance(key, str) or not key:
        raise _invalid(f"{name}.key", "expected a string")
    where = f"{name}.value"
    if "value" not in node:
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    given_value = node["value"]
    if kind in ("in", "nin"):
        if not isinstance(given_value, list) or len(given_value) > _MOST_LIST:
            raise _invalid(where, f"expected a list of at most {_MOST_LIST} values")
        values = tuple([_scalar(f"{where}[{at}]", one) for at, one in enumerate(given_value)])
        return Filter(cast(Any, kind), key, values)
    scalar = _scalar(where, given_value)
    if isinstance(scalar, bool) and kind not in ("eq", "ne"):
        raise _invalid(where, f"'{kind}' compares numbers or strings")
    return Filter(cast(Any, kind), key, scalar)


def _scalar(name: str, value: Any) -> str | float | bool:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return float(value)
    if not isinstance(value, (str, bool, int, float)):
        raise _invalid(name, "expected a string, a number or a boolean")
    return value


def _number(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _invalid(name, "expected a number", "invalid_type")
    return float(value)


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(name, "expected an object", "invalid_type")
    return value


def _decode(name: str, value: Raw) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise _invalid(name, "it cannot be read") from None


def _invalid(name: str, problem: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}': {problem}.", param=name, code=code)
