"""How what is wrong with a setting is written: its place, and what to write instead.

Lives here: places, choices, the advice for a name that nobody knows, the error that has all problems. Not here: what is
wrong (`reading.py` of types, the sections of their own rules), names in sources (`sources.py`).

Invariant: no value is repeated here: a key may stand in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Place = tuple[str | int, ...]


class NotYaml(Exception):
    """Why a text is no YAML, in words that hold none of it."""


class Problem(NamedTuple):
    """`words`: one line for each problem of this place, or, where the place is said in them, one with it."""

    place: Place
    words: str
    names_place: bool = False

    def lines(self) -> list[str]:
        """Each with the place of the setting in front."""
        if self.names_place:
            return [self.words]
        return [f"{written_place(self.place)}: {line}" for line in self.words.split("\n")]


class WrongSettings(ValueError):
    """What is wrong with a section and with what is in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.lines = [line for problem in problems for line in problem.lines()]
        super().__init__("\n".join(self.lines))


def written_place(parts: Sequence[str | int]) -> str:
    """`models[0].match`; the part of a name that may be something else is left out."""
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}" if place else shown_name(part)
    return place or "settings"


def no_setting(above: Place, name: str, known: Iterable[str]) -> Problem:
    """The problem of a name that is none, in a section that knows these."""
    place = written_place((*above, name))
    advised = advice(place, [written_place((*above, one)) for one in known])
    return Problem((*above, name), f"{place} is not a setting{advised}", names_place=True)


def choice(values: Iterable[object]) -> str:
    """`'a', 'b' or 'c'`."""
    *others, last = [repr(value) for value in values]
    return f"{', '.join(others)} or {last}" if others else last


def shown_name(name: object) -> str:
    """A name that is none of ours, as far as it looks like a name: of `{api_key:sk-…}` YAML makes one name."""
    text = str(name)
    begin = re.split(r"[\s:=]", text, maxsplit=1)[0][:64]
    return begin if begin == text else f"{begin}…"


_USUAL = {
    "--port": "--listen HOST:PORT",
    "code_interpreter.enabled": "code_interpreter.sandbox",
    "mcp.servers": "mcp.connectors or mcp.allow",
}
"""What other programs call it, and what it is called here."""
_NOT_MEANT = {("--model", "--mode")}
_SEPARATORS = ("--", "ANTIPHON_", "__", ".", "/")
_CLOSE = 0.65


def advice(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as the end of a sentence; empty when none is near."""
    # Needed for a mistake alone.
    import difflib

    names = list(known)
    usual = _USUAL.get(name, "")
    if usual.partition(" ")[0] in names:
        return f"; did you mean {usual}?"
    for near in difflib.get_close_matches(name, names):
        # The section that both are in makes two names no more alike.
        cut = max(_section_end(name, near, one) for one in _SEPARATORS)
        close = difflib.SequenceMatcher(None, name[cut:], near[cut:]).ratio() >= _CLOSE
        if close and (name, near) not in _NOT_MEANT:
            return f"; did you mean {near}?"
    return ""


def _section_end(name: str, other: str, separator: str) -> int:
    """Where the last separator ends before which both names are the same, or 0."""
    end = name.rfind(separator) + len(separator) if separator in name else 0
    while end and not other.startswith(name[:end]):
        at = name.rfind(separator, 0, end - len(separator))
        end = at + len(separator) if at >= 0 else 0
    return end
