"""Writes what the Helm chart has from elsewhere: its copies of the drain hook, the rules and the dashboard, the names
of the settings that are secret, the schema of its values (that of `settings` from the settings themselves), and its
README from the comments of values.yaml.

With --check: fails unless all are current, and the image's version is the package's."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from antiphon import __version__
from antiphon.config.reading import SecretStr
from antiphon.config.section import Section, Setting
from antiphon.config.settings import Settings

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deployments" / "helm" / "antiphon"

Schema = dict[str, Any]

# What is read before its type is looked at takes more than the type says.
_ANYTHING = frozenset({"models[].upstream", "sidecar.socket_mode"})


def secret_paths(model: type[Section] = Settings, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The settings that are secret; `*` stands for a name or a number."""
    for name, kind in model.kinds().items():
        yield from _secret_paths(kind, (*above, name))


def _secret_paths(kind: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, Section):
        yield from secret_paths(kind, path)
        return
    parts = [part for part in get_args(kind) if isinstance(part, type) and part is not str]
    if kind is SecretStr or SecretStr in parts:
        yield ".".join(path)
        return
    named = get_origin(kind) in (dict, tuple)
    for part in parts:
        yield from _secret_paths(part, (*path, "*") if named else path)


def settings_schema(model: type[Section] = Settings, above: str = "") -> Schema:
    """What the settings file may hold. Secrets are let through: the chart refuses them with a sentence of its own."""
    members, required = {}, []
    for name, kind in model.kinds().items():
        one = model.settings()[name]
        anything = above + name in _ANYTHING or next(_secret_paths(kind, ()), None) == ""
        members[name] = {} if anything else _schema(kind, one, above + name)
        if one.required:
            required.append(name)
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": members}
    return {**schema, "required": required} if required else schema


def _schema(kind: Any, one: Setting, path: str) -> Schema:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        each = [_schema(part, one, path) for part in parts if part is not types.NoneType]
        found = each[0] if len(each) == 1 else {"anyOf": each}
        return _or_null(found) if types.NoneType in parts else found
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:
        return {"type": "array", "items": _schema(parts[0], one, f"{path}[]")}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(parts[1], one, f"{path}.*")}
    if isinstance(kind, type) and issubclass(kind, Section):
        return settings_schema(kind, f"{path}.")
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    if kind in (int, float):
        names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        limits = {names[name]: value for name, value in one.limits._asdict().items() if value is not None}
        return {"type": "integer" if kind is int else "number", **limits}
    return {bool: {"type": "boolean"}, str: {"type": "string"}, Path: {"type": "string"}}.get(kind, {})


def _or_null(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


def values_schema() -> str:
    """values.schema.json: a member a line."""
    schema = yaml.safe_load((CHART.parent / "values.schema.yaml").read_text())
    schema["properties"]["settings"] = settings_schema()
    schema["properties"] = dict(sorted(schema["properties"].items()))
    members = ",\n".join(f"    {json.dumps(name)}: {json.dumps(one)}" for name, one in schema.pop("properties").items())
    head = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in schema.items())
    return f'{{\n{head},\n  "properties": {{\n{members}\n  }}\n}}\n'


_README = """\
# The chart's values

Made from the comments of `values.yaml` by `scripts/kubernetes-manifests`. How to install it, what its shapes are, how
pods leave and what was tried: [docs/kubernetes.md](../../../docs/kubernetes.md).

| value | default | meaning |
| --- | --- | --- |
"""


def readme() -> str:
    """The values as a table."""
    text = (CHART / "values.yaml").read_text()
    tree = yaml.compose(text)
    assert isinstance(tree, yaml.MappingNode)
    rows = [
        f"| `{name}` | {default} | {meaning} |\n".replace("|  |", "| |")
        for name, default, meaning in _rows(tree, text.splitlines(), "")
    ]
    return _README + "".join(rows)


def _rows(node: yaml.MappingNode, lines: list[str], above: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each value; a section has a row of its own where there is something to say of it."""
    for key, value in node.value:
        name, line = above + key.value, key.start_mark.line
        nested = isinstance(value, yaml.MappingNode) and value.value and not value.flow_style
        behind = lines[line][value.end_mark.column if value.end_mark.line == line else key.end_mark.column :]
        said = [_comment(one) for one in _above(lines, line)]
        said.append(_comment(behind.partition("#")[1] + behind.partition("#")[2]))
        meaning = " ".join(one for one in said if one).replace("|", "\\|")
        if nested:
            if meaning:
                yield name, "", meaning
            yield from _rows(value, lines, f"{name}.")
        else:
            yield name, f"`{_default(value)}`", meaning


def _above(lines: list[str], line: int) -> list[str]:
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    # What stands at the file's head is of the file.
    return [] if first == 0 else [one.strip() for one in lines[first:line]]


def _comment(text: str) -> str:
    return text.lstrip("# ").strip()


def _default(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    return json.dumps(value, ensure_ascii=False)


def files() -> Mapping[Path, str]:
    """Every file that is made, and what it must hold."""
    monitoring = ROOT / "deployments" / "monitoring"
    return {
        CHART / "files" / "drain.sh": (ROOT / "envoy" / "drain.sh").read_text(),
        CHART / "files" / "antiphon.rules.yml": (monitoring / "antiphon.rules.yml").read_text(),
        CHART / "files" / "dashboard.json": (monitoring / "dashboard.json").read_text(),
        CHART / "files" / "secrets.txt": "".join(f"{path}\n" for path in secret_paths()),
        CHART / "values.schema.json": values_schema(),
        CHART / "README.md": readme(),
    }


def main() -> int:
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(files()[path])
        stale = []
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current: run scripts/kubernetes-manifests", file=sys.stderr)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    if version != __version__:
        print(f"Chart.yaml: appVersion is {version}, the package's version {__version__}", file=sys.stderr)
    return 1 if stale or version != __version__ else 0


if __name__ == "__main__":
    raise SystemExit(main())
