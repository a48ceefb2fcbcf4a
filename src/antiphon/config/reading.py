"""Values of the settings, read by the types that they are declared with.

Lives here: a reader for each type that a setting may have. Not here: sections (`section.py`), where values come from
(`sources.py`), how what is wrong is written (`problems.py`).

Each reader takes a value as YAML, JSON, a variable or Python code has it, and its place, and gives the value of the
type; what is wrong it adds to the list and gives `WRONG`. Texts are read where another type is wanted, since a variable
has nothing else; nothing else becomes a text, or a key with a number's looks would change on its way.

Invariant: no value is repeated in what is said of it.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from antiphon.config.problems import Place, Problem, choice

Reader = Callable[[Any, Place, list[Problem]], Any]

WRONG: Any = object()
"""What a reader gives for a value that it cannot read."""
MAPPING = "must hold a mapping of settings"
_LIST = "must be a list; in YAML [a, b], in a variable a,b"
_NUMBER = "must be a number"
_FINITE = "must be a finite number"
_WHOLE = "must be a whole number"
_SWITCH = "must be true or false"
_TEXT = "must be a text; what YAML takes for a number needs quotes"
_PATH = "must be a path"
_ZEROS = re.compile(r"\.0*\s*\Z")
_TRUE, _FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")


class SecretStr:
    """A text that no rendering shows: it must be asked for."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The text, in clear."""
        return self._value

    def __str__(self) -> str:
        return "**********" if self._value else ""

    def __repr__(self) -> str:
        return f"SecretStr({str(self)!r})"

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class Limits(NamedTuple):
    """What a number may be: at least, more than, at most, less than."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def problem(self, value: float) -> str:
        """What is wrong with it, or nothing."""
        if self.ge is not None and value < self.ge:
            return f"must be at least {self.ge:g}"
        if self.gt is not None and value <= self.gt:
            return f"must be more than {self.gt:g}"
        if self.le is not None and value > self.le:
            return f"must be at most {self.le:g}"
        if self.lt is not None and value >= self.lt:
            return f"must be less than {self.lt:g}"
        return ""


NO_LIMITS = Limits()


def reader_of(kind: Any, limits: Limits = NO_LIMITS) -> Reader:
    """The reader of a type; `limits` are those of the numbers in it. Raises TypeError for a type that settings cannot
    have."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _either([reader_of(part, limits) for part in parts if part is not types.NoneType], parts)
    if origin is Literal:
        return _one_of({part: part for part in parts})
    if origin is tuple and len(parts) == 2 and parts[1] is ...:
        return _list_of(reader_of(parts[0], limits))
    if origin is dict and parts[0] is str:
        return _mapping_of(reader_of(parts[1], limits))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of({one.value: one for one in kind})
    if (of_section := getattr(kind, "read_section", None)) is not None:
        return typing.cast(Reader, of_section)
    if kind in (int, float):
        return _limited(_whole if kind is int else _number, limits)
    if kind in _PLAIN:
        return _PLAIN[kind]
    raise TypeError(f"no setting can be a {kind!r}")


def _anything(value: Any, place: Place, wrong: list[Problem]) -> Any:
    return value


def _text(value: Any, place: Place, wrong: list[Problem]) -> Any:
    return value if isinstance(value, str) else _refused(wrong, place, _TEXT)


def _secret(value: Any, place: Place, wrong: list[Problem]) -> Any:
    if isinstance(value, SecretStr):
        return value
    return SecretStr(value) if isinstance(value, str) else _refused(wrong, place, _TEXT)


def _path(value: Any, place: Place, wrong: list[Problem]) -> Any:
    return Path(value) if isinstance(value, str | Path) else _refused(wrong, place, _PATH)


def _switch(value: Any, place: Place, wrong: list[Problem]) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    elif isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return _refused(wrong, place, _SWITCH)


def _whole(value: Any, place: Place, wrong: list[Problem]) -> Any:
    if isinstance(value, str):
        try:
            return int(_ZEROS.sub("", value))
        except ValueError:
            return _refused(wrong, place, _WHOLE)
    if isinstance(value, float):
        if not math.isfinite(value):
            return _refused(wrong, place, _FINITE)
        return int(value) if value.is_integer() else _refused(wrong, place, _WHOLE)
    return int(value) if isinstance(value, int) else _refused(wrong, place, _WHOLE)


def _number(value: Any, place: Place, wrong: list[Problem]) -> Any:
    if not isinstance(value, int | float | str):
        return _refused(wrong, place, _NUMBER)
    try:
        number = float(value)
    except OverflowError:
        return _refused(wrong, place, _FINITE)
    except ValueError:
        return _refused(wrong, place, _NUMBER)
    return number if math.isfinite(number) else _refused(wrong, place, _FINITE)


_PLAIN: dict[Any, Reader] = {Any: _anything, str: _text, SecretStr: _secret, Path: _path, bool: _switch}


def _limited(read: Reader, limits: Limits) -> Reader:
    def read_limited(value: Any, place: Place, wrong: list[Problem]) -> Any:
        number = read(value, place, wrong)
        if number is not WRONG and (problem := limits.problem(number)):
            return _refused(wrong, place, problem)
        return number

    return read_limited if any(one is not None for one in limits) else read


def _one_of(choices: Mapping[Any, Any]) -> Reader:
    def read(value: Any, place: Place, wrong: list[Problem]) -> Any:
        if isinstance(value, str) and value in choices:
            return choices[value]
        return _refused(wrong, place, f"must be {choice(choices)}")

    return read


def _list_of(read_one: Reader) -> Reader:
    def read(value: Any, place: Place, wrong: list[Problem]) -> Any:
        if not isinstance(value, list | tuple):
            return _refused(wrong, place, _LIST)
        found = tuple(read_one(one, (*place, number), wrong) for number, one in enumerate(value))
        return WRONG if any(one is WRONG for one in found) else found

    return read


def _mapping_of(read_one: Reader) -> Reader:
    def read(value: Any, place: Place, wrong: list[Problem]) -> Any:
        if not isinstance(value, Mapping):
            return _refused(wrong, place, MAPPING)
        found = {}
        for name, one in value.items():
            if isinstance(name, str):
                found[name] = read_one(one, (*place, name), wrong)
            else:
                found[name] = _refused(wrong, (*place, str(name)), f"the name {_TEXT}")
        return WRONG if any(one is WRONG for one in found.values()) else found

    return read


def _either(readers: list[Reader], parts: tuple[Any, ...]) -> Reader:
    """What one of several types reads, in their order; where none does, the last one says why."""
    optional = types.NoneType in parts

    def read(value: Any, place: Place, wrong: list[Problem]) -> Any:
        if value is None and optional:
            return None
        for reader in readers[:-1]:
            found = reader(value, place, [])
            if found is not WRONG:
                return found
        return readers[-1](value, place, wrong)

    return read


def _refused(wrong: list[Problem], place: Place, words: str) -> Any:
    wrong.append(Problem(place, words))
    return WRONG
