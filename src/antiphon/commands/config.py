"""`antiphon config`: prints the effective settings, with secrets redacted.

By default, the output is YAML that can serve as a settings file. `--changed` leaves out settings with their default
value. `--sources` prints a table instead, with the source of each value (flag, environment, file, default). `--schema`
prints the JSON Schema of settings files. `--json` prints JSON in place of YAML or the table.

The package `config` reads the settings, and `flags.py` reads the flags. Invariant: the output contains no secret.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping

import yaml

from antiphon.commands.flags import given_flags, settings_file, settings_of
from antiphon.commands.terminal import write_table
from antiphon.config.section import field_paths
from antiphon.config.settings import Settings, settings_schema
from antiphon.config.sources import put, read_environment, read_file

_NOT_GIVEN = object()
_WIDEST = 60


def run(arguments: argparse.Namespace) -> int:
    """Print the settings that the flags select."""
    if arguments.schema:
        print(json.dumps(settings_schema(), indent=2))
        return 0
    values = settings_of(arguments).redacted()
    write = _write_json if arguments.json else _write_yaml
    if arguments.sources:
        _write_sources(arguments, values)
    elif arguments.changed:
        changed: dict[str, object] = {}
        for path, value in _changed(values):
            put(changed, path, value)
        write(changed)
    else:
        write(values)
    return 0


def _write_yaml(values: object) -> None:
    yaml.safe_dump(values, sys.stdout, sort_keys=False)


def _write_json(values: object) -> None:
    print(json.dumps(values, indent=2))


def _write_sources(arguments: argparse.Namespace, values: Mapping[str, object]) -> None:
    """Print a table of settings, values and sources. A flag overrides a variable, and a variable overrides the file."""
    file = settings_file(arguments)
    sources: list[tuple[str, object]] = [
        ("flag", given_flags(arguments)),
        ("environment", read_environment(os.environ, Settings, [])),
        (f"file {file}", read_file(file) if file is not None else {}),
    ]
    changed = {path for path, _ in _changed(values)}
    rows = []
    for path in _paths():
        if path in changed or not arguments.changed:
            found = next((name for name, given in sources if _at(given, path) is not _NOT_GIVEN), "default")
            # A value may differ from its default although no source sets it. Such a value was derived from other
            # settings or the environment.
            source = "derived" if found == "default" and path in changed else found
            rows.append((".".join(path), _at(values, path), source))
    if arguments.json:
        _write_json([{"setting": name, "value": value, "source": source} for name, value, source in rows])
        return
    shown = [[name, _cut(json.dumps(value, ensure_ascii=False)), source] for name, value, source in rows]
    write_table([["setting", "value", "source"], *shown], sys.stdout)


def _cut(text: str) -> str:
    """The value of a setting, shortened to the width of the table's column."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _changed(values: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the path and value of each setting whose value differs from its default."""
    defaults = Settings().redacted()
    for path in _paths():
        if (value := _at(values, path)) != _at(defaults, path):
            yield path, value


def _paths() -> list[tuple[str, ...]]:
    return [path for path, _ in field_paths(Settings)]


def _at(values: object, path: tuple[str, ...]) -> object:
    """The value at `path` in nested mappings, or `_NOT_GIVEN` if there is none."""
    found: object = values
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return _NOT_GIVEN
        found = found[name]
    return found
