"""Parses the filters and the ranking options of a search, and splits texts and queries into words.

The package `stores` searches the index with these filters, options and words.

Some scripts, such as Chinese and Thai, have no spaces between words. The index contains such a text as single letters.
In a query, each pair of neighbouring letters becomes a term. For example, the query "検索機能" becomes the terms 検索,
索機 and 機能.

Source: the schemas `ComparisonFilter` and `CompoundFilter` and the two forms of ranking options in OpenAI's API
specification.

Invariants: a search accepts every filter and option that this module returns. For an invalid filter or option, the
module raises an `InvalidRequest` that names the path of the wrong field. Each term of a query is a word. Operators of
the database's search syntax never become part of a term.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from antiphon.errors import invalid_type, invalid_value

Attributes = Mapping[str, str | float | bool]
"""A file's attributes in a vector store."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the attributes of a file.

    A comparison has `key` and `value` (a tuple for `in` and `nin`). A compound filter (`and`, `or`) has `parts`. If a
    file has no such attribute, or the attribute has a different type, the file matches only `ne` and `nin`.
    """

    kind: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"]
    key: str = ""
    value: str | float | bool | tuple[str | float | bool, ...] = ""
    parts: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking options of a search. The search returns no hit with a score below `threshold` (0 to 1).

    A hybrid search combines an embedding score and a text score with these weights. The weights have an effect only if
    the vector store has embeddings. If a weight is 0, the search does not compute the score of that kind.
    """

    threshold: float = 0.0
    embedding_weight: float = 0.5
    text_weight: float = 0.5


DEFAULT_RANKING: Final = Ranking()


MAX_TERMS: Final = 64
"""The maximum number of terms in a query. `query_terms` drops further terms, because each term costs time."""

# The letters of Thai, Lao, Myanmar and Khmer, kana, and CJK ideographs with their extensions and compatibility forms.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_HAS_UNSPACED: Final = re.compile(f"[{_UNSPACED}]")
_RUN: Final = re.compile(f"[{_UNSPACED}]+")
_WORD: Final = re.compile(r"\w+")

_STOP_WORDS: Final = """
a about after all also an and any are as at be because been being but by can could did do does doing for from had has
have having he her here hers him his how i if in into is it its just me more most my no nor not of off on once only or
other our ours out over own same she should so some such than that the their theirs them then there these they this
those through to too under until up us very was we were what when where which while who whom why will with would you
your yours
"""
STOP_WORDS: Final = frozenset(_STOP_WORDS.split())


def index_text(text: str) -> str:
    """Return the text for the index, with a space around each letter of a script that has no spaces between words."""
    if not _HAS_UNSPACED.search(text):
        return text
    return _HAS_UNSPACED.sub(lambda letter: f" {letter[0]} ", text)


def query_terms(query: str) -> list[str]:
    """Return the terms of a query, without duplicates and stop words. In a script that has no spaces between words, a
    term is a pair of letters with a space between them.

    If the query has only stop words, return the stop words.
    """
    terms: dict[str, None] = {}
    for word in _WORD.findall(query.lower()):
        for term in _split(word):
            terms[term] = None
    kept = [term for term in terms if term not in STOP_WORDS] or list(terms)
    return kept[:MAX_TERMS]


def _split(word: str) -> list[str]:
    if not _HAS_UNSPACED.search(word):
        return [word]
    parts = []
    at = 0
    for run in _RUN.finditer(word):
        if run.start() > at:
            parts.append(word[at : run.start()])
        letters = run[0]
        parts += [f"{a} {b}" for a, b in pairwise(letters)] or [letters]
        at = run.end()
    if at < len(word):
        parts.append(word[at:])
    return parts


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
"""The JSON schema of a filter. A compound filter contains further filters in `filters`."""

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
    """Parse the filter of a search from decoded JSON. Return None if `value` is None. Raises `InvalidRequest`."""
    found = None if value is None else _filter(value, where, _MAX_DEPTH)
    if found is not None and _size(found) > _MAX_IN_ALL:
        raise invalid_value(where, f"use at most {_MAX_IN_ALL} comparisons and compound filters in the whole filter")
    return found


def read_ranking(value: object, where: str) -> Ranking:
    """Parse the ranking options of a search from decoded JSON. Return the default options if `value` is None. Raises
    `InvalidRequest`."""
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
            raise invalid_value(where, f"filters may be nested at most {_MAX_DEPTH} levels deep")
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
            raise invalid_value(f"{where}.value", f"'{kind}' needs a list of at most {_MAX_PARTS} values")
        return Filter(kind, key, tuple(_scalar(each, f"{where}.value") for each in compared))
    scalar = _scalar(compared, f"{where}.value")
    if kind in _ORDERED and isinstance(scalar, bool):
        raise invalid_value(f"{where}.value", f"'{kind}' needs a number or a string")
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
