"""The words that a text is indexed under, and those that a query looks for."""

from __future__ import annotations

import pytest

from antiphon.types.search import MAX_TERMS, index_text, query_terms


@pytest.mark.parametrize(
    ("text", "indexed"),
    [
        ("plain words, 1 2", "plain words, 1 2"),
        ("検索", " 検  索 "),
        ("the 検 word", "the  検  word"),
    ],
)
def test_letters_of_scripts_without_spaces_are_indexed_one_by_one(text: str, indexed: str) -> None:
    assert index_text(text) == indexed


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("Red GREEN", ["red", "green"]),
        ("red red green red", ["red", "green"]),
        ("the price of the bread", ["price", "bread"]),
        ("to be or not to be", ["to", "be", "or", "not"]),
        ('bread" OR (price)* -x', ["bread", "price", "x"]),
        ("検索機能", ["検 索", "索 機", "機 能"]),
        ("検", ["検"]),
        ("v2検索x", ["v2", "検 索", "x"]),
        ("検索x機能", ["検 索", "x", "機 能"]),
        ("x検", ["x", "検"]),
        ("", []),
    ],
)
def test_a_query_is_its_words_once_each_without_stop_words(query: str, terms: list[str]) -> None:
    assert query_terms(query) == terms


def test_a_long_query_is_cut_at_its_first_terms() -> None:
    words = [f"w{number}" for number in range(MAX_TERMS + 1)]
    assert query_terms(" ".join(words)) == words[:64]
