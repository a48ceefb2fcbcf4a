"""Reads what npm clients can send and parse: from their declared types, and from the words of their programs.

Lives here: one function for each package. Not here: parsing types (`typescript.py`), Codex (`codex.py`).

For openai and @ai-sdk/openai this module reads the types that are plain data. From the zod schemas of @ai-sdk/openai it
reads only words (events, results of hosted tools). From @openai/agents-openai and @langchain/openai this module reads
only words, as in `read_python.py`. The fields of a request come from OpenAI's types. The fields that @ai-sdk/openai
adds itself are the members of `baseArgs` in its source.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lab.drift.found import Reading
from lab.drift.typescript import Package, words_of
from tests.support.openai_client import WITHOUT
from tests.support.shapes import shape_of

_RESPONSES = "resources/responses/responses.d.ts"
_MEMBER = re.compile(r"^ {6}([a-z_]+)(?=[:,])", re.MULTILINE)
_PATH = re.compile(r"this\._client\.(get|post|delete|put|patch|getAPIList)\(\s*(?:path)?\s*[`']([^`']+)[`']([^;]*)")


def version_of(folder: Path) -> str:
    """The version of an unpacked package."""
    return str(json.loads((folder / "package.json").read_text())["version"])


def read_openai(folder: Path) -> Reading:
    """Read openai for Node."""
    reading = Reading("openai (Node)", version_of(folder), "its types and resources: sure")
    package = Package(folder)
    for area, name in (
        ("request", "ResponseCreateParamsBase"),
        ("response", "Response"),
        ("events", "ResponseStreamEvent"),
        ("events", "ResponsesServerEvent"),
        ("frames", "ResponsesClientEvent"),
    ):
        try:
            schema, whole = package.schema(_RESPONSES, name)
        except KeyError:
            if area == "request":
                raise
            continue
        without = WITHOUT.get(area, frozenset()) if area != "frames" else frozenset({"input", "tools", "text"})
        reading.add_places(area, shape_of(schema, whole, without=without).places)
    for file in sorted((folder / "resources").rglob("*.mjs")):
        reading.add("route", _routes(file.read_text()))
    reading.needs(
        ("field", "model"),
        ("item", "message"),
        ("item", "function_call_output"),
        ("tool", "function"),
        ("part", "input_text"),
        ("include", "reasoning.encrypted_content"),
        ("event", "response.output_text.delta"),
        ("route", "POST /responses"),
    )
    return reading


def _routes(program: str) -> set[str]:
    found = set()
    for method, path, rest in _PATH.findall(program):
        told = re.search(r"method: '(\w+)'", rest) if method == "getAPIList" else None
        name = "GET" if method == "getAPIList" else method.upper()
        if path.startswith("/") and "?" not in path:
            found.add(f"{told[1].upper() if told else name} {re.sub(r'[$]{[^}]*}', '{}', path)}")
    return found


def read_ai_sdk(folder: Path) -> Reading:
    """Read @ai-sdk/openai, whose package contains its source."""
    reading = Reading(
        "@ai-sdk/openai",
        version_of(folder),
        "items and tools by its types, fields and events by the form of its source",
    )
    source = folder / "src" / "responses"
    package = Package(source)
    api = "openai-responses-api.ts"
    for name, place in (
        ("OpenAIResponsesInputItem", ".input[]"),
        ("OpenAIResponsesTool", ".tools[]"),
        ("OpenAIResponsesIncludeValue", ".include[]"),
    ):
        schema, whole = package.schema(api, name)
        reading.add_places("request", (place + one for one in shape_of(schema, whole).places))
    model = (source / "openai-responses-language-model.ts").read_text()
    begin = model.index("const baseArgs = {")
    reading.add("field", _MEMBER.findall(model[begin : model.index("\n    };", begin)]))
    for file in (*sorted(source.glob("*.ts")), *sorted((folder / "src" / "tool").glob("*.ts"))):
        if "test" not in file.name:
            reading.add("word", words_of(file.read_text()))
    reading.needs(
        ("field", "model"),
        ("item", "function_call_output"),
        ("tool", "function"),
        ("part", "input_text"),
        ("include", "reasoning.encrypted_content"),
        ("word", "response.output_text.delta"),
    )
    return reading


def read_words(client: str, folder: Path, *files: str) -> Reading:
    """Read only the words of a package, from the files that match one of these patterns."""
    reading = Reading(client, version_of(folder), "words of its program; fields and parts are those of openai")
    for pattern in files:
        for file in sorted(folder.glob(pattern)):
            reading.add("word", words_of(file.read_text()))
    reading.needs(("word", "function"))
    return reading
