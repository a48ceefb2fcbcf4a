"""Counting tokens.

Lives here: the tokenizer that is used where the package `bpe-openai` is installed (o200k, the same ids as OpenAI's
own), and the estimate that stands in for it. Not here: where a text is cut (`chunking.py`).

The estimate counts words in pieces of six letters, marks and line ends one by one: within a tenth of the real number
for prose, up to half too many for source code. So chunks come out smaller than they could be, never larger by much.

Invariant: `fitting` gives at least one character of a text that is not empty.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any, Protocol

_PIECE = re.compile(r"[^\W_]{1,6}|[^\w\s]|_|\n+")


class Tokenizer(Protocol):
    """Counts tokens."""

    name: str

    def count(self, text: str) -> int:
        """How many tokens the text has."""

    def fitting(self, text: str, limit: int) -> int:
        """How many characters of the text's beginning have at most so many tokens; at least one."""


class EstimatedTokens:
    """The estimate."""

    name = "estimate"

    def count(self, text: str) -> int:
        """How many tokens the text has, about."""
        return sum(1 for _ in _PIECE.finditer(text))

    def fitting(self, text: str, limit: int) -> int:
        """How many characters of the text's beginning have at most so many tokens."""
        for number, piece in enumerate(_PIECE.finditer(text)):
            if number == limit:
                return max(1, piece.start())
        return len(text)


class BpeTokens:
    """OpenAI's o200k by `bpe-openai`."""

    name = "o200k_base"

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def count(self, text: str) -> int:
        """How many tokens the text has."""
        return len(self._encoding.encode(text, disallowed_special=()))

    def fitting(self, text: str, limit: int) -> int:
        """How many characters of the text's beginning have at most so many tokens."""
        ids = self._encoding.encode(text, disallowed_special=())
        if len(ids) <= limit:
            return len(text)
        # The cut may fall into a letter of several tokens: its first bytes are left out.
        characters = len(self._encoding.decode_bytes(ids[:limit]).decode("utf-8", "ignore"))
        # Cut off, the end may need another token or two.
        while characters > 1 and self.count(text[:characters]) > limit:
            characters -= 1
        return max(1, characters)


@cache
def make_tokenizer() -> Tokenizer:
    """The real one when it is installed."""
    with warnings.catch_warnings():
        # It opens its data in a way that Python calls old.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import bpe_openai
        except ImportError:
            return EstimatedTokens()
        return BpeTokens(bpe_openai.get_encoding("o200k_base"))
