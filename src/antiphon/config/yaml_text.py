"""Parses YAML text into settings values.

Lives here: the parser, and its error. Not here: the files and variables that hold YAML (`sources.py`).

Invariant: the error holds nothing of the text, because the text may have a key.
"""

from __future__ import annotations

import re

import yaml

from antiphon.config.problems import NotYaml, shown_name

_QUOTED = re.compile(r"'[^']*'|[\"'].*", re.DOTALL)
_HARMLESS = re.compile(r"'(<[a-z ]+>|[^\w\s])'")


def read_yaml(text: str) -> object:
    """Parses the text. Raises `NotYaml`."""
    try:
        found = yaml.load(text, _UniqueKeyLoader)
        if _holds_itself(found, set(), set()):
            raise NotYaml("an alias stands inside of what it names")
        return found
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotYaml(_problem(error)) from None


def _holds_itself(value: object, around: set[int], seen: set[int]) -> bool:
    """Whether a mapping or list is somewhere in itself. `around`: the identities of those that hold the value; `seen`:
    of those that were searched, so that a text with many aliases takes no longer."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return False
    if id(value) in around:
        return True
    around.add(id(value))
    inside = value.values() if isinstance(value, dict) else value
    found = any(_holds_itself(one, around, seen) for one in inside)
    around.remove(id(value))
    seen.add(id(value))
    return found


def _problem(error: Exception) -> str:
    """The parser's message and its position, without the words in quotes, which come from the text."""
    if not isinstance(error, yaml.MarkedYAMLError):
        # Of a value (a date, a number), or of a character that YAML does not have: these messages hold it.
        return "it holds a value or a character that cannot be read"
    said = ", ".join(part for part in (error.context, error.problem) if part)
    for quoted in _QUOTED.finditer(said):
        # What the parser found is named as a kind, '<scalar>', or is a mark of punctuation.
        if not _HARMLESS.fullmatch(quoted[0]):
            said = f"{said[: quoted.start()]}…"
            break
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark is not None else said


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects a key that is given twice. YAML parsers accept it silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            problem = f"{', '.join(sorted(map(shown_name, twice)))} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)
