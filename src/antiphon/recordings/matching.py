"""Chooses the recorded answer for a request, or explains why the recording has no answer.

This module compares a request with the recorded requests, and decides the order of the answers to equal requests. If no
recorded request matches, the module finds the nearest entry and the first difference. `servers.py` handles HTTP, and
`format.py` reads entries.

Two requests match if method, path and body are equal. Two JSON bodies are equal if their values are equal, whatever the
order of an object's keys. The numbers 1 and 1.0 are equal.

Invariants: the same requests in the same order get the same answers. A search compares a request with at most
`_COMPARED` entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from antiphon.recordings.format import CassetteEntry, decoded, is_json

Numbered = tuple[int, CassetteEntry]

_COMPARED: Final = 200
_COUNTED: Final = 50
_SHOWN: Final = 60
_MISSING: Final = object()


@dataclass(frozen=True)
class Difference:
    """One difference between a recorded request and a client's request. `path` is like `messages[2].content`.
    `recorded` and `requested` are short texts of the two values, or `missing`. `distance` is 1 for values without a
    common part, and less for two texts with the same beginning or end."""

    path: str
    recorded: str
    requested: str
    distance: float

    def __str__(self) -> str:
        return f"'{self.path}' is {self.recorded}, but in your request it is {self.requested}"


@dataclass(frozen=True)
class Mismatch:
    """For a request without an answer in the cassette: the entry with the most similar request, and the first
    difference."""

    number: int
    entry: CassetteEntry
    difference: Difference


class Playlist:
    """The answers of a cassette, in their recorded order."""

    def __init__(self, entries: Sequence[CassetteEntry], *, loop: bool = False) -> None:
        """If a client repeats a request more often than the cassette has answers, the last answer repeats. With `loop`,
        the first answer follows after the last one."""
        self.entries: tuple[Numbered, ...] = tuple(enumerate(entries, 1))
        self._loop = loop
        self._answers: dict[tuple[str, str, bytes], list[Numbered]] = {}
        self._next: dict[tuple[str, str, bytes], int] = {}
        for number, entry in self.entries:
            self._answers.setdefault(_key(entry.method, entry.path, entry.request), []).append((number, entry))

    def take(self, method: str, path: str, request: bytes) -> Numbered | None:
        """The next recorded answer for a request and its number. None if the cassette has no such answer."""
        key = _key(method, path, request)
        answers = self._answers.get(key)
        if answers is None:
            return None
        at = self._next.get(key, 0)
        self._next[key] = (at + 1) % len(answers) if self._loop else min(at + 1, len(answers) - 1)
        return answers[at]

    def nearest(self, method: str, path: str, request: bytes) -> Mismatch | None:
        """The entry of the same method and path whose recorded request has the fewest differences from this request.
        Of several such entries, the method chooses the one with the most similar texts. None if there is no entry."""
        value = _value(request)
        same = ((number, one) for number, one in self.entries if (one.method, one.path) == (method, path))
        found: tuple[tuple[int, float], Mismatch] | None = None
        for number, entry in islice(same, _COMPARED):
            all_of_them = list(islice(differences(_value(entry.request), value), _COUNTED))
            distance = len(all_of_them), sum(one.distance for one in all_of_them)
            if all_of_them and (found is None or distance < found[0]):
                found = distance, Mismatch(number, entry, all_of_them[0])
        return found[1] if found else None

    def models(self) -> list[str]:
        """The models that the recorded requests name."""
        return list(dict.fromkeys(entry.model for _, entry in self.entries if entry.model))


def differences(recorded: object, requested: object, path: str = "") -> Iterator[Difference]:
    """The differences between two JSON values, from the first to the last."""
    waiting = [(path, recorded, requested)]
    while waiting:
        at, one, other = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            names = dict.fromkeys((*one, *other))
            pairs = [
                (f"{at}.{name}" if at else name, one.get(name, _MISSING), other.get(name, _MISSING)) for name in names
            ]
            waiting += reversed(pairs)
        elif isinstance(one, list) and isinstance(other, list):
            longer = range(max(len(one), len(other)))
            waiting += [(f"{at}[{index}]", _item(one, index), _item(other, index)) for index in reversed(longer)]
        elif not _same(one, other):
            yield _difference(at or "the body", one, other)


def summary(entry: CassetteEntry) -> str:
    """The entry in a few words: method, path, model, and the beginning of its last message."""
    value = decoded(entry.request)
    messages = value.get("messages") if isinstance(value, dict) else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    text = f" {_text(content)}" if content else ""
    return f"{entry.method} {entry.path}{f' {entry.model}' if entry.model else ''}{text}"


def _item(values: list[object], index: int) -> object:
    return values[index] if index < len(values) else _MISSING


def _key(method: str, path: str, request: bytes) -> tuple[str, str, bytes]:
    value = decoded(request)
    text = b"text" + request
    if is_json(value):
        with contextlib.suppress(RecursionError):
            text = b"json" + json.dumps(_whole_numbers(value), sort_keys=True).encode()
    return method, path, hashlib.sha256(text).digest()


def _value(request: bytes) -> object:
    """The JSON value of a body, or its text if it is not JSON."""
    value = decoded(request)
    return value if is_json(value) else request.decode("utf-8", "replace")


def _same(one: object, other: object) -> bool:
    """Whether two values are equal. The caller never passes two objects or two lists, because it compares their
    elements instead. `true` and 1 differ."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    return bool(one == other)


def _whole_numbers(value: object) -> object:
    """The value with whole floats as integers, because clients write 1 and 1.0 for the same number."""
    if isinstance(value, dict):
        return {name: _whole_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _difference(path: str, one: object, other: object) -> Difference:
    """The difference between two values. If a text is long, its short text begins shortly before the first different
    character."""
    if not isinstance(one, str) or not isinstance(other, str):
        return Difference(path, _text(one), _text(other), 1.0)
    same = _common(one, other)
    ends = _common(one[same:][::-1], other[same:][::-1])
    distance = 1 - (same + ends) / max(len(one), len(other))
    if same > _SHOWN // 2:
        start = same - _SHOWN // 3
        return Difference(path, f"…{_text(one[start:])}", f"…{_text(other[start:])}", distance)
    return Difference(path, _text(one), _text(other), distance)


def _common(one: str, other: str) -> int:
    """The number of characters at the beginning that two texts have in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _text(value: object) -> str:
    if value is _MISSING:
        return "missing"
    text = json.dumps(value[: _SHOWN + 1] if isinstance(value, str) else value, ensure_ascii=True)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
