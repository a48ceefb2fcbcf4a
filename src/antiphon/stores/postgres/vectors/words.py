"""Word lists for PostgreSQL's index: the words of a chunk with their counts, and the words of a query.

Lives here: folding of case and accents, stems, and the form in which a word stands in the index. Not here: which words
of a query count, and the cutting of scripts without spaces (`types/search_terms.py`), SQL, ranking.

A word stands in the index with the number of its store before it and how often the chunk holds it behind it:
`17 bird 3`. So what a search reads of the index is its own store's alone, and who knows in which lists a chunk stands
knows its counts without having read it.

Letters of scripts without spaces are words of their own, and so is each pair of them that stands together.

Invariant: what a text becomes depends on the text alone, and for a query it is the same as for a chunk.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import snowballstemmer

from antiphon.types.search_terms import index_text, query_terms

TITLE_WEIGHT = 2

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 24, 32)
"""The counts that are told apart; others are taken for the next below. The more often a word stands there, the less
does once more count."""

_LONGEST = 64
"""Words that begin with the same so many letters are the same: an entry of the index has a limit."""
_NOT_STEMMED = 2

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_stemmers = threading.local()


def chunk_words(title: str, text: str) -> tuple[list[str], int]:
    """What the index has of a chunk, each still without its store's number, and how long the chunk is, in words."""
    counts: Counter[str] = Counter()
    length = 0
    for part, weight in ((title, TITLE_WEIGHT), (text, 1)):
        words = list(_words(index_text(part)))
        length += len(words)
        for word, count in Counter(words).items():
            counts[word] += count * weight
        for word, count in Counter(_pairs(words)).items():
            counts[word] += count * weight
    return [f"{word} {_told(count)}" for word, count in counts.items()], length


def query_words(store: int, query: str) -> tuple[list[int], list[str], list[int]]:
    """Where the chunks of this store that hold words of the query are found: for each entry of the index the number of
    its word, the entry, and the count."""
    words = [word for term in query_terms(query) for word in _query_words(term)]
    numbers, entries, counts = [], [], []
    for number, word in enumerate(words):
        for count in COUNTS:
            numbers.append(number)
            entries.append(f"{store} {word} {count}")
            counts.append(count)
    return numbers, entries, counts


def _told(count: int) -> int:
    return COUNTS[bisect_right(COUNTS, count) - 1]


def _query_words(term: str) -> Iterator[str]:
    """A term is a word, or a pair of letters with a space."""
    words = list(_words(term))
    pairs = list(_pairs(words))
    yield from pairs or words


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(_folded(text)):
        yield _stem(word[:_LONGEST])


def _pairs(words: list[str]) -> Iterator[str]:
    """Letters that are words, and follow each other."""
    for one, other in pairwise(words):
        if len(one) == 1 and len(other) == 1 and index_text(one) != one and index_text(other) != other:
            yield one + other


def _folded(text: str) -> str:
    text = text.lower()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


@lru_cache(1 << 16)
def _stem(word: str) -> str:
    if len(word) <= _NOT_STEMMED:
        return word
    stemmer: Any = getattr(_stemmers, "porter", None)
    if stemmer is None:
        # One for each thread: it keeps what it works on.
        stemmer = _stemmers.porter = snowballstemmer.stemmer("porter")
    return str(stemmer.stemWord(word))
