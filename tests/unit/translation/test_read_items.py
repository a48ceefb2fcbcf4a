"""Items that a client adds to a conversation: what no later request could show a model is refused when it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.translation.chat.body import check_item
from antiphon.translation.item_kinds import (
    CALLS,
    COMPACTIONS,
    HOSTED,
    ITEMS,
    OUTPUTS,
    READ_BEFORE,
    members_of,
    prefix_of,
)
from antiphon.translation.request.body import read_items
from antiphon.types.json import ABSENT
from antiphon.types.tolerance import Tolerance

_PNG = "data:image/png;base64,AAAA"


def _read(*items: Any) -> Raw:
    return Raw(json.dumps(items).encode())


def _check(item: dict[str, Any]) -> None:
    (read,) = read_items("items", _read(item), 1)
    check_item("items[0]", read, Tolerance(strict=True))


@pytest.mark.parametrize("nothing", [ABSENT, Raw(b"null"), Raw(b"[]")])
def test_no_items_are_none(nothing: Raw) -> None:
    assert read_items("items", nothing, 20) == []


def test_each_item_keeps_its_bytes() -> None:
    (first, second) = read_items("items", Raw(b'[{"role":"user", "own":1} , {"type":"reasoning"}]'), 2)
    assert bytes(first.source) == b'{"role":"user", "own":1}' and first.role == "user"
    assert bytes(second.source) == b'{"type":"reasoning"}'


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (b'{"role":"user"}', "items", "invalid_type"),
        (b'"hi"', "items", "invalid_type"),
        (b"[{},5]", "items[1]", "invalid_type"),
        (b'[{"role":5}]', "items[0].role", "invalid_type"),
        (b"[{},{},{}]", "items", "array_above_max_length"),
    ],
)
def test_what_are_no_items_names_its_place(value: bytes, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        read_items("items", Raw(value), 2)
    assert (told.value.param, told.value.code) == (param, code)


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rule"}]},
        # What one model's server cannot take, another one's can.
        {"role": "user", "content": [{"type": "input_image", "image_url": _PNG}]},
        # Fetched when a response needs it.
        {"role": "user", "content": [{"type": "input_file", "file_url": "https://files.example/a.pdf"}]},
        {"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}], "content": None},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "shell_call_output", "call_id": "call_1", "output": [{"stdout": "x"}]},
        # A search by OpenAI's own servers has no call id.
        {"type": "tool_search_output", "tools": ["not an object", {"type": "function", "name": "f"}]},
        {"type": "compaction", "encrypted_content": "sealed"},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": "additional_tools", "role": "developer", "tools": []},
    ],
)
def test_what_a_model_can_be_shown_is_taken(item: dict[str, Any]) -> None:
    _check(item)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({}, "items[0].type"),
        ({"content": "hi"}, "items[0].type"),
        ({"type": "message", "content": "hi"}, "items[0].role"),
        ({"role": "tool", "content": "hi"}, "items[0].role"),
        ({"role": "user"}, "items[0].content"),
        ({"role": "system", "content": [{"type": "input_image", "image_url": _PNG}]}, "items[0].content"),
        ({"type": "reasoning", "content": [{"type": "reasoning_text", "text": 5}]}, "items[0]"),
        ({"type": "reasoning", "summary": [5]}, "items[0][0]"),
        ({"type": "function_call", "call_id": "call_1"}, "items[0].name"),
        ({"type": "function_call_output", "call_id": "call_1", "output": 5}, "items[0].output"),
        ({"type": "compaction"}, "items[0].encrypted_content"),
        ({"type": "compaction_trigger"}, "items[0].type"),
        ({"type": "additional_tools", "tools": "x"}, "items[0].tools"),
        ({"type": "additional_tools", "tools": [{"type": "function", "name": "a b!"}]}, "items[0].tools[0].name"),
        ({"type": "configuration_update", "text": {"format": {"type": "xml"}}}, "items[0].text.format.type"),
        ({"type": "agent_message", "content": 5}, "items[0]"),
        # Read when it is shown: `detail` is no number.
        ({"role": "user", "content": [{"type": "input_image", "image_url": {"url": _PNG, "detail": 5}}]}, "items[0]"),
    ],
)
def test_what_no_model_can_be_shown_is_refused(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        _check(item)
    assert told.value.param == param


# The beginning of an item's id, by its type; `item` where no other is known.
PREFIXES = """
message:msg item_reference:item reasoning:rs function_call:fc function_call_output:fco custom_tool_call:ctc
custom_tool_call_output:cto local_shell_call:lsh local_shell_call_output:lsho shell_call:sh shell_call_output:sho
apply_patch_call:apc apply_patch_call_output:apco tool_search_call:tsc tool_search_output:tso additional_tools:at
compaction:cmp compaction_summary:cmp context_compaction:item agent_message:amsg agent_reasoning:rs
configuration_update:cu web_search_call:ws file_search_call:fs image_generation_call:ig code_interpreter_call:ci
computer_call:cu computer_call_output:cuo mcp_call:mcp mcp_list_tools:mcpl mcp_approval_request:mcpr
mcp_approval_response:mcpa program:cm program_output:cmo compaction_trigger:item
"""


def test_the_id_of_an_item_begins_by_its_type() -> None:
    assert " ".join(f"{kind}:{prefix_of(kind)}" for kind in ITEMS) == " ".join(PREFIXES.split())
    assert prefix_of("unheard_of") == "item"


@pytest.mark.parametrize(
    ("meaning", "kinds"),
    [
        (CALLS, "function_call custom_tool_call local_shell_call shell_call apply_patch_call tool_search_call"),
        (
            OUTPUTS,
            "function_call_output custom_tool_call_output local_shell_call_output shell_call_output "
            "apply_patch_call_output tool_search_output computer_call_output mcp_approval_response program_output",
        ),
        (
            HOSTED,
            "web_search_call file_search_call image_generation_call code_interpreter_call computer_call mcp_call "
            "mcp_list_tools mcp_approval_request program",
        ),
        (COMPACTIONS, "compaction compaction_summary context_compaction"),
        (READ_BEFORE, "additional_tools configuration_update"),
    ],
)
def test_an_item_is_a_call_an_output_or_what_stands_for_both(meaning: frozenset[str], kinds: str) -> None:
    assert meaning == {*kinds.split()}


def test_some_items_have_members_of_their_own() -> None:
    common = members_of("message")
    own = {kind: members_of(kind) - common for kind in ITEMS}
    assert {kind: " ".join(sorted(members)) for kind, members in own.items() if members} == {
        "function_call": "async encrypted_function_args",
        "custom_tool_call": "async",
        "shell_call_output": "max_output_length",
        "agent_message": "author recipient",
        "agent_reasoning": "text",
        "computer_call_output": "acknowledged_safety_checks",
        "mcp_call": "error server_label",
        "program_output": "result",
        "configuration_update": "reasoning text",
    }
