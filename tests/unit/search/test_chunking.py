"""Where texts are cut, and how tokens are estimated."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.search.chunking import count_tokens, cut, fitting
from tests.support.effort import examples

WORDS = st.sampled_from(
    [
        "one",
        "two.",
        "three!",
        "\n",
        "\n\n",
        " ",
        "  ",
        "x" * 40,
        "Ünïcödé",
        "検索機能。",
        "a.b",
        '"quoted."',
        "…",
        "🎉🎉",
        "\t",
    ]
)
TEXTS = st.lists(WORDS, max_size=120).map(" ".join) | st.text(max_size=400)


@settings(deadline=None, max_examples=examples(150))
@given(text=TEXTS, size=st.integers(5, 60))
def test_without_overlap_the_chunks_are_the_text(text: str, size: int) -> None:
    chunks = list(cut(text, size, 0))
    assert all(0 <= count <= size and chunk == chunk.strip() != "" for chunk, count in chunks)
    assert "".join("".join(chunk for chunk, _ in chunks).split()) == "".join(text.split())


@settings(deadline=None, max_examples=examples(150))
@given(
    ends=st.lists(st.sampled_from([" ", ". ", "\n", "\n\n", "! ", " " + "long" * 30 + " "]), max_size=150),
    size=st.integers(10, 60),
    share=st.floats(0, 0.5),
)
def test_with_overlap_every_word_comes_in_its_order(ends: list[str], size: int, share: float) -> None:
    text = "".join(f"w{number}{end}" for number, end in enumerate(ends))
    chunks = list(cut(text, size, int(size * share)))
    assert all(count <= size for _, count in chunks)
    seen: list[int] = []
    for chunk, _ in chunks:
        numbers = [int(word) for word in re.findall(r"w(\d+)", chunk)]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True
        if numbers:
            assert not seen or numbers[0] > seen[0], "every chunk begins behind the one before it"
            seen = numbers
    found = {int(word) for chunk, _ in chunks for word in re.findall(r"w(\d+)", chunk)}
    assert found == set(range(len(ends)))


NUMBERED = " ".join(f"Sentence {number} is about the {number}th thing." for number in range(400))


def test_neighbours_share_at_most_the_overlap() -> None:
    chunks = [chunk for chunk, _ in cut(NUMBERED, 200, 80)]
    assert len(chunks) > 5
    for one, two in pairwise(chunks):
        first = two[: two.index(".") + 1]
        shared = one[one.rindex(first) :]
        assert 30 < count_tokens(shared) <= 80
    assert [chunk for chunk, _ in cut(NUMBERED, 200, 0)][1].startswith("Sentence")


def test_chunks_end_with_sentences_and_rather_with_paragraphs() -> None:
    paragraph = "Here is a sentence of some words. " * 5
    text = "\n\n".join(f"{number}. {paragraph}" for number in range(20))
    chunks = [chunk for chunk, _ in cut(text, 100, 0)]
    assert all(chunk.endswith(".") for chunk in chunks)
    assert all(chunk[0].isdigit() for chunk in chunks)


def test_overlap_never_keeps_a_chunk_from_what_is_new() -> None:
    """A sentence of nearly a whole chunk comes after small ones."""
    long = "word " * 95
    text = "Small one. " * 30 + long + ". " + "Small two. " * 30
    chunks = list(cut(text, 100, 50))
    assert all(count <= 100 for _, count in chunks)
    assert any(long.strip() in chunk for chunk, _ in chunks)


@pytest.mark.parametrize("letters", ["x", "検", "🎉", "\u0f00"])
def test_a_long_text_without_a_space(letters: str) -> None:
    text = letters * 150_000
    chunks = list(cut(text, 4_096, 2_048))
    assert all(0 < count <= 4_096 for _, count in chunks)
    assert sum(len(chunk) for chunk, _ in chunks) >= len(text)


def test_a_line_without_end_is_cut_between_words() -> None:
    text = "word" + " word" * 5_000
    chunks = list(cut(text, 100, 20))
    assert len(chunks) > 40
    assert all(set(chunk.split()) == {"word"} for chunk, _ in chunks)


@given(text=st.text(min_size=1, max_size=200), limit=st.integers(1, 50))
@settings(deadline=None, max_examples=examples(150))
def test_what_fits_fits(text: str, limit: int) -> None:
    characters = fitting(text, limit)
    assert 1 <= characters <= len(text)
    assert characters == 1 or count_tokens(text[:characters]) <= limit


def test_the_estimate_is_near_for_prose() -> None:
    prose = (
        "The committee met on Thursday to discuss the proposal, which had been circulated a week earlier. Several "
        "members expressed doubts about its cost; others were convinced that the benefits would outweigh them. " * 20
    )
    o200k = 721
    assert o200k < count_tokens(prose) < 1.34 * o200k


def test_special_tokens_are_text() -> None:
    ((chunk, count),) = cut("<|endoftext|> and <|im_start|>", 100, 0)
    assert chunk == "<|endoftext|> and <|im_start|>" and count > 6
