"""Compares two texts line by line, for a view with both side by side.

Lives here: the rows of the comparison. Not here: the texts of prompts (`views/prompts.py`), HTML.

Invariant: the left lines of the rows are the first text, and the right lines the second text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple

MOST_LINES: Final = 1000
"""The maximum number of lines of a text. The time of a comparison grows faster than the square of this number."""
_MOST_PAIRED: Final = 2000
"""The maximum number of pairs of lines whose similarity one comparison computes."""
_ALIKE: Final = 0.6
_LONGEST: Final = 300


class DiffRow(NamedTuple):
    """One row. A number is 0 and a text empty where a side has no line."""

    kind: Literal["same", "changed", "removed", "added"]
    left: int
    left_text: str
    right: int
    right_text: str


def compare(old: Sequence[str], new: Sequence[str]) -> list[DiffRow]:
    """The rows of both texts. Lines beyond `MOST_LINES` are left out."""
    old, new = old[:MOST_LINES], new[:MOST_LINES]
    rows: list[DiffRow] = []
    left_over = _MOST_PAIRED
    for tag, start, end, begin, finish in SequenceMatcher(None, old, new).get_opcodes():
        if tag == "equal":
            rows += [
                DiffRow("same", left + 1, old[left], right + 1, new[right])
                for left, right in zip(range(start, end), range(begin, finish), strict=True)
            ]
            continue
        size = (end - start) * (finish - begin)
        paired = _pairs(old[start:end], new[begin:finish], alike=size <= left_over)
        left_over -= size if size <= left_over else 0
        for first, second in paired:
            if second is None and first is not None:
                rows.append(DiffRow("removed", start + first + 1, old[start + first], 0, ""))
            elif first is None and second is not None:
                rows.append(DiffRow("added", 0, "", begin + second + 1, new[begin + second]))
            elif first is not None and second is not None:
                left, right = start + first, begin + second
                rows.append(DiffRow("changed", left + 1, old[left], right + 1, new[right]))
    return rows


def _pairs(old: Sequence[str], new: Sequence[str], *, alike: bool) -> Iterator[tuple[int | None, int | None]]:
    """Pair similar lines of two blocks, in their order, so that the sum of the similarities is as large as possible.
    Without `alike`, the lines are not paired, because that takes too long."""
    if not alike:
        yield from ((each, None) for each in range(len(old)))
        yield from ((None, each) for each in range(len(new)))
        return
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    likeness = [[_likeness(one, other) for other in new] for one in old]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + likeness[i][j])
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and likeness[i][j] and best[i][j] == best[i + 1][j + 1] + likeness[i][j]:
            yield i, j
            i, j = i + 1, j + 1
        elif j == len(new) or (i < len(old) and best[i][j] == best[i + 1][j]):
            yield i, None
            i += 1
        else:
            yield None, j
            j += 1


def _likeness(one: str, other: str) -> float:
    found = SequenceMatcher(None, one[:_LONGEST], other[:_LONGEST]).quick_ratio()
    return found if found >= _ALIKE else 0.0
