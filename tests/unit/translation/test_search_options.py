"""Filters and ranking options: what is taken becomes what an index is asked, all else names its place."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from antiphon.errors import InvalidRequest
from antiphon.types.search import FILTERS, RANKING, Filter, Ranking, read_filters, read_ranking

_YEAR = {"type": "gte", "key": "year", "value": 2020}


def _nested(depth: int) -> dict[str, Any]:
    """A comparison inside so many compounds."""
    made: dict[str, Any] = _YEAR
    for _ in range(depth):
        made = {"type": "and", "filters": [made]}
    return made


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, None),
        (_YEAR, Filter("gte", "year", 2020)),
        ({"type": "eq", "key": "k" * 64, "value": True}, Filter("eq", "k" * 64, True)),
        ({"type": "lt", "key": "name", "value": "m"}, Filter("lt", "name", "m")),
        ({"type": "in", "key": "lang", "value": ["de", 2, False]}, Filter("in", "lang", ("de", 2, False))),
        ({"type": "nin", "key": "lang", "value": []}, Filter("nin", "lang", ())),
        (
            {"type": "or", "filters": [_YEAR, {"type": "and", "filters": [_YEAR]}]},
            Filter("or", parts=(Filter("gte", "year", 2020), Filter("and", parts=(Filter("gte", "year", 2020),)))),
        ),
    ],
)
def test_a_filter_says_what_it_says(value: Any, read: Filter | None) -> None:
    assert read_filters(value, "filters") == read


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("year", "filters"),
        ({}, "filters.type"),
        ({"type": "like", "key": "a", "value": "b"}, "filters.type"),
        ({"type": ["eq"], "key": "a", "value": "b"}, "filters.type"),
        ({"type": "eq", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "k" * 65, "value": 1}, "filters.key"),
        ({"type": "eq", "key": "a"}, "filters.value"),
        ({"type": "eq", "key": "a", "value": [1]}, "filters.value"),
        ({"type": "gt", "key": "a", "value": True}, "filters.value"),
        ({"type": "in", "key": "a", "value": "de"}, "filters.value"),
        ({"type": "in", "key": "a", "value": [1] * 65}, "filters.value"),
        ({"type": "in", "key": "a", "value": [None]}, "filters.value"),
        ({"type": "and"}, "filters.filters"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [_YEAR] * 65}, "filters.filters"),
        ({"type": "or", "filters": [_YEAR, {"type": "eq"}]}, "filters.filters[1].key"),
    ],
)
def test_what_is_no_filter_names_its_place(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        read_filters(value, "filters")
    assert told.value.param == param


def test_filters_are_nested_eight_deep_at_most() -> None:
    assert read_filters(_nested(8), "filters") is not None
    with pytest.raises(InvalidRequest) as told:
        read_filters(_nested(9), "filters")
    assert "nested" in told.value.message and told.value.param == "filters" + ".filters[0]" * 8


def test_all_comparisons_together_have_a_limit() -> None:
    """Compounds count as well: one of 63 comparisons is 64."""
    part = {"type": "or", "filters": [_YEAR] * 63}
    within = {"type": "and", "filters": [part] * 3 + [{"type": "or", "filters": [_YEAR] * 62}]}
    assert read_filters(within, "filters") is not None
    with pytest.raises(InvalidRequest) as told:
        read_filters({"type": "and", "filters": [part] * 4}, "filters")
    assert told.value.param == "filters" and "256" in told.value.message


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, Ranking()),
        ({}, Ranking()),
        ({"ranker": "auto", "score_threshold": 1}, Ranking(1.0)),
        ({"ranker": None, "score_threshold": None, "hybrid_search": None}, Ranking()),
        ({"hybrid_search": {}}, Ranking(0.0, 0.5, 0.5)),
        ({"hybrid_search": {"embedding_weight": 0, "text_weight": 2}}, Ranking(0.0, 0.0, 2.0)),
        ({"score_threshold": 0.25, "hybrid_search": {"embedding_weight": 3}}, Ranking(0.25, 3.0, 0.5)),
    ],
)
def test_ranking_options_say_what_they_say(value: Any, read: Ranking) -> None:
    assert read_ranking(value, "ranking_options") == read


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "ranking_options"),
        ({"ranker": "best"}, "ranking_options.ranker"),
        ({"score_threshold": 1.01}, "ranking_options.score_threshold"),
        ({"score_threshold": -0.1}, "ranking_options.score_threshold"),
        ({"score_threshold": float("nan")}, "ranking_options.score_threshold"),
        ({"score_threshold": True}, "ranking_options.score_threshold"),
        ({"score_threshold": "0.5"}, "ranking_options.score_threshold"),
        ({"hybrid_search": 1}, "ranking_options.hybrid_search"),
        ({"hybrid_search": {"text_weight": "1"}}, "ranking_options.hybrid_search.text_weight"),
        ({"hybrid_search": {"embedding_weight": -1}}, "ranking_options.hybrid_search.embedding_weight"),
        ({"hybrid_search": {"embedding_weight": 0, "text_weight": 0.0}}, "ranking_options.hybrid_search"),
    ],
)
def test_what_is_no_ranking_names_its_place(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        read_ranking(value, "ranking_options")
    assert told.value.param == param


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        *(
            ({"type": kind, "key": "a", "value": 5}, True)
            for kind in ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
        ),
        *(({"type": kind, "filters": [{"type": "eq"}]}, True) for kind in ("and", "or")),
        (None, True),
        ({"type": "eq", "key": "a", "value": "x"}, True),
        ({"type": "eq", "key": "a", "value": False}, True),
        ({"type": "in", "key": "a", "value": ["x", 5, True]}, True),
        ({"type": "in", "key": "a", "value": ["x"] * 64}, True),
        ({"type": "in", "key": "a", "value": ["x"] * 65}, False),
        ({"type": "in", "key": "a", "value": [[]]}, False),
        ({"type": "eq", "key": "k" * 64, "value": 5}, True),
        ({"type": "eq", "key": "k" * 65, "value": 5}, False),
        ({"type": "eq", "key": "", "value": 5}, False),
        ({"type": "eq", "key": 5, "value": 5}, False),
        ({"type": "eq", "key": "a", "value": {}}, False),
        ({"type": "eq", "key": "a"}, False),
        ({"type": "eq", "value": 5}, False),
        ({"key": "a", "value": 5}, False),
        ({"type": "like", "key": "a", "value": 5}, False),
        ({"type": "and", "filters": []}, False),
        ({"type": "and", "filters": [5]}, False),
        ({"type": "and", "filters": {}}, False),
        ({"type": "and", "filters": [{}] * 64}, True),
        ({"type": "and", "filters": [{}] * 65}, False),
        ({"filters": [{}]}, False),
        ({"type": "and"}, False),
        ([], False),
    ],
    ids=str,
)
def test_the_documents_filter_is_the_one_that_is_read(value: Any, valid: bool) -> None:
    assert Draft202012Validator(FILTERS).is_valid(value) is valid


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (None, True),
        ({}, True),
        *(({"ranker": ranker}, True) for ranker in ("none", "auto", "default-2024-11-15", "default_2024_08_21", None)),
        ({"ranker": "best"}, False),
        *(({"score_threshold": number}, True) for number in (0, 0.5, 1, None)),
        *(({"score_threshold": number}, False) for number in (-0.1, 1.1, "1")),
        ({"hybrid_search": None}, True),
        ({"hybrid_search": {"embedding_weight": 0, "text_weight": 2.5}}, True),
        ({"hybrid_search": {"embedding_weight": None, "text_weight": None}}, True),
        ({"hybrid_search": {"embedding_weight": -1}}, False),
        ({"hybrid_search": {"text_weight": -1}}, False),
        ({"hybrid_search": {"text_weight": "1"}}, False),
        ({"hybrid_search": []}, False),
        ([], False),
    ],
    ids=str,
)
def test_the_documents_ranking_is_the_one_that_is_read(value: Any, valid: bool) -> None:
    assert Draft202012Validator(RANKING).is_valid(value) is valid
