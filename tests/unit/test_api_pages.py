"""How schemas are compared, and what the pages about the API say."""

from __future__ import annotations

from typing import Any

from tests.schemas.api_differences import page as differences
from tests.schemas.api_page import page, words
from tests.support.shapes import Shape, above_of, shape_of
from tests.support.whole_api import whole_document

WHOLE: dict[str, Any] = {
    "components": {
        "schemas": {
            "Tool": {
                "oneOf": [
                    {"type": "object", "properties": {"type": {"enum": ["f"]}, "name": {"type": "string"}}},
                    {"$ref": "#/components/schemas/Space"},
                ]
            },
            "Space": {
                "properties": {
                    "type": {"const": "space"},
                    "tools": {"type": "array", "items": {"$ref": "#/components/schemas/Tool"}},
                }
            },
        }
    }
}


def test_places_of_unions_and_references() -> None:
    found = shape_of({"$ref": "#/components/schemas/Tool"}, WHOLE)
    assert found.places >= {"<f>", "<f>.name", "<space>", "<space>.tools", "<space>.tools[]"}
    # What is in itself is not followed.
    assert found.is_open("<space>.tools[]<f>.name")


def test_the_same_said_in_other_words_has_the_same_places() -> None:
    one = {"allOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"enum": ["x", "y"]}}}]}
    other = {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"enum": ["y", "x"]}, {"type": "null"}]}},
    }
    assert shape_of(one, {}).places == shape_of(other, {}).places == {"", ".a", ".b", ".b=x", ".b=y"}


def test_anything_is_open_and_anything_else_is_not() -> None:
    assert shape_of({"properties": {"a": {"type": "object"}}}, {}).is_open(".a.b")
    told = {"anyOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "description": "others"}]}
    assert not shape_of(told, {}).is_open(".b")
    assert shape_of({"properties": {"a": {}}, "additionalProperties": True}, {}).is_open(".b")


def test_what_is_around_a_place() -> None:
    assert above_of("body.a[]<t>.b=w") == ["body", "body.a", "body.a[]", "body.a[]<t>", "body.a[]<t>.b"]
    assert Shape(open={"body.a"}).is_open("body.a[]")


def test_the_page_has_every_operation_and_schema() -> None:
    document, text = whole_document(), page(whole_document())
    for path, item in document["paths"].items():
        for method in item:
            assert path.startswith("/v1/vector-stores") or f"`{method.upper()} {path}`" in text
            assert path.startswith("/v1/vector-stores") or f"\n| `{method.upper()}` | `{path}` | " in text
    assert all(f"\n### {name}\n" in text for name in document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        assert all(f"`{name}`" in text for name in schema.get("properties", ()))
    assert text.count("\n") < 1800


def test_words() -> None:
    assert words({"type": ["integer", "null"], "minimum": 1, "maximum": 4}) == "integer from 1 to 4, or null"
    assert words({"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "string"}]}) == "`a` or another string"
    assert words({"type": "array", "items": {"const": "x"}, "maxItems": 3}) == "list of at most 3 `x`"
    assert words({"type": ["array", "null"], "items": {"type": "string"}}) == "list of strings, or null"
    assert words({"type": "array", "items": {}}) == "list"
    assert words({"type": "object", "additionalProperties": {}}) == "object"
    assert words({"type": "object", "additionalProperties": {"type": ["number", "string"]}}) == (
        "object whose values are numbers or strings"
    )


def test_the_differences_say_what_only_one_side_has() -> None:
    text = differences(whole_document())
    assert "\n- `GET /conversations`: List conversations\n" in text
    assert "\n| `.extra_body` |  |  |  | yes |\n" in text
    # The page on compatibility has it.
    assert "`.top_k`" not in text
    assert "\n| `.moderation` | yes | yes |  |  |\n" in text
    # Both have it.
    assert "| `.temperature` |" not in text


def test_an_operation_that_is_taken_away_is_a_difference() -> None:
    document = whole_document()
    paths = {path: item for path, item in document["paths"].items() if path != "/v1/files/{file_id}"}
    assert "- `DELETE /files/{}`" not in differences(document)
    assert "- `DELETE /files/{}`" in differences({**document, "paths": paths})
