"""Small made-up packages: what is invented in them is found and has no row, what is known is no news."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lab.drift import codex, read_npm, read_python
from lab.drift.found import Found, Reading, of_places
from lab.drift.report import Line, Reason, lines_of, reasons_in, table, unused
from lab.drift.rows import own_rows
from lab.drift.typescript import Package, words_of
from tests.support.shapes import shape_of

MADE = Path(__file__).parent / "made_up"
ROWS = own_rows()


def _news(*readings: Reading) -> set[tuple[str, str]]:
    return {(line.found.kind, line.found.name) for line in lines_of(readings, ROWS, [])}


INVENTED = {
    ("field", "omen"),
    ("field", "reasoning.mood"),
    ("item", "omen_call"),
    ("item field", "function_call.aura"),
    ("part", "input_smell"),
    ("part field", "input_text.font"),
    ("tool", "divination"),
    ("tool field", "function.telepathic"),
    ("tool field", "mcp.aura"),
    ("choice", "divination"),
    ("include", "omen_call.meaning"),
    ("value", "reasoning.effort=heroic"),
}


def test_what_is_invented_in_the_types_of_the_python_client_has_no_row() -> None:
    stable, beta = read_python.read_openai(Path(sys.executable), MADE / "python", "9.0")
    answered = {
        ("output", "omen_call"),
        ("response field", "omen"),
        ("event", "response.omen.seen"),
        ("event field", "response.output_text.delta.aura"),
        ("route", "POST /omens/{}"),
        ("frame", "response.whisper"),
    }
    assert _news(stable) == INVENTED | answered
    assert _news(beta) == {("field", "seance")}


def test_what_is_invented_in_the_types_of_the_node_client_has_no_row() -> None:
    reading = read_npm.read_openai(MADE / "node" / "openai")
    answered = {
        ("output", "omen_call"),
        ("output field", "function_call.aura"),
        ("event", "response.omen.seen"),
        ("route", "GET /omens/{}"),
    }
    assert _news(reading) == INVENTED | answered
    assert reading.version == "9.1.0"
    # Of both clients it is one line.
    stable = read_python.read_openai(Path(sys.executable), MADE / "python", "9.0")[0]
    lines = lines_of([stable, reading], ROWS, [])
    assert Line(Found("item", "omen_call"), ("openai (Python)", "openai (Node)")) in lines


def test_what_is_invented_in_the_ai_sdk_has_no_row() -> None:
    reading = read_npm.read_ai_sdk(MADE / "node" / "ai-sdk")
    assert _news(reading) == {
        ("field", "omen"),
        ("item", "omen_call"),
        ("tool field", "web_search.aura"),
        ("include", "omen_call.meaning"),
        ("word", "response.omen.seen"),
        ("word", "divination"),
    }


@pytest.mark.parametrize("folder", ["python", "node"])
def test_words_of_programs_are_found_where_they_are_a_type(folder: str) -> None:
    if folder == "python":
        words = set(read_python.words_of((MADE / "python/agents/items.py").read_text()))
    else:
        words = set(words_of((MADE / "node/words.mjs").read_text()))
    assert words == {"function", "omen_call", "omen_result", "omen_asked", "omen_typed"}


def test_a_word_that_a_clients_types_have_is_no_news() -> None:
    """It stands in something that was found by itself."""
    typed = Reading("types", "1", "")
    typed.add_places("request", [".input[]<computer_call>", ".input[]<computer_call>.action<click>"])
    words = Reading("words", "1", "")
    words.add("word", ["click", "function", "omen"])
    assert _news(typed, words) == {("word", "omen")}


def test_codex_items_are_those_of_its_own_schema() -> None:
    reading = Reading("codex", "1", "")
    document = json.loads((MADE / "codex.schemas.json").read_text())
    reading.add_places("request", codex.item_places(document))
    assert _news(reading) == {("item", "omen_call"), ("item field", "message.aura"), ("part", "input_smell")}
    with pytest.raises(KeyError):
        codex.item_places({"definitions": {"v2": {}}})


def test_the_models_of_codex_are_those_of_its_catalogue() -> None:
    assert codex.models_in(
        b'\x00{"slug": "omen-1","name":"x"},{"slug":"omen-2.5"}"slug": "a b"\xff"slug": "omen-1"'
    ) == [
        "omen-1",
        "omen-2.5",
    ]


def test_what_codex_asks_is_recorded() -> None:
    body: dict[str, Any] = {
        "model": "m",
        "omen": 1,
        "include": ["omen_call.meaning", "reasoning.encrypted_content"],
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_smell", "smell": "x"}]}],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
        "client_metadata": {"session": "s"},
    }
    with codex.recording() as (url, asked):
        for path in ("/v1/models?client_version=1", "/v1/responses"):
            data = json.dumps(body).encode() if path == "/v1/responses" else None
            request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
            try:
                answer = urllib.request.urlopen(request, timeout=30).read()
            except urllib.error.HTTPError as error:
                with error:
                    answer = error.read()
    assert b"response.completed" in answer
    assert [route for route, _ in asked] == ["GET /models", "POST /responses"]
    reading = Reading("codex", "1", "")
    reading.add_places("request", codex.body_places(asked[1][1]))
    assert _news(reading) == {("field", "omen"), ("include", "omen_call.meaning"), ("part", "input_smell")}


@pytest.mark.parametrize(
    ("program", "places"),
    [
        (
            "type A = { a: 'x' | 'y' | null; readonly b?: B[]; 'c-d': number }; interface B { type: 'k'; n: 1 }",
            {".a", ".a=x", ".a=y", ".b", ".b[]", ".b[]<k>", ".b[]<k>.type", ".b[]<k>.n", ".c-d"},
        ),
        (
            "interface A extends B { a: string } interface B { b: C.D } namespace C { interface D { e: 1 } }",
            {".a", ".b", ".b.e"},
        ),
        (
            "// it's {\n/* } ' */ const x = { a: '}' }; function f(): void { if (a < 3) { g('{'); } } type A = {a: 1}",
            {".a"},
        ),
        (
            "type A = Omit<B, 'b'> & { a: Array<C> }; type B = {b: 1}; type C = {type: 'k'} | string",
            {".b", ".a", ".a[]", ".a[]<k>", ".a[]<k>.type"},
        ),
        (
            "type A<T = {}> = { a: T extends string ? 'x' : 'y'; f(x: { g: 1 }): void; [key: string]: unknown }",
            {".a"},
        ),
    ],
)
def test_types_are_read(tmp_path: Path, program: str, places: set[str]) -> None:
    (tmp_path / "a.ts").write_text(program)
    schema, whole = Package(tmp_path).schema("a.ts", "A")
    assert shape_of(schema, whole).places - {""} == places


def test_types_of_other_files_and_namespaces_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.d.ts").write_text(
        "import * as Own from './a.js'; import * as Other from './other.js'; import { F } from 'library';"
        "import { C as D, type E } from './other.js';"
        "export interface A { own: Own.B.Inner; other: Other.C; d: D; e?: E | null; f: F }"
        "export declare namespace B { interface Inner { type: 'inner'; deep: Deep } interface Deep { x: 'y' } }"
    )
    (tmp_path / "other.d.ts").write_text("export interface C { type: 'c' } export type E = Array<C>;")
    schema, whole = Package(tmp_path).schema("a.d.ts", "A")
    shape = shape_of(schema, whole)
    assert {".own<inner>.deep.x=y", ".other<c>", ".d<c>", ".e[]<c>", ".f"} <= shape.places
    assert ".f" in shape.open
    with pytest.raises(KeyError):
        Package(tmp_path).schema("a.d.ts", "Nothing")


def test_a_reading_that_misses_what_every_client_has_is_an_error() -> None:
    reading = Reading("openai", "9.0", "")
    reading.add("item", ["message"])
    reading.needs(("item", "message"))
    with pytest.raises(ValueError, match="no tool function, field model"):
        reading.needs(("item", "message"), ("tool", "function"), ("field", "model"))


def test_a_field_of_something_without_a_row_is_no_line_of_its_own() -> None:
    found = of_places("request", [".input[]<omen_call>", ".input[]<omen_call>.meaning", ".input[]<omen_call>.type"])
    assert found == {Found("item", "omen_call"), Found("item field", "omen_call.meaning")}
    assert _news(Reading("one", "1", "", found)) == {("item", "omen_call")}


def test_a_line_without_a_reason_is_told_apart_and_old_reasons_are_told() -> None:
    reading = Reading("one", "1", "")
    reading.add("item", ["omen_call", "seance", "message"])
    reasons = [Reason("item", ("omen_*", "gone"), "not ours"), Reason("tool", ("seance",), "another kind")]
    lines = lines_of([reading], ROWS, reasons)
    assert [(line.found.name, line.why) for line in lines] == [("omen_call", "not ours"), ("seance", "")]
    assert unused(lines, reasons) == ["item gone", "tool seance"]
    assert "| item of `input` | `seance` | one | **no row** |" in table(lines)


def test_the_reasons_that_are_kept_can_be_read() -> None:
    reasons = reasons_in((Path(__file__).parents[2] / "lab" / "drift" / "known.toml").read_text())
    assert len(reasons) > 20
    assert not [name for reason in reasons for name in reason.names if ROWS.has(Found(reason.kind, name))]


@pytest.mark.parametrize(
    "entry",
    [
        'kind = "omen"\nnames = ["a"]\nwhy = "w"',
        'kind = "item"\nnames = []\nwhy = "w"',
        'kind = "item"\nnames = ["a"]\nwhy = " "',
    ],
)
def test_a_reason_without_words_or_names_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 1"):
        reasons_in(f"[[known]]\n{entry}")
