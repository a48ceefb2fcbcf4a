"""Splits a text into overlapping chunks.

Lives here: where chunks begin and end, and the estimate of how many tokens a text has. Not here: what the text is
(`extract.py`), how a model's own server counts (`translation/chat/token_count.py`).

A text is first cut into pieces: sentences and lines. A chunk is as many pieces as fit; it ends rather with a paragraph
when one ends in its second half. The next chunk begins with as many of the last pieces as fit into the overlap.

The estimate counts words in pieces of six letters, marks and line ends one by one. Compared with OpenAI's o200k
it counts a tenth to a third too many for prose, up to half too many for source code. So chunks may be smaller than
asked for, never larger by much.

Invariant: no chunk has more than `size` tokens (by the sum of its pieces), no two neighbours share more than `overlap`,
and every character but white space at the edges is in some chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"[^\W_]{1,6}|[^\w\s]|_|\n+")


def count_tokens(text: str) -> int:
    """How many tokens the text has, about."""
    return sum(1 for _ in _TOKEN.finditer(text))


def fitting(text: str, limit: int) -> int:
    """How many characters of the text's beginning have at most `limit` tokens; at least one."""
    for number, piece in enumerate(_TOKEN.finditer(text)):
        if number == limit:
            return max(1, piece.start())
    return len(text)


# A sentence ends before the white space behind its mark: the space belongs to the next word, as tokenizers see it.
_PIECE = re.compile(r"[^\n]*?(?:\n\s*|[.!?][\"')\]]*(?=\s)|[\u3002\uff01\uff1f]|\Z)")
# A line of megabytes is cut window by window, so many characters for each token of a chunk: the rest of the line is not
# counted again for each of its parts.
_WINDOW = 8
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*\Z")


def cut(text: str, size: int, overlap: int) -> Iterator[tuple[str, int]]:
    """Chunks of at most `size` tokens with their number of tokens; neighbours share at most `overlap`."""
    held: list[tuple[str, int]] = []
    total = 0
    fresh = 0  # held[fresh:] is in no chunk yet
    for piece, count in _pieces(text, size):
        while total + count > size and fresh < len(held):
            end = _best_end(held, fresh, size)
            yield from _chunk(held[:end])
            held, fresh = _kept(held, end, overlap)
            total = sum(each for _, each in held)
        while total + count > size:  # nothing fresh: only overlap is in the way
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
    """Behind which piece to end a chunk: the last paragraph that ends in its second half, else the last piece."""
    total = 0
    best = len(held)
    found = False
    for number, (piece, count) in enumerate(held):
        total += count
        if number >= fresh and 2 * total > size and _PARAGRAPH_END.search(piece):
            best, found = number + 1, True
    return best if found else len(held)


def _kept(held: list[tuple[str, int]], end: int, overlap: int) -> tuple[list[tuple[str, int]], int]:
    """What the next chunk begins with: the overlap, and what was not in the chunk; and where the latter begins."""
    start, shared = end, 0
    while start > 1 and shared + held[start - 1][1] <= overlap:
        start -= 1
        shared += held[start][1]
    return held[start:], end - start


def _chunk(pieces: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    text = "".join(piece for piece, _ in pieces).strip()
    if text:
        yield text, sum(count for _, count in pieces)
