"""Removes known secrets from an upstream's error body, and leaves valid JSON valid.

The search in `redaction.py` skips all characters except letters and digits. So it may find a secret that begins in one
string and ends in the next one. `error_without` then cuts only the text inside of strings.

Invariant: `error_without` leaves no part of a secret for the sake of valid JSON, except a few letters in the name of a
field. If it cannot cut the rest, it makes the cut of `redaction.py`, which may not be JSON.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from antiphon.redaction import bytes_without, secret_spans

_GONE: Final = "[redacted]"
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*+)"(\s*+:)?', re.DOTALL)
_MOST_LEFT: Final = 8
_JSON: Final = msgspec.json.Decoder(msgspec.Raw)


def error_without(body: bytes, secrets: Iterable[str]) -> bytes:
    """Return the body with `[redacted]` in place of each secret in `secrets`. Returns `body` itself if it contains no
    secret."""
    secrets = tuple(secrets)
    clean = bytes_without(body, secrets)
    if clean is body or _is_json(clean) or not _is_json(body):
        return clean
    text = body.decode("utf-8", "surrogateescape")
    inside = _cut_in_strings(text, secret_spans(text, secrets))
    if inside is None:
        return clean
    kept = inside.encode("utf-8", "surrogateescape")
    return kept if _is_json(kept) else clean


def _cut_in_strings(text: str, gone: Sequence[tuple[int, int]]) -> str | None:
    """Return the text without the parts `gone` that are in its strings. The names of fields stay. Returns None if eight
    characters or more of one part would stay, or any character that is in no string."""
    kept, behind = list[str](), 0
    waiting = deque(_merged(gone))
    left = sum(_letters(text[start:end]) for start, end in waiting)
    for found in _STRING.finditer(text):
        start, end = found.span(1)
        while waiting and waiting[0][0] < end:
            first, last = max(waiting[0][0], start), min(waiting[0][1], end)
            if first < last:
                letters = _letters(text[first:last])
                left -= letters
                if not found[2]:
                    kept += [text[behind:first], _GONE]
                    behind = last
                elif letters >= _MOST_LEFT:
                    return None
            if waiting[0][1] > end:
                break
            waiting.popleft()
    return None if left else "".join((*kept, text[behind:]))


def _merged(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Return the parts in their order, with one part for those that overlap."""
    start = end = -1
    for first, last in sorted(spans):
        if first > end:
            if end > start:
                yield start, end
            start, end = first, last
        else:
            end = max(end, last)
    if end > start:
        yield start, end


def _letters(text: str) -> int:
    return sum(letter.isascii() and letter.isalnum() for letter in text)


def _is_json(body: bytes) -> bool:
    try:
        _JSON.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
