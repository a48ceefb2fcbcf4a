"""Splits a text into overlapping chunks.

Lives here: the boundaries of chunks, and the estimate of a text's number of tokens. Not here: extracting the text
(`extract.py`), the token counts of a model's server (`translation/chat/token_count.py`).

A text is first split into pieces: sentences and lines. A chunk contains as many pieces as fit. It ends at the end of a
paragraph, if there is one in its second half. The next chunk begins with as many of the last pieces as fit into the
overlap.

The estimate counts each six letters of a word, each mark and each line end as a token. Compared with OpenAI's o200k it
counts 10 to 33 percent too many for prose, and up to 50 percent for source code. So chunks may be smaller than
requested, but never much larger.

Invariant: no chunk has more than `size` tokens (the sum over its pieces), and no two neighbours share more than
`overlap`. Every character except white space at the edges is in some chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"[^\W_]{1,6}|[^\w\s]|_|\n+")


def count_tokens(text: str) -> int:
    """The estimated number of tokens of the text."""
    return sum(1 for _ in _TOKEN.finditer(text))


def fitting(text: str, limit: int) -> int:
    """The length of the text's longest prefix with at most `limit` tokens; at least 1."""
    for number, piece in enumerate(_TOKEN.finditer(text)):
        if number == limit:
            return max(1, piece.start())
    return len(text)


# A sentence ends before the white space after its mark: tokenizers assign the space to the next word.
_PIECE = re.compile(r"[^\n]*?(?:\n\s*|[.!?][\"')\]]*(?=\s)|[\u3002\uff01\uff1f]|\Z)")
# A line of megabytes is split window by window, with so many characters per token of a chunk. So the rest of the line
# is not counted again for each of its parts.
_WINDOW = 8
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*\Z")


def cut(text: str, size: int, overlap: int) -> Iterator[tuple[str, int]]:
    """The chunks of at most `size` tokens, each with its number of tokens; neighbours share at most `overlap`."""
    held: list[tuple[str, int]] = []
    total = 0
    fresh = 0  # held[fresh:] is in no chunk yet
    for piece, count in _pieces(text, size):
        while total + count > size and fresh < len(held):
            end = _best_end(held, fresh, size)
            yield from _chunk(held[:end])
            held, fresh = _kept(held, end, overlap)
            total = sum(each for _, each in held)
        while total + count > size:  # nothing fresh: drop overlap
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
    """The number of pieces in the chunk: up to the last paragraph end in its second half, else all."""
    total = 0
    best = len(held)
    found = False
    for number, (piece, count) in enumerate(held):
        total += count
        if number >= fresh and 2 * total > size and _PARAGRAPH_END.search(piece):
            best, found = number + 1, True
    return best if found else len(held)


def _kept(held: list[tuple[str, int]], end: int, overlap: int) -> tuple[list[tuple[str, int]], int]:
    """The pieces for the next chunk: the overlap and the unused pieces; and the index of the first unused one."""
    start, shared = end, 0
    while start > 1 and shared + held[start - 1][1] <= overlap:
        start -= 1
        shared += held[start][1]
    return held[start:], end - start


def _chunk(pieces: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    text = "".join(piece for piece, _ in pieces).strip()
    if text:
        yield text, sum(count for _, count in pieces)
