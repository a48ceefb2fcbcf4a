"""Parses YAML text into settings values.

This module has the parser and its error messages. `sources.py` reads the files and variables that contain YAML.

Invariant: no error message repeats a part of the text, because the text may contain an API key.
"""

from __future__ import annotations

import re

import yaml

from antiphon.config.problems import NotYaml, shown_name

_QUOTED = re.compile(r"'[^']*'|[\"'].*", re.DOTALL)
_HARMLESS = re.compile(r"'(<[a-z ]+>|[^\w\s])'")


def read_yaml(text: str) -> object:
    """Parse the text. Raises `NotYaml`."""
    try:
        found = yaml.load(text, _UniqueKeyLoader)
        if _holds_itself(found, set(), set()):
            raise NotYaml("an alias refers to a node that contains the alias")
        return found
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotYaml(_problem(error)) from None


def _holds_itself(value: object, around: set[int], seen: set[int]) -> bool:
    """Whether a mapping or list contains itself, through YAML aliases.

    `around` has the identities of the values that contain `value`. `seen` has the identities of the values that were
    already searched, so that aliases do not multiply the work.
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
    """The parser's message with its line and column, but without quoted words, because they come from the text."""
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
    """A YAML loader that rejects a mapping with the same key twice. PyYAML accepts such a mapping silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            problem = f"{', '.join(sorted(map(shown_name, twice)))} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)
