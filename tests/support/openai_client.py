"""Writes openai-client.json, which lists the operations and the schema positions of OpenAI's published Python client.

Run `python -m tests.support.openai_client FOLDER`, where FOLDER has an unpacked wheel. The file has names only. The
page of API differences is generated from it, so the page is the same on every machine.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.support.shapes import shape_of

FILE = Path(__file__).parents[1] / "schemas" / "openai-client.json"
_CALL = re.compile(r'self\._(get|post|delete|put|patch|get_api_list)\(\s*(?:path_template\(\s*)?f?"([^"]+)"')
_LISTED = re.compile(r'self\._get_api_list\(\s*(?:path_template\(\s*)?f?"([^"]+)"[\s\S]{0,900}?method="(\w+)"')
WITHOUT = {
    "request": frozenset[str](),
    "response": frozenset({"tools", "tool_choice", "instructions"}),
    "events": frozenset({"response", "item", "part"}),
}
"""Members whose content is skipped, because they repeat the request or are compared separately."""


def operations(folder: Path) -> list[str]:
    """The operations of all areas, such as `GET /responses/{}`."""
    found = set()
    for file in sorted((folder / "openai" / "resources").rglob("*.py")):
        text = file.read_text()
        changed = {path: method.upper() for path, method in _LISTED.findall(text)}
        for method, path in _CALL.findall(text):
            if path.startswith("/") and "?" not in path:
                name = changed.get(path, "GET") if method == "get_api_list" else method.upper()
                found.add(f"{name} {re.sub(r'{[^}]*}', '{}', path)}")
    return sorted(found)


def places(folder: Path) -> dict[str, Any]:
    """The schema positions of the types for responses."""
    sys.path.insert(0, str(folder))
    pydantic = importlib.import_module("pydantic")
    types = importlib.import_module("openai.types.responses")
    asked = importlib.import_module("openai.types.responses.response_create_params")
    kinds = {
        "request": asked.ResponseCreateParamsNonStreaming,
        "response": types.Response,
        "events": types.ResponseStreamEvent,
    }
    found = {}
    for name, kind in kinds.items():
        schema = pydantic.TypeAdapter(kind).json_schema()
        shape = shape_of(schema, schema, without=WITHOUT[name])
        found[name] = {"places": sorted(shape.places), "open": sorted(shape.open)}
    return found


def main() -> None:
    """Write the file."""
    folder = Path(sys.argv[1])
    shapes = places(folder)
    version = importlib.import_module("openai").__version__
    FILE.write_text(
        json.dumps({"version": version, "operations": operations(folder), "shapes": shapes}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
