"""Writes what the Helm chart has from elsewhere: its copies of the drain hook, the rules and the dashboard, the names
of the settings that are secret, the schema of its values (that of `settings` from the settings themselves), and its
README from the comments of values.yaml.

With --check: fails unless all are current, and the image's version is the package's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from antiphon import __version__
from antiphon.config.section import Section, section_in
from antiphon.config.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deployments" / "helm" / "antiphon"

Schema = dict[str, Any]


def settings_schema() -> Schema:
    """What the settings file may hold. Secrets are let through: the chart refuses them with a sentence of its own."""
    schema = Settings.model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    for section in (schema, *definitions.values()):
        members = section.get("properties", {})
        members.update({name: {} for name, one in members.items() if _is_secret(one)})
    return {**schema, "definitions": definitions}


def _is_secret(schema: Any) -> bool:
    """Whether this is a secret, or a list or a mapping of secrets."""
    if not isinstance(schema, dict):
        return False
    inside = (schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ()))
    return schema.get("format") == "password" or any(map(_is_secret, inside))


def secret_paths(model: type[Section] = Settings, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The settings that are secret; `*` stands for a name or a number."""
    members = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            yield from secret_paths(section, (*above, name) if section is field.annotation else (*above, name, "*"))
        elif _is_secret(members[name]):
            yield ".".join((*above, name))


def values_schema() -> str:
    """values.schema.json: a member a line."""
    schema = yaml.safe_load((CHART.parent / "values.schema.yaml").read_text())
    settings = settings_schema()
    schema["definitions"] |= settings.pop("definitions")
    schema["properties"] = dict(sorted({**schema["properties"], "settings": settings}.items()))
    parts = [f"  {json.dumps(name)}: {_lines(one)}" for name, one in schema.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"    {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items()) + "\n  }"


_README = """\
# The chart's values

Made from the comments of `values.yaml` by `scripts/lab kubernetes-manifests`. How to install it, what its shapes are,
how pods leave and what was tried: [docs/how-to/kubernetes.md](../../../docs/how-to/kubernetes.md).

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
        print(f"{path.relative_to(ROOT)} is not current: run scripts/lab kubernetes-manifests", file=sys.stderr)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    if version != __version__:
        print(f"Chart.yaml: appVersion is {version}, the package's version {__version__}", file=sys.stderr)
    return 1 if stale or version != __version__ else 0


if __name__ == "__main__":
    raise SystemExit(main())
