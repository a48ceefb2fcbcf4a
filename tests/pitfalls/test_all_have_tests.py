"""Every pitfall of the table has a test named after its number, or a reason to have none."""

from __future__ import annotations

import re
from pathlib import Path

from tests.pitfalls.table import NOT_OURS, PITFALLS

_TEST = re.compile(r"^(?:async )?def test_pitfall_(\d+)_", re.MULTILINE)


def _tested() -> set[int]:
    return {
        int(number) for path in Path(__file__).parent.glob("test_*.py") for number in _TEST.findall(path.read_text())
    }


def test_the_table_is_the_whole_list() -> None:
    assert list(PITFALLS) == [*range(1, 95), *range(110, 116)]


def test_every_pitfall_has_a_test_or_a_reason() -> None:
    assert set(PITFALLS) - _tested() - set(NOT_OURS) == set()


def test_no_number_is_tested_and_not_ours_and_none_is_unknown() -> None:
    assert _tested() & set(NOT_OURS) == set()
    assert _tested() <= set(PITFALLS) and set(NOT_OURS) <= set(PITFALLS)
