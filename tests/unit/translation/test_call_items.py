"""Earlier calls and their outputs, of every kind, as the model reads them: the exact words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.translation.chat.call_items import call_of, hosted_call, native_output, sound_arguments, told
from antiphon.translation.chat.content import ContentRules
from antiphon.translation.profiles import PROFILES
from antiphon.types.items import InputItem, Shown, with_shown


def _item(kind: str, **fields: Any) -> InputItem:
    source = json.dumps({"type": kind, **fields}).encode()
    item = msgspec.json.decode(source, type=InputItem)
    item.source = Raw(source)
    return item


def _text(fragment: bytes | None) -> Any:
    return None if fragment is None else json.loads(b'"%b"' % fragment)


def _hosted(kind: str, **fields: Any) -> tuple[str, str, Any, Any]:
    call_id, name, arguments, result = hosted_call(_item(kind, **fields), 3)
    return call_id, name, _text(arguments), _text(result)


@pytest.mark.parametrize(
    ("kind", "fields", "call"),
    [
        (
            "web_search_call",
            {"id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
            (
                "ws_1",
                "web_search",
                '{"action":{"type":"search","query":"q"}}',
                "Done; what was found is in the answer.",
            ),
        ),
        (
            "file_search_call",
            {"id": "fs_1", "status": "completed", "queries": ["q"], "results": [{"text": "found"}]},
            ("fs_1", "file_search", '{"queries":["q"]}', '[{"text":"found"}]'),
        ),
        (
            "code_interpreter_call",
            {"id": "ci_1", "code": "1", "container_id": "cntr_1", "outputs": [{"type": "logs", "logs": "1"}]},
            ("ci_1", "code_interpreter", '{"code":"1"}', '[{"type":"logs","logs":"1"}]'),
        ),
        (
            "image_generation_call",
            {"id": "ig_1", "prompt": "cat", "revised_prompt": "a cat", "result": "AAAA", "fingerprint": "f"},
            ("ig_1", "image_generation", '{"prompt":"cat"}', "a cat"),
        ),
        (
            "mcp_call",
            {"id": "m_1", "name": "roll", "server_label": "dice", "arguments": '{"x":1}', "output": "6"},
            ("m_1", "dice__roll", '{"x":1}', "6"),
        ),
        (
            "mcp_call",
            {"id": "m_1", "name": "roll", "arguments": {"x": 1}, "output": "", "error": {"code": 1}},
            ("m_1", "roll", '{"x":1}', '{"code":1}'),
        ),
        (
            "mcp_call",
            {"name": "", "server_label": "dice", "arguments": "  ", "output": "5", "error": "bad"},
            ("mcp_call_3", "mcp", "{}", "5\nbad"),
        ),
        (
            "mcp_call",
            {"name": "a", "server_label": "", "arguments": "[]"},
            ("mcp_call_3", "a", '{"invalid_arguments":"[]"}', "Done."),
        ),
        ("mcp_call", {"arguments": None}, ("mcp_call_3", "mcp", "{}", "Done.")),
        (
            "mcp_approval_request",
            {"id": "mcpr_1", "name": "roll", "server_label": "dice", "arguments": "{}"},
            ("mcpr_1", "dice__roll", "{}", "The call waits for the user's approval."),
        ),
        (
            "mcp_list_tools",
            {"id": "l_1", "server_label": "dice", "tools": [{"name": "roll"}]},
            ("l_1", "mcp_list_tools", '{"server_label":"dice"}', '[{"name":"roll"}]'),
        ),
        ("later_call", {"call_id": "c_1", "id": "x_1", "approval_request_id": "a"}, ("c_1", "later", "{}", "Done.")),
    ],
)
def test_an_item_of_a_hosted_tool_is_a_call_with_its_result(
    kind: str, fields: dict[str, Any], call: tuple[str, str, str, str]
) -> None:
    assert _hosted(kind, **fields) == call


def test_a_result_is_cut_at_a_mebibyte() -> None:
    *_, result = _hosted("file_search_call", results="x" * (1 << 20) + "y")
    assert result == "x" * (1 << 20)


def test_a_call_has_the_id_by_which_the_model_knew_it() -> None:
    item = with_shown(_item("web_search_call", id="ws_1"), Shown(call_id="call_7"))
    assert hosted_call(item, 3)[0] == "call_7"


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("tool_search_output", {"tools": []}, "No tools were found."),
        ("tool_search_output", {"tools": None}, "No tools were found."),
        (
            "tool_search_output",
            {"tools": [], "status": "incomplete"},
            "The search failed: nothing was looked for. Its arguments must be a JSON object with 'query', a string "
            "that says what the tools should do or how they are called. Search again.",
        ),
        (
            "tool_search_output",
            {
                "tools": [
                    {"type": "function", "name": "f", "description": "Do it."},
                    {"type": "function", "name": "g"},
                    {"type": "namespace", "name": "n", "tools": [{"name": "h", "description": "More."}, "odd"]},
                    {"type": "mcp", "server_label": "dice", "allowed_tools": ["roll", "throw"]},
                    {"type": "mcp", "server_label": "any", "allowed_tools": None},
                    "odd",
                ]
            },
            "Tools that can be called now:\nf: Do it.\ng\nn__h: More.\ndice__roll\ndice__throw",
        ),
        ("mcp_approval_response", {"approve": True}, "The user approved it."),
        ("mcp_approval_response", {"approve": False, "reason": "too dear"}, "The user refused it. Reason: too dear"),
        ("mcp_approval_response", {"approve": True, "reason": ""}, "The user approved it."),
        ("program_output", {"result": "6"}, "6"),
        ("program_output", {"result": {"a": 1}}, '{"a":1}'),
        ("program_output", {"result": ""}, "Done."),
        ("apply_patch_call_output", {"status": "completed", "output": ["a"]}, 'The patch was applied.\n["a"]'),
        ("shell_call_output", {"output": []}, "(no output)"),
        (
            "shell_call_output",
            {
                "output": [
                    {"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 0}},
                    {"stdout": "", "outcome": {"type": "timeout", "exit_code": 9}},
                    {"stderr": "c", "outcome": None},
                    "odd",
                    {"outcome": {"type": "exit"}},
                ]
            },
            "a\nb\n(exit code 0)\n(timed out)\nc\n",
        ),
        ("shell_call_output", {"output": "as it is"}, None),
        ("function_call_output", {"output": "as it is"}, None),
    ],
)
def test_an_output_of_a_kind_of_its_own_is_told_in_words(kind: str, fields: dict[str, Any], text: str | None) -> None:
    assert _text(native_output("input[1]", _item(kind, **fields))) == text


def test_a_reason_is_a_text() -> None:
    with pytest.raises(InvalidRequest) as refused:
        native_output("input[1]", _item("mcp_approval_response", approve=True, reason=5))
    assert refused.value.param == "input[1].reason"


@pytest.mark.parametrize(
    ("kind", "fields", "call"),
    [
        ("function_call", {"call_id": "c", "name": "f", "namespace": "n", "arguments": "{}"}, ("c", "n__f", "{}")),
        ("function_call", {"name": "f"}, ("call_4", "f", "{}")),
        ("custom_tool_call", {"id": "i", "name": "p", "input": "x\n"}, ("i", "p", '{"input":"x\\n"}')),
        ("custom_tool_call", {"call_id": "c", "name": "p", "namespace": "n"}, ("c", "n__p", '{"input":""}')),
        ("shell_call", {"call_id": "c", "action": {"commands": ["ls"]}}, ("c", "shell", '{"commands": ["ls"]}')),
        (
            "local_shell_call",
            {"call_id": "c", "action": {"type": "exec", "command": ["ls"], "env": {}, "user": None}},
            ("c", "local_shell", '{"command":["ls"],"env":{}}'),
        ),
        ("apply_patch_call", {"call_id": "c", "operation": {"path": "a"}}, ("c", "apply_patch", '{"path": "a"}')),
        ("tool_search_call", {"call_id": "c", "arguments": {"query": "q"}}, ("c", "tool_search", '{"query": "q"}')),
        ("tool_search_call", {"call_id": "c"}, ("c", "tool_search", "{}")),
    ],
)
def test_a_call_of_the_clients_is_shown_as_the_model_made_it(
    kind: str, fields: dict[str, Any], call: tuple[str, str, str]
) -> None:
    call_id, name, arguments = call_of("input[0]", _item(kind, **fields), 4)
    assert (call_id, name, json.loads(bytes(arguments))) == call


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("function_call", {"call_id": "c"}, "input[0].name"),
        ("custom_tool_call", {"call_id": "c"}, "input[0].name"),
        ("custom_tool_call", {"call_id": "c", "name": "p", "input": 5}, "input[0].input"),
        ("function_call", {"call_id": "c", "name": "f", "arguments": 5}, "input[0].arguments"),
    ],
)
def test_a_call_without_its_parts_is_refused_by_their_place(kind: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        call_of("input[0]", _item(kind, **fields), 4)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("sent", "sound"),
    [
        (b"", "{}"),
        (b'""', "{}"),
        (b'" "', "{}"),
        (b'{"a":1}', '{"a":1}'),
        (b'"{\\"a\\":1}"', '{"a":1}'),
        (b'"[]"', '{"invalid_arguments":"[]"}'),
    ],
)
def test_arguments_are_always_an_object(sent: bytes, sound: str) -> None:
    assert json.loads(bytes(sound_arguments("input[0]", Raw(sent)))) == sound


@pytest.mark.parametrize(
    ("model", "output", "text", "shown"),
    [
        ("generic", "a plot", "a plot", True),
        ("generic", "", "(The output is in the next message.)", True),
        ("deepseek", "a plot", "a plot\n[There are images, which cannot be shown to you.]", False),
        ("deepseek", "", "[There are images, which cannot be shown to you.]", False),
    ],
)
def test_pictures_of_a_result_go_where_they_can_be_seen(model: str, output: str, text: str, shown: bool) -> None:
    rules = ContentRules(PROFILES[model], {})
    image = "data:image/png;base64,AAAA"
    said, pictures = told("output[0]", output.encode(), (image,), rules)
    assert _text(said) == text
    made = {"type": "image_url", "image_url": {"url": image, "detail": "auto"}}
    assert [json.loads(bytes(picture)) for picture in pictures] == ([made] if shown else [])
    assert told("output[0]", output.encode(), (), rules) == (output.encode(), [])
