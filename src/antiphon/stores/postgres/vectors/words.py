"""Builds word lists for PostgreSQL's index: the words of a chunk with their counts, and the words of a query.

Lives here: folding of case and accents, stems, and the form of a word in the index. Not here: which words of a query
count, and splitting scripts without spaces (`types/search_terms.py`), SQL, ranking.

An entry of the index has the store's number, the word, and the word's count in the chunk: `17 bird 3`. So a search
reads only the entries of its store. The entries that match a chunk reveal its counts, so the search need not read the
chunk.

In scripts without spaces, each letter is a word, and so is each pair of adjacent letters.

Invariant: the words depend on the text alone, and a query yields the same words as a chunk.
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
"""The distinct counts; other counts are rounded down. For frequent words, one more occurrence matters less."""

_LONGEST = 64
"""Longer words are cut to this length, because an index entry has a size limit."""
_NOT_STEMMED = 2

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_stemmers = threading.local()


def chunk_words(title: str, text: str) -> tuple[list[str], int]:
    """The index entries of a chunk, each without its store's number, and the chunk's length in words."""
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
    """The lookups for a query: per index entry the number of its word, the entry, and the count."""
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
    """A term is one word, or a pair of letters from a script without spaces."""
    words = list(_words(term))
    pairs = list(_pairs(words))
    yield from pairs or words


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(_folded(text)):
        yield _stem(word[:_LONGEST])


def _pairs(words: list[str]) -> Iterator[str]:
    """Adjacent words of one letter each."""
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
        # One per thread, because a stemmer has mutable state.
        stemmer = _stemmers.porter = snowballstemmer.stemmer("porter")
    return str(stemmer.stemWord(word))
