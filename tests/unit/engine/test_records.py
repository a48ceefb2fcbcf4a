"""Items as they are stored: what names an item by its id still finds it when the conversation goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.ports.actions import Chain, Context, StoredItem
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from tests.support.exchanges import JSON, Outcome, run
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
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": True},
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


def _stored(item: dict[str, Any]) -> tuple[StoredItem, Any]:
    row = run({"model": "m", "input": [{"role": "user", "content": "x"}, item]}, [ANSWER], headers=JSON)
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
