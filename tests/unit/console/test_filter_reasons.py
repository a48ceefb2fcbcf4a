"""Why a filter leaves a file out: the first condition that fails, in words."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.console.views.store_search import condition, why_left_out
from antiphon.types.search import Filter, read_filters

FILE: dict[str, str | float | bool] = {"year": 2024, "team": "research", "public": True}


def read(value: dict[str, Any]) -> Filter:
    found = read_filters(value, "filter")
    assert found is not None
    return found


def compare(kind: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


def both(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "filters": list(parts)}


MATCHES = [
    compare("eq", "year", 2024),
    compare("eq", "year", 2024.0),
    compare("ne", "year", 2023),
    compare("ne", "absent", 1),
    compare("nin", "absent", [1]),
    compare("nin", "year", []),
    compare("ne", "year", "2024"),
    compare("gte", "year", 2024),
    compare("lt", "team", "s"),
    compare("in", "year", ["2024", 2024]),
    compare("eq", "public", True),
    both("and", compare("eq", "year", 2024), compare("eq", "team", "research")),
    both("or", compare("eq", "year", 1999), compare("eq", "team", "research")),
]


@pytest.mark.parametrize("value", MATCHES)
def test_a_matching_file_has_no_reason(value: dict[str, Any]) -> None:
    assert why_left_out(read(value), FILE) == ""


FAILS = [
    (compare("eq", "year", 2023), "year = 2023 fails: 'year' is 2024"),
    (compare("gt", "year", 2024), "year > 2024 fails: 'year' is 2024"),
    (compare("ne", "team", "research"), 'team ≠ "research" fails: \'team\' is "research"'),
    (compare("eq", "year", "2024"), "year = \"2024\" fails: 'year' is a number, 2024, not text"),
    (compare("eq", "public", 1), "public = 1 fails: 'public' is a boolean, true, not a number"),
    (compare("eq", "absent", 1), "absent = 1 fails: the file has no attribute 'absent'"),
    (compare("in", "year", []), "year in [] fails: 'year' is 2024"),
    (compare("nin", "year", [1, 2024]), "year not in [1, 2024] fails: 'year' is 2024"),
    (both("and", compare("eq", "year", 2024), compare("eq", "team", "x")), 'team = "x" fails: \'team\' is "research"'),
    (
        both("or", compare("eq", "year", 1), compare("eq", "team", "x")),
        "the file matches none of the 2 alternatives. The first alternative: year = 1 fails: 'year' is 2024",
    ),
]


@pytest.mark.parametrize(("value", "reason"), FAILS)
def test_the_reason_names_the_first_condition_that_fails(value: dict[str, Any], reason: str) -> None:
    assert why_left_out(read(value), FILE) == reason


def test_a_filter_as_text() -> None:
    value = both("and", compare("gte", "year", 2020), both("or", compare("eq", "a", True), compare("nin", "b", ["x"])))
    assert condition(read(value)) == '(year ≥ 2020 and (a = true or b not in ["x"]))'
    assert len(condition(read(compare("eq", "a", "x" * 500)))) < 250
