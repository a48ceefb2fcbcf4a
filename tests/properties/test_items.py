"""Any items at all become a chat request the strictest server takes, or an error that names them; so do stored ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.engine.exchange.stored_items import prepare_input, read_history, stored_input
from antiphon.errors import InvalidRequest
from antiphon.translation.chat.body import translate_request
from antiphon.translation.chat.context_size import keep_latest
from antiphon.translation.profiles import PROFILES
from antiphon.translation.request.body import read_request
from antiphon.translation.values import ItemSources
from antiphon.types.items import InputItem
from tests.support.fixed import SequentialIds
from tests.support.strict_chat import check_chat_request

_TEXT = st.sampled_from(["", "a", 'quote " and \\ and \n', "é🙂", "x" * 70])
_ID = st.sampled_from(["c1", "c2", "c3", "call_" + "x" * 60, "ünïcode id"])
_NAME = st.sampled_from(["f", "g", "a.b c", "n" * 80])
_IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "original"}
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


def _one(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    values = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fields.items()}
    return st.fixed_dictionaries(values)


def _parts(kind: str) -> st.SearchStrategy[Any]:
    return _TEXT | st.lists(_one(type=kind, text=_TEXT), max_size=3)


_USER_PARTS = _TEXT | st.lists(
    _one(type="input_text", text=_TEXT)
    | st.just(_IMAGE)
    | _one(type="input_file", filename=st.sampled_from(["a.txt", "a.pdf"]), file_data="aGk="),
    max_size=3,
)
_OUTPUT = _USER_PARTS | _one(text=_TEXT) | st.dictionaries(_TEXT, _TEXT, max_size=2)
_MESSAGES = (
    _one(role="user", content=_USER_PARTS)
    | _one(type="message", role=st.sampled_from(["system", "developer"]), content=_parts("input_text"))
    | _one(
        type="message", id=_ID, role="assistant", content=_parts("output_text"), status="completed", phase="commentary"
    )
)
_SUMMARY = st.lists(_one(type="summary_text", text=_TEXT), max_size=2)
_THOUGHTS = _one(
    type="reasoning",
    id=_ID,
    summary=_SUMMARY,
    content=st.none() | st.lists(_one(type="reasoning_text", text=_TEXT), max_size=2),
    encrypted_content=st.none() | st.just("sealed"),
)
_SHELL_OUTPUT = st.lists(
    _one(stdout=_TEXT, stderr=_TEXT, outcome=_one(type="exit", exit_code=st.integers(0, 3))), max_size=2
)
_PATCH = {"type": "delete_file", "path": "a"}
# A call and its output, each in every form that clients send.
_PAIRS: st.SearchStrategy[list[dict[str, Any]]] = _ID.flatmap(
    lambda call: st.one_of(
        st.tuples(
            _one(type="function_call", call_id=call, name=_NAME, arguments=st.sampled_from(["", "{}", '{"a":1}', "{"])),
            _one(type="function_call_output", call_id=call, output=_OUTPUT),
        ),
        st.tuples(
            _one(type="custom_tool_call", id=_ID, call_id=call, name=_NAME, input=_TEXT),
            _one(type="custom_tool_call_output", call_id=call, output=_OUTPUT),
        ),
        st.tuples(
            _one(type="local_shell_call", id=f"lsh_{call}", call_id=call, action={"type": "exec", "command": ["ls"]}),
            _one(type="local_shell_call_output", id=st.sampled_from([call, f"lsh_{call}"]), output=_TEXT),
        ),
        st.tuples(
            _one(type="shell_call", call_id=call, action={"commands": ["ls"]}),
            _one(type="shell_call_output", call_id=call, output=_SHELL_OUTPUT),
        ),
        st.tuples(
            _one(type="apply_patch_call", call_id=call, operation=_PATCH),
            _one(type="apply_patch_call_output", call_id=call, status="completed"),
        ),
        st.tuples(
            _one(type="tool_search_call", call_id=st.just(call), execution="client", arguments={"query": "x"}),
            _one(type="tool_search_output", call_id=st.just(call), tools=[]),
        ),
        st.tuples(
            _one(type="computer_call", id=f"cu_{call}", call_id=call, action={"type": "click", "x": 1, "y": 2}),
            _one(
                type="computer_call_output",
                call_id=call,
                output={"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="},
            ),
        ),
        st.tuples(
            _one(type="mcp_approval_request", id=call, name=_NAME, arguments="{}", server_label="s"),
            _one(type="mcp_approval_response", approval_request_id=call, approve=st.booleans()),
        ),
    ).map(list)
)
_HOSTED = st.one_of(
    _one(type="web_search_call", id=_ID, status="completed", action={"type": "search", "query": "x"}),
    _one(type="file_search_call", id=_ID, queries=["x"], results=st.none() | st.just([{"text": "found"}])),
    _one(type="code_interpreter_call", id=_ID, code=_TEXT, outputs=st.none(), container_id="c"),
    _one(type="image_generation_call", id=_ID, result="AA=="),
    _one(type="mcp_list_tools", id=_ID, server_label="s", tools=[{"name": "t", "input_schema": {}}]),
    _one(type="mcp_call", id=_ID, server_label="s", name=_NAME, arguments=_TEXT, output=_TEXT, error=_JUNK),
    _one(type="web_search_call", extra=_JUNK),
)
_CONVERSATIONS = st.lists(
    _MESSAGES.map(lambda item: [item]) | _THOUGHTS.map(lambda item: [item]) | _HOSTED.map(lambda item: [item]) | _PAIRS,
    min_size=1,
    max_size=6,
).map(lambda groups: [item for group in groups for item in group])
_PROFILES = st.sampled_from(sorted(PROFILES))


def _unseal(text: str, param: str) -> bytes:
    return b'{"text":"thoughts","details":[]}'


def _translate(items: list[tuple[str, InputItem]], body: bytes, profile: str) -> dict[str, Any]:
    request = read_request(body, max_items=1000, max_tools=100)
    translated = translate_request(request, items, PROFILES[profile], sources=ItemSources(_unseal))
    chat: dict[str, Any] = json.loads(translated.body)
    return chat


def _body(items: list[dict[str, Any]]) -> bytes:
    return json.dumps({"model": "m", "input": items}).encode()


def _read(items: list[dict[str, Any]]) -> list[InputItem]:
    return read_request(_body(items), max_items=1000, max_tools=100).input


def _named(items: list[InputItem]) -> list[tuple[str, InputItem]]:
    return [(f"input[{number}]", item) for number, item in enumerate(items)]


@given(_CONVERSATIONS, _PROFILES)
def test_valid_items_become_what_a_strict_server_takes(items: list[dict[str, Any]], profile: str) -> None:
    try:
        chat = _translate(_named(_read(items)), _body(items), profile)
    except InvalidRequest as refusal:
        assert refusal.message and refusal.param
        # What a profile cannot take, and ids that mean two things; nothing else is wrong with these items.
        assert refusal.code == "unsupported_parameter" or "call" in refusal.message, refusal.message
        return
    if chat["messages"]:
        check_chat_request(chat)


_KEYS = st.sampled_from([*InputItem.__struct_fields__, "results", "queries", "error", "other"])
_TYPES = st.sampled_from(
    [
        *("message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "shell_call"),
        *("shell_call_output", "local_shell_call", "apply_patch_call", "apply_patch_call_output", "tool_search_call"),
        *("tool_search_output", "web_search_call", "mcp_call", "mcp_approval_response", "computer_call"),
        *("computer_call_output", "compaction", "additional_tools", "program", "program_output"),
    ]
)


@given(st.lists(st.tuples(_TYPES, st.dictionaries(_KEYS, _JUNK, max_size=5)), min_size=1, max_size=4))
def test_junk_in_items_is_an_error_or_a_valid_request(drawn: list[tuple[str, dict[str, Any]]]) -> None:
    items = [{"role": "user", "content": "x"}, *({**fields, "type": kind} for kind, fields in drawn)]
    try:
        chat = _translate(_named(_read(items)), _body(items), "generic")
    except InvalidRequest as refusal:
        assert refusal.message
        return
    check_chat_request(chat)


@settings(deadline=None)
@given(_CONVERSATIONS)
def test_stored_items_say_to_the_model_what_they_said_when_they_came(items: list[dict[str, Any]]) -> None:
    body = _body(items)
    read = _read(items)
    try:
        said = _translate(_named(read), body, "generic")
    except InvalidRequest:
        return
    stored = stored_input(prepare_input(read, SequentialIds()))
    again = _translate([("history", item) for item in read_history(stored)], body, "generic")
    assert _without_ids(again) == _without_ids(said)


@given(_CONVERSATIONS, st.integers(0, 400))
def test_what_truncation_leaves_is_valid_when_the_whole_was(items: list[dict[str, Any]], tokens: int) -> None:
    body, named = _body(items), _named(_read(items))
    try:
        _translate(named, body, "generic")
    except InvalidRequest:
        return
    chat = _translate(keep_latest(named, tokens), body, "generic")
    if chat["messages"]:
        check_chat_request(chat)


def _without_ids(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages with call ids by their order: items of hosted tools get ids of ours when they are stored."""
    messages: list[dict[str, Any]] = chat["messages"]
    for message in messages:
        message.pop("tool_call_id", None)
        for call in message.get("tool_calls", ()):
            del call["id"]
    return messages
