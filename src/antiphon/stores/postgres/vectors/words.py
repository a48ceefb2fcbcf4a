"""Builds the entries of PostgreSQL's word index for chunks, and the lookups in this index for queries.

Lives here: folding of case and accents, stemming, and the form of an index entry. Not here: the choice of a query's
search terms and the splitting of scripts without spaces (`types/search.py`), SQL, ranking.

An entry of the index consists of the vector store's integer key, the word, and the word's count in the chunk, as in
`17 bird 3`. So a search reads only the entries of its vector store. A matching entry already contains the word's count,
so the search need not read the chunk's text.

In scripts without spaces, each letter is a word, and each pair of adjacent letters is a word as well.

Invariant: the same text gives the same index words in a query and in a chunk.
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
from typing import Protocol

import snowballstemmer

from antiphon.types.search import index_text, query_terms

TITLE_WEIGHT = 2

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 24, 32)
"""The counts that index entries use. `chunk_words` rounds other counts down, because one more occurrence of a frequent
word hardly changes the score."""

_LONGEST = 64
"""The maximum length of a word in characters. This module shortens longer words, because PostgreSQL limits the size of
an index entry."""
_NOT_STEMMED = 2

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_stemmers = threading.local()


def chunk_words(title: str, text: str) -> tuple[list[str], int]:
    """Return the index entries of a chunk, each without the vector store's key, and the chunk's length in words. Words
    of the title count twice."""
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
    """Return the index lookups for a query as three parallel lists. Each lookup has a word's position
    in the query, an index entry of this word, and the word's count in this entry."""
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
    """Yield the index words of a search term: one word, or a pair of letters from a script without spaces."""
    words = list(_words(term))
    pairs = list(_pairs(words))
    yield from pairs or words


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(_folded(text)):
        yield _stem(word[:_LONGEST])


def _pairs(words: list[str]) -> Iterator[str]:
    """Yield the pairs of adjacent letters from scripts without spaces."""
    for one, other in pairwise(words):
        if len(one) == 1 and len(other) == 1 and index_text(one) != one and index_text(other) != other:
            yield one + other


def _folded(text: str) -> str:
    text = text.lower()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


class _Stemmer(Protocol):
    def stemWord(self, word: str, /) -> str: ...


@lru_cache(1 << 16)
def _stem(word: str) -> str:
    if len(word) <= _NOT_STEMMED:
        return word
    stemmer: _Stemmer | None = getattr(_stemmers, "porter", None)
    if stemmer is None:
        # Each thread has a separate stemmer, because a stemmer has mutable state.
        stemmer = _stemmers.porter = snowballstemmer.stemmer("porter")
    return str(stemmer.stemWord(word))
