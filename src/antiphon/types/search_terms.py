"""Splits text into words: the words under which the index finds a text, and the words that a query searches.

Lives here: stop words, and splitting scripts that write no spaces. Not here: stemming and the folding of case and
accents, which the index applies to texts and queries.

The index stores scripts without spaces letter by letter. In a query, a run of letters without spaces becomes pairs of
letters: "検索機能" looks for 検索, 索機 and 機能.

Invariant: a query never holds search syntax. Every term is a word, even if the client's query contains search
operators.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

MAX_TERMS: Final = 64
"""The maximal number of terms. A longer query is cut, because each term costs time and the first terms say most."""

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
    """The text in the form for the index: with a space around each letter of a script without spaces."""
    if not _HAS_UNSPACED.search(text):
        return text
    return _HAS_UNSPACED.sub(lambda letter: f" {letter[0]} ", text)


def query_terms(query: str) -> list[str]:
    """The terms of a query, without duplicates and stop words. A term is a word, or two letters with a space in
    between.

    A query that consists only of stop words keeps them.
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
