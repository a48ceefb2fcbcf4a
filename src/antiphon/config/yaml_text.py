"""Parses YAML text into settings values.

`sources.py` reads the files and variables that contain YAML.

Invariant: no error message repeats a part of the text, because the text may contain an API key.
"""

from __future__ import annotations

import re

import yaml

from antiphon.config.problems import NotYaml, shown_name

_QUOTED = re.compile(r"'[^']*'|[\"'].*", re.DOTALL)
_HARMLESS = re.compile(r"'(<[a-z ]+>|[^\w\s])'")


def read_yaml(text: str) -> object:
    """Parse a YAML text. Raises `NotYaml` for an invalid text."""
    try:
        found = yaml.load(text, _UniqueKeyLoader)
        if _holds_itself(found, set(), set()):
            raise NotYaml("an alias refers to a node that contains the alias")
        return found
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotYaml(_problem(error)) from None


def _holds_itself(value: object, around: set[int], seen: set[int]) -> bool:
    """Whether a mapping or list contains itself, which is possible through YAML aliases.

    `around` has the `id()` of each value that contains `value`. `seen` has the `id()` of each value that the function
    has already searched. The function searches a value only once, even if many aliases refer to it.
    """
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
    """Return the parser's message with its line and column. The result omits the words that the parser quotes from the
    text, because they may be secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        # These errors concern a value (a date, a number) or an invalid character. The error's own message would repeat
        # the value or the character.
        return "it contains an invalid value or an invalid character"
    said = ", ".join(part for part in (error.context, error.problem) if part)
    for quoted in _QUOTED.finditer(said):
        # A quoted token kind such as '<scalar>' and a quoted punctuation mark are safe to print.
        if not _HARMLESS.fullmatch(quoted[0]):
            said = f"{said[: quoted.start()]}…"
            break
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark is not None else said


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that rejects a mapping with duplicate keys, which PyYAML accepts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            problem = f"{', '.join(sorted(map(shown_name, twice)))} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)
