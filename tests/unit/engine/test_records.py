"""Items as they are stored: what names an item by its id still finds it when the conversation goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.stored_items import is_hollow, is_reference, name_calls, prepare_input
from antiphon.engine.ports.actions import Chain, Context, StoredItem
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from antiphon.types.items import InputItem, Shown, shown_of
from tests.support.exchanges import JSON, Outcome, run
from tests.support.fixed import SequentialIds
from tests.support.strict_chat import check_chat_request

ANSWER = json.dumps({"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}).encode()


def _then(items: list[dict[str, Any]]) -> tuple[Outcome, Outcome]:
    """A stored response, and the one that continues it."""
    before = run({"model": "m", "input": items}, [ANSWER], headers=JSON)
    record = before.records[0]
    context = Context(chain=Chain((*record.input_items, *record.output_items)))
    after = run(
        {"model": "m", "previous_response_id": record.id, "input": "more"}, [ANSWER], headers=JSON, context=context
    )
    return before, after


@pytest.mark.parametrize(
    "items",
    [
        [
            {"type": "local_shell_call", "id": "lsh_x", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "id": "lsh_x", "output": "listed"},
        ],
        [
            {"type": "mcp_approval_request", "id": "mcpr_x", "server_label": "s", "name": "t", "arguments": "{}"},
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": False},
        ],
        [
            {"type": "computer_call", "id": "cu_x", "call_id": "c", "action": {"type": "screenshot"}},
            {"type": "computer_call_output", "call_id": "c", "output": {"type": "input_image", "image_url": "data:x"}},
        ],
        [
            {"type": "program", "id": "cm_x", "call_id": "c", "code": "1 + 1", "fingerprint": "f"},
            {"type": "program_output", "id": "cmo_x", "call_id": "c", "result": "2"},
        ],
    ],
    ids=lambda items: items[0]["type"],
)
def test_pitfall_104_calls_of_earlier_turns_keep_their_outputs_in_the_history(items: list[dict[str, Any]]) -> None:
    before, after = _then([{"role": "user", "content": "go"}, *items])
    assert after.head is not None and after.head.status == 200, after.json
    check_chat_request(after.chat)
    # The same, and the answer and the new message after it.
    roles = [message["role"] for message in before.chat["messages"]]
    assert [message["role"] for message in after.chat["messages"]] == [*roles, "assistant", "user"]
    contents = [message["content"] for message in before.chat["messages"]]
    assert [message["content"] for message in after.chat["messages"]][: len(contents)] == contents


def _stored(item: dict[str, Any], *more: dict[str, Any]) -> tuple[StoredItem, Any]:
    row = run({"model": "m", "input": [{"role": "user", "content": "x"}, item, *more]}, [ANSWER], headers=JSON)
    stored = row.records[0].input_items[1]
    return stored, json.loads(stored.body)


def test_hosted_items_are_stored_as_they_came_under_an_id_of_ours() -> None:
    item = {
        "type": "file_search_call",
        "id": "fs_theirs",
        "status": "completed",
        "queries": ["x"],
        "results": [{"file_id": "f", "text": "found", "score": 0.5}],
        "unheard_of": {"a": [1]},
    }
    stored, body = _stored(item)
    assert stored.id.startswith("fs_") and stored.id != "fs_theirs"
    assert body == {**item, "id": stored.id}


def test_the_phase_of_a_message_is_kept() -> None:
    _, body = _stored({"type": "message", "role": "assistant", "content": "hm", "phase": "commentary"})
    assert body["phase"] == "commentary" and body["content"][0]["type"] == "output_text"


def _shown(**item: Any) -> Any:
    """The first item as `input_items` and a conversation show it."""
    record = run({"model": "m", "input": [item, {"role": "user", "content": "so?"}]}, [ANSWER], headers=JSON).records[0]
    return json.loads(record.input_items[0].body)


def test_what_clients_leave_out_of_a_part_is_there_when_it_is_read_back() -> None:
    said = {"type": "output_text", "text": "b"}
    note = {"type": "url_citation", "url": "https://a.example", "title": "A", "start_index": 0, "end_index": 1}
    (part,) = _shown(role="assistant", content=[said])["content"]
    assert part == {**said, "annotations": [], "logprobs": []}
    (part,) = _shown(role="assistant", content=[{**said, "annotations": [note], "logprobs": None}])["content"]
    assert part == {**said, "annotations": [note], "logprobs": []}
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    parts = [{"type": "input_text", "text": "look"}, image, {**image, "detail": "low"}]
    shown = _shown(role="user", content=parts)["content"]
    assert shown == [parts[0], {**image, "detail": "auto"}, parts[2]]


def test_images_in_outputs_of_tools_have_their_detail_too() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    record = run({"model": "m", "input": [call, output]}, [ANSWER], headers=JSON).records[0]
    assert json.loads(record.input_items[1].body)["output"] == [{**image, "detail": "auto"}]


def test_what_truncation_leaves_out_is_stored_as_it_came_though_nobody_could_read_it() -> None:
    """Nobody translates a turn that the model is not shown."""
    old = {"role": "user", "content": ["output_text", "x" * 4000]}
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=200))
    request = {"model": "m", "input": [old, {"role": "user", "content": "so?"}], "truncation": "auto"}
    outcome = run(request, [ANSWER], headers=JSON, routes=routes)
    assert [message["content"] for message in outcome.chat["messages"]] == ["so?"]
    assert json.loads(outcome.records[0].input_items[0].body)["content"] == old["content"]


def test_encrypted_reasoning_is_stored_with_what_it_seals() -> None:
    sealer = Sealer([b"k" * 32])
    sealed = sealer.seal("owner", "reasoning", b'{"text":"a thought"}')
    item = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    record = run(
        {"model": "m", "input": [item, {"role": "user", "content": "so?"}]}, [ANSWER], headers=JSON, sealer=sealer
    ).records[0]
    stored = json.loads(record.input_items[0].body)
    assert stored == {"id": stored["id"], **item}


_IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
_DETAILED = {**_IMAGE, "detail": "auto"}
_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("item", "stored"),
    [
        (
            {"role": "user", "content": "hi"},
            {"type": "message", "status": "completed", "content": [{"type": "input_text", "text": "hi"}]},
        ),
        (
            {"role": "assistant", "content": "ho"},
            {
                "type": "message",
                "status": "completed",
                "content": [{"type": "output_text", "text": "ho", "annotations": [], "logprobs": []}],
            },
        ),
        ({"role": "user", "content": [_IMAGE]}, {"type": "message", "status": "completed", "content": [_DETAILED]}),
        ({**_CALL, "id": "fc_x"}, {"status": "completed"}),
        ({**_CALL, "namespace": "n"}, {"status": "completed"}),
        ({"type": "reasoning", "summary": []}, {}),
        ({"type": "reasoning"}, {"summary": []}),
        (
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "s"}],
                "content": [{"type": "reasoning_text", "text": "t"}],
            },
            {},
        ),
        ({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x", "odd": [1]}, {}),
        ({"type": "web_search_call", "id": "ws_x", "status": "completed", "action": {"type": "search"}}, {}),
    ],
)
def test_an_item_is_stored_whole_and_as_the_api_shows_it(item: dict[str, Any], stored: dict[str, Any]) -> None:
    more = [{"type": f"{item['type']}_output", "call_id": "c", "output": "x"}] if "call_id" in item else []
    row, body = _stored(item, *more)
    assert row.id and row.id != item.get("id") and body == {**item, **stored, "id": row.id}


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ({"call_id": "c", "name": "f"}, {"call_id": "c"}),
        ({"name": "f"}, {"call_id": None, "name": "f"}),
        ({"name": "f", "namespace": "n"}, {"call_id": None, "name": "f", "namespace": "n"}),
    ],
)
def test_an_output_keeps_what_names_its_call(named: dict[str, str], kept: dict[str, Any]) -> None:
    call = {**_CALL, **({"namespace": "n"} if "namespace" in named else {})}
    output = {"type": "function_call_output", **named, "output": "so"}
    row = run({"model": "m", "input": [call, output]}, [ANSWER], headers=JSON).records[0].input_items[1]
    assert json.loads(row.body) == {
        "id": row.id,
        "type": "function_call_output",
        "status": "completed",
        "output": "so",
        **kept,
    }


def test_a_part_that_is_none_is_stored_as_it_came_beside_one_that_lacks_something() -> None:
    odd = [{"text": "no type"}, {"type": 5}, {"type": "output_text_of_another_kind"}]
    old = {"role": "user", "content": [*odd, _IMAGE, {"type": "input_text", "text": "x" * 4000}]}
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=200))
    request = {"model": "m", "input": [old, {"role": "user", "content": "so?"}], "truncation": "auto"}
    stored = json.loads(run(request, [ANSWER], headers=JSON, routes=routes).records[0].input_items[0].body)
    assert stored["content"] == [*odd, _DETAILED, old["content"][-1]]


@pytest.mark.parametrize(
    ("item", "names"),
    [
        ({"type": "item_reference", "id": "msg_1"}, True),
        ({"type": "item_reference"}, True),
        ({"id": "msg_1"}, True),
        ({"id": "msg_1", "role": "user"}, False),
        ({"type": "message", "id": "msg_1"}, False),
        ({}, False),
    ],
)
def test_what_only_names_another_item(item: dict[str, str], names: bool) -> None:
    assert is_reference(InputItem(**item)) is names  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "hollow"),
    [
        ({}, True),
        ({"summary": Raw(b"[]"), "content": Raw(b"null")}, True),
        ({"summary": Raw(b'""')}, True),
        ({"content": Raw(b'[{"type":"reasoning_text","text":"t"}]')}, False),
        ({"summary": Raw(b'[{"type":"summary_text","text":"t"}]')}, False),
        ({"encrypted_content": "x"}, False),
        ({"type": "message"}, False),
    ],
)
def test_reasoning_that_says_nothing_but_its_id(fields: dict[str, Any], hollow: bool) -> None:
    assert is_hollow(InputItem(**{"type": "reasoning", "id": "rs_1", **fields})) is hollow


def test_calls_without_an_id_are_named_by_their_place() -> None:
    items = [
        InputItem(type="message", role="user"),
        InputItem(type="function_call", call_id="c"),
        InputItem(type="custom_tool_call"),
        InputItem(type="web_search_call"),
        InputItem(type="web_search_call", id="ws_1"),
        InputItem(type="function_call_output"),
    ]
    name_calls(items, 3)
    assert [item.id for item in items] == [None, None, "call_5", "call_6", "ws_1", None]


def _prepared(*items: dict[str, Any]) -> list[InputItem]:
    return prepare_input([InputItem(**item) for item in items], SequentialIds())


def test_items_that_name_others_name_them_by_their_new_ids() -> None:
    call, asked, output, answered, unknown = _prepared(
        {"type": "local_shell_call", "id": "lsh_x"},
        {"type": "mcp_approval_request", "id": "mcpr_x"},
        {"type": "local_shell_call_output", "id": "lsh_x"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_x"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_y"},
    )
    assert output.call_id == call.id and answered.approval_request_id == asked.id
    assert unknown.approval_request_id == "mcpr_y" and answered.call_id is None
    assert len({item.id for item in (call, asked, output, answered, unknown)}) == 5
    # By the id of the call where it has one, and by its own where that names a call.
    _, by_call, found, stranger = _prepared(
        {"type": "local_shell_call", "id": "lsh_x", "call_id": "c"},
        {"type": "local_shell_call_output", "id": "lsh_x"},
        {"type": "local_shell_call_output", "id": "c"},
        {"type": "local_shell_call_output", "id": "z"},
    )
    assert (by_call.call_id, found.call_id, stranger.call_id) == ("c", "c", "z")
    (search,) = _prepared({"type": "tool_search_output", "id": "x"})
    assert search.call_id is None


def test_a_call_is_known_to_the_model_by_the_id_it_came_with() -> None:
    items = _prepared(
        {"type": "web_search_call", "id": "ws_x"},
        {"type": "custom_tool_call", "id": "ctc_x", "call_id": "c"},
        {"type": "web_search_call"},
        {"type": "message", "id": "msg_x", "role": "user"},
    )
    assert [shown_of(item) for item in items] == [Shown(call_id="ws_x"), None, None, None]
    (again,) = prepare_input([items[0]], SequentialIds())
    assert shown_of(again) == Shown(call_id="ws_x"), "what was shown before stays"
