"""What Antiphon did with the parts of a request, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.console.treatment import changed_parts, ignored_parts

CAPABILITIES: dict[str, Any] = {
    "fields": {
        "moderation": {"support": "ignored", "note": None},
        "store": {"support": "handled", "note": "Antiphon stores the response"},
        "text.format.json_schema": {"support": "handled", "note": "the schema is an instruction"},
        "truncation.auto": {"support": "ignored", "note": "handled if context_tokens is set"},
        "truncation.disabled": {"support": "sent", "note": None},
        "reasoning.effort": {"support": "sent", "note": None},
        "any other field": {"support": "ignored", "note": "`field_allow` sends it"},
    },
    "include": {"any other value of `include`": {"support": "ignored", "note": "unknown"}},
    "tools": {
        "tools.web_search": {"support": "ignored", "note": "dropped"},
        "tools.file_search": {"support": "handled", "note": "it runs"},
        "any other tool": {"support": "ignored", "note": "odd"},
        "any other member of a tool": {"support": "ignored", "note": "odd member"},
    },
}


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("moderation", "the model server does not support this part"),
        ("tools.web_search", "the operator has not enabled the tool ('web_search.provider'); dropped"),
        ("tools.file_search", "now handled (it runs); this request used a form without effect, or"),
        ("truncation", "handled if context_tokens is set"),
        ("idempotency-key", "Antiphon returns an earlier result only for"),
        ("foo", "Antiphon does not know this name; `field_allow` sends it"),
        ("include:foo", "Antiphon does not know this name; unknown"),
        ("tools.foo", "Antiphon does not know this name; odd"),
        ("tools.function.foo", "Antiphon does not know this name; odd member"),
        ("tools[0].allowed_callers", "Antiphon does not know this name; odd member"),
        ("input.foo", "Antiphon does not know this name"),
        ("reasoning.effort:huge", "Antiphon does not know this value"),
    ],
)
def test_an_ignored_part_has_a_reason(name: str, note: str) -> None:
    (one,) = ignored_parts([name], CAPABILITIES)
    assert one.name == name and one.note.startswith(note)


def test_without_the_table_only_the_names_are_known() -> None:
    assert [(one.name, one.note) for one in ignored_parts(["foo"], {})] == [("foo", "")]


def test_handled_parts_and_other_values_are_listed() -> None:
    request = {
        "model": "alias",
        "store": True,
        "reasoning": {"effort": "xhigh"},
        "text": {"format": {"type": "json_schema", "schema": {}}},
        "tools": [{"type": "file_search"}],
    }
    chat = {"model": "real", "reasoning_effort": "high", "response_format": {"type": "json_object"}}
    found = dict(changed_parts(json.dumps(request).encode(), json.dumps(chat).encode(), CAPABILITIES))
    assert found == {
        "model": "Antiphon sent 'real' instead of 'alias'",
        "reasoning.effort": "Antiphon sent 'high', the nearest value to 'xhigh' that the upstream's profile allows",
        "text.format": "Antiphon sent the format 'json_object' instead of 'json_schema'",
        "store": "Antiphon stores the response",
        "text.format.json_schema": "the schema is an instruction",
        "tools.file_search": "it runs",
    }


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"x"', b'{"store": false, "tools": [1, null], "text": {"format": 1}}']
)
def test_any_body_can_be_read(body: bytes) -> None:
    assert changed_parts(body, body, CAPABILITIES) == []
