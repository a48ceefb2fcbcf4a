"""Splits a text into overlapping chunks.

Lives here: choosing the boundaries of chunks, and estimating a text's number of tokens. Not here: extracting the text
(`extract.py`), token counts of a model server (`translation/chat/context_size.py`).

`cut` first splits a text into pieces: sentences and lines. A chunk contains as many consecutive sentences or lines as
fit into `size` tokens. If a paragraph ends in the second half of a chunk, the chunk ends with the last such paragraph.
The next chunk begins with as many of the previous chunk's last sentences or lines as fit into `overlap` tokens.

The estimate counts one token per six letters of a word, per punctuation mark, and per run of line breaks. Compared with
OpenAI's tokenizer o200k, the estimate is 10 to 33 percent too high for prose, and up to 50 percent for source code. So
a chunk may be smaller than the requested size, but never much larger.

Invariants: the estimated tokens of a chunk's pieces sum to at most `size`. Two consecutive chunks share at most
`overlap` tokens. Every character is in some chunk, except white space at the edges of chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"[^\W_]{1,6}|[^\w\s]|_|\n+")


def count_tokens(text: str) -> int:
    """Estimate the number of tokens of a text."""
    return sum(1 for _ in _TOKEN.finditer(text))


def fitting(text: str, limit: int) -> int:
    """Return the length in characters of the longest prefix with at most `limit` estimated tokens, but at least 1."""
    for number, piece in enumerate(_TOKEN.finditer(text)):
        if number == limit:
            return max(1, piece.start())
    return len(text)


# A sentence ends right after its punctuation mark. The following space belongs to the next piece, because tokenizers
# join a space with the next word.
_PIECE = re.compile(r"[^\n]*?(?:\n\s*|[.!?][\"')\]]*(?=\s)|[\u3002\uff01\uff1f]|\Z)")
# `_pieces` splits a very long line in windows of `_WINDOW` characters per token of a chunk. So `_pieces` never counts
# the tokens of the whole remaining line again for each piece.
_WINDOW = 8
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*\Z")


def cut(text: str, size: int, overlap: int) -> Iterator[tuple[str, int]]:
    """Yield the chunks of a text, each with its estimated number of tokens. A chunk has at most `size` tokens, and
    consecutive chunks share at most `overlap` tokens."""
    held: list[tuple[str, int]] = []
    total = 0
    fresh = 0  # no chunk contains held[fresh:] yet
    for piece, count in _pieces(text, size):
        while total + count > size and fresh < len(held):
            end = _best_end(held, fresh, size)
            yield from _chunk(held[:end])
            held, fresh = _kept(held, end, overlap)
            total = sum(each for _, each in held)
        while total + count > size:  # all pieces in `held` are overlap: drop the oldest
            total -= held.pop(0)[1]
            fresh -= 1
        held.append((piece, count))
        total += count
    if fresh < len(held):
        yield from _chunk(held)


def _pieces(text: str, size: int) -> Iterator[tuple[str, int]]:
    for match in _PIECE.finditer(text):
        piece = match[0]
        if not piece:
            continue
        if len(piece) <= _WINDOW * size:
            count = count_tokens(piece)
            if count <= size:
                yield piece, count
                continue
        at = 0
        while at < len(piece):
            end = at + fitting(piece[at : at + _WINDOW * size], size)
            if end < len(piece):
                space = piece.rfind(" ", at + (end - at) * 3 // 4, end)
                end = space if space > at else end
            yield piece[at:end], min(size, count_tokens(piece[at:end]))
            at = end


def _best_end(held: list[tuple[str, int]], fresh: int, size: int) -> int:
    """Return how many of the pieces in `held` (sentences and lines) form the next chunk. If a paragraph ends in the
    second half of the chunk, the chunk ends with this paragraph. Otherwise the chunk contains all pieces in `held`."""
    total = 0
    best = len(held)
    found = False
    for number, (piece, count) in enumerate(held):
        total += count
        if number >= fresh and 2 * total > size and _PARAGRAPH_END.search(piece):
            best, found = number + 1, True
    return best if found else len(held)


def _kept(held: list[tuple[str, int]], end: int, overlap: int) -> tuple[list[tuple[str, int]], int]:
    """Return the pieces with which the next chunk begins: the overlap, then the pieces that no chunk contains yet. Also
    returns the index of the first piece that no chunk contains yet."""
    start, shared = end, 0
    while start > 1 and shared + held[start - 1][1] <= overlap:
        start -= 1
        shared += held[start][1]
    return held[start:], end - start


def _chunk(pieces: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    text = "".join(piece for piece, _ in pieces).strip()
    if text:
        yield text, sum(count for _, count in pieces)
