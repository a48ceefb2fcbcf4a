"""Turns of a conversation over the HTTP door: what the model is shown, what is kept, and the lock from every end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.actions import StoredItem
from antiphon.sealing import Sealer
from tests.support.chat_server import (
    DEADLINE,
    Wait,
    WaitGone,
    answer,
    completion,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.http_door import OpenHttpDoor, RawAnswer, open_http_door, post_bytes

TEXT = {"model": "m", "input": "hi"}


@pytest.fixture
async def door() -> AsyncIterator[OpenHttpDoor]:
    async with open_http_door(owners=OwnerResolver("bearer", key=b"key"), sealer=Sealer([b"secret"])) as door:
        yield door


def alice(path: str, value: Any = None, method: str = "POST") -> bytes:
    return post_bytes(value, path=path, method=method, headers={"authorization": "Bearer alice"})


async def made(door: OpenHttpDoor, *items: dict[str, Any]) -> str:
    answered = await door.ask(alice("/v1/conversations", {"items": list(items)}))
    found: str = answered.json["id"]
    return found


async def create(door: OpenHttpDoor, conversation: str, **changes: Any) -> RawAnswer:
    return await door.ask(alice("/v1/responses", {**TEXT, "conversation": conversation, **changes}))


async def texts(door: OpenHttpDoor, conversation: str) -> list[tuple[str, str]]:
    answered = await door.ask(alice(f"/v1/conversations/{conversation}/items?order=asc&limit=100", None, "GET"))
    return [(item["role"], item["content"][0]["text"]) for item in answered.json["data"]]


def shown(door: OpenHttpDoor) -> list[tuple[str, str]]:
    """The messages of the last model call."""
    return [(each["role"], each["content"]) for each in json.loads(door.chat.requests[-1].body)["messages"]]


async def unlocked(door: OpenHttpDoor, conversation: str) -> None:
    """Wait until somebody else may have it: saves go on after their client has left."""
    async with asyncio.timeout(DEADLINE):
        while True:
            items = {"items": [{"role": "user", "content": "free"}]}
            if (await door.ask(alice(f"/v1/conversations/{conversation}/items", items))).status == 200:
                return


async def test_turns_follow_each_other(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "system", "content": "be kind"})
    for turn, stream in (("one", False), ("two", True), ("three", False)):
        door.chat.script(
            answer(parts=text_stream(f"answer {turn}")) if stream else json_answer(completion(f"answer {turn}"))
        )
        answered = await create(door, conversation, input=turn, stream=stream)
        assert answered.status == 200
    assert shown(door) == [
        ("system", "be kind"),
        *(("user", "one"), ("assistant", "answer one")),
        *(("user", "two"), ("assistant", "answer two")),
        ("user", "three"),
    ]
    assert await texts(door, conversation) == [*shown(door), ("assistant", "answer three")]
    stored = await door.ask(alice(f"/v1/responses/{answered.json['id']}", None, "GET"))
    assert stored.json["conversation"] == {"id": conversation}
    inputs = await door.ask(alice(f"/v1/responses/{answered.json['id']}/input_items", None, "GET"))
    assert [item["content"][0]["text"] for item in inputs.json["data"]] == ["three"]


async def test_items_are_in_the_conversation_under_the_ids_of_the_response(door: OpenHttpDoor) -> None:
    conversation = await made(door)
    answered = await create(door, conversation)
    listed = await door.ask(alice(f"/v1/conversations/{conversation}/items", None, "GET"))
    assert listed.json["data"][0] == answered.json["output"][0]
    inputs = await door.ask(alice(f"/v1/responses/{answered.json['id']}/input_items", None, "GET"))
    assert listed.json["data"][1] == inputs.json["data"][0]


async def test_items_that_were_added_can_be_referred_to_in_a_request(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "user", "content": "added"})
    listed = await door.ask(alice(f"/v1/conversations/{conversation}/items", None, "GET"))
    reference = {"type": "item_reference", "id": listed.json["first_id"]}
    answered = await door.ask(alice("/v1/responses", {**TEXT, "input": [reference]}))
    assert answered.status == 200 and shown(door) == [("user", "added")]
    refused = await door.ask(post_bytes({**TEXT, "input": [reference]}, headers={"authorization": "Bearer bob"}))
    assert refused.status == 400 and refused.error["code"] == "item_not_found"


async def test_a_call_and_its_output_are_two_turns(door: OpenHttpDoor) -> None:
    conversation = await made(door)
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    door.chat.script(json_answer(completion("", tool_calls=[call])))
    answered = await create(door, conversation, tools=tools)
    (made_call,) = answered.json["output"]
    output = {"type": "function_call_output", "call_id": made_call["call_id"], "output": "42"}
    assert (await create(door, conversation, input=[output], tools=tools)).status == 200
    messages = json.loads(door.chat.requests[-1].body)["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "tool"]
    assert messages[2]["content"] == "42"


async def test_a_chain_goes_on_from_a_turn_of_a_conversation(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "user", "content": "before"})
    answered = await create(door, conversation, input="turn")
    await create(door, conversation, input="later")
    said = answered.json["output"][0]["content"][0]["text"]
    await door.ask(alice("/v1/responses", {**TEXT, "previous_response_id": answered.json["id"], "input": "aside"}))
    assert shown(door) == [("user", "before"), ("user", "turn"), ("assistant", said), ("user", "aside")]


async def test_what_is_not_stored_is_not_added(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "user", "content": "before"})
    assert (await create(door, conversation, store=False)).status == 200
    assert shown(door) == [("user", "before"), ("user", "hi")]
    assert await texts(door, conversation) == [("user", "before")]


async def test_unknown_and_foreign_are_one_answer(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "user", "content": "secret"})
    answers = []
    for name in (conversation, "conv_" + "0" * 48):
        request = {**TEXT, "conversation": name}
        bob = {"authorization": "Bearer bob", "x-request-id": "same"}
        answers.append(await door.ask(post_bytes(request, headers=bob)))
    mine, none = answers
    assert mine.status == none.status == 404 and none.error["code"] == "conversation_not_found"
    assert mine.body.replace(conversation.encode(), b"") == none.body.replace(("conv_" + "0" * 48).encode(), b"")
    assert not door.chat.requests and await texts(door, conversation) == [("user", "secret")]


async def test_all_of_a_long_conversation_is_shown(door: OpenHttpDoor) -> None:
    """Calls and their outputs too, whatever a page of its list holds."""
    conversation = await made(door)
    for part in range(15):
        items: list[dict[str, Any]] = []
        for number in range(5):
            call_id = f"call_{part}_{number}"
            items.append({"role": "user", "content": f"question {part} {number}"})
            items.append({"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"})
            items.append({"type": "function_call_output", "call_id": call_id, "output": "42"})
            items.append({"role": "assistant", "content": "42 it is"})
        added = await door.ask(alice(f"/v1/conversations/{conversation}/items", {"items": items}))
        assert added.status == 200
    assert (await create(door, conversation)).status == 200
    roles = [each["role"] for each in json.loads(door.chat.requests[-1].body)["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"] * 75 + ["user"]


async def test_a_conversation_that_was_compacted_goes_on_from_its_summary(door: OpenHttpDoor) -> None:
    conversation = await made(door, *[{"role": "user", "content": f"{'word ' * 300}{n}"} for n in range(6)])
    door.chat.script(json_answer(completion("the summary")), json_answer(completion("the answer")))
    management = [{"type": "compaction", "compact_threshold": 1000}]
    answered = await create(door, conversation, context_management=management)
    assert [item["type"] for item in answered.json["output"]] == ["compaction", "message"]
    assert door.metric("antiphon_compactions_total") == 1
    assert (await create(door, conversation, input="and now?")).status == 200
    said = json.dumps(json.loads(door.chat.requests[-1].body)["messages"])
    assert "the summary" in said and "and now?" in said and "the answer" in said
    assert len(said) < 6 * 300 * 5, "what was summed up is shown again"
    listed = await door.ask(alice(f"/v1/conversations/{conversation}/items?limit=100", None, "GET"))
    assert len(listed.json["data"]) == 6 + 3 + 2, "the conversation itself forgets nothing"


async def test_turns_over_a_websocket(door: OpenHttpDoor) -> None:
    conversation = await made(door, {"role": "user", "content": "before"})
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer alice"}) as session,
        session.ws_connect(f"http://{door.address}/v1/responses") as socket,
    ):
        for text in ("one", "two"):
            await socket.send_json({"type": "response.create", **TEXT, "input": text, "conversation": conversation})
            while (kind := (await socket.receive_json(timeout=DEADLINE))["type"]) != "response.completed":
                assert kind.startswith("response."), kind
    said = await texts(door, conversation)
    assert [text for role, text in said if role == "user"] == ["before", "one", "two"] and len(said) == 5
    assert shown(door) == said[:-1]


async def test_over_a_websocket_an_unstored_turn_is_nothing_to_go_on_from(door: OpenHttpDoor) -> None:
    """Its history is the conversation's, which the connection does not remember: it must not be left out in silence."""
    conversation = await made(door, {"role": "user", "content": "before"})
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer alice"}) as session,
        session.ws_connect(f"http://{door.address}/v1/responses") as socket,
    ):
        create_ = {"type": "response.create", **TEXT, "store": False}
        await socket.send_json({**create_, "conversation": conversation})
        while (event_ := await socket.receive_json(timeout=DEADLINE))["type"] != "response.completed":
            pass
        await socket.send_json({**create_, "previous_response_id": event_["response"]["id"]})
        refused = await socket.receive_json(timeout=DEADLINE)
    assert (refused["type"], refused["error"]["code"]) == ("error", "previous_response_not_found")


async def test_what_it_costs_is_counted(door: OpenHttpDoor) -> None:
    conversation = await made(door)
    await create(door, conversation)
    await create(door, "conv_" + "0" * 48)
    found = door.metric("storage_operations_total", operation="load_conversation", result="ok")
    assert found == 2, door.context.telemetry.metrics.render().decode()


# The lock


async def test_a_second_turn_at_the_same_time_is_a_409(door: OpenHttpDoor) -> None:
    conversation = await made(door)
    go_on = asyncio.Event()
    door.chat.script(answer(parts=[event("a"), Wait(go_on), *text_stream("b")]))
    async with door.client() as client:
        await client.send(alice("/v1/responses", {**TEXT, "conversation": conversation, "stream": True}))
        await client.head()
        for changes in ({}, {"stream": True}):
            refused = await create(door, conversation, **changes)
            assert refused.status == 409 and refused.error["code"] == "conversation_locked"
        assert (await create(door, conversation, store=False)).status == 200, "reading needs no lock"
        assert door.metric("antiphon_conversation_conflicts_total") == 2
        gone = await door.ask(alice(f"/v1/conversations/{conversation}", method="DELETE"))
        assert gone.status == 409 and door.metric("antiphon_conversation_conflicts_total") == 3
        go_on.set()
        while await client.part():
            pass
    # Whoever saw the end can go on at once.
    assert (await create(door, conversation)).status == 200
    assert len(await texts(door, conversation)) == 4


@pytest.mark.parametrize(
    ("scripted", "changes", "status"),
    [
        (json_answer({"error": {"message": "no"}}, 429), {}, 429),
        (json_answer({"error": {"message": "no"}}, 500), {"stream": True}, 500),
        (None, {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, 400),
        (None, {"input": [{"role": "robot", "content": "x"}]}, 400),
        (None, {"input": [{"type": "item_reference", "id": "msg_none"}]}, 400),
    ],
)
async def test_an_error_leaves_the_conversation_as_it_was(
    door: OpenHttpDoor, scripted: Any, changes: dict[str, Any], status: int
) -> None:
    conversation = await made(door, {"role": "user", "content": "before"})
    if scripted is not None:
        door.chat.script(scripted)
    assert (await create(door, conversation, **changes)).status == status
    assert await texts(door, conversation) == [("user", "before")]
    # Free before the client heard of it.
    assert (await create(door, conversation)).status == 200


async def test_a_stream_that_fails_leaves_the_conversation_as_it_was(door: OpenHttpDoor) -> None:
    conversation = await made(door)
    door.chat.script(answer(parts=[event("half"), event({"error": {"message": "told you"}})]))
    answered = await create(door, conversation, stream=True)
    assert answered.events[-1]["type"] == "response.failed"
    assert await texts(door, conversation) == []
    stored = await door.ask(alice(f"/v1/responses/{answered.events[0]['response']['id']}", None, "GET"))
    assert stored.json["status"] == "failed" and stored.json["conversation"] == {"id": conversation}
    assert (await create(door, conversation)).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_gives_it_back(door: OpenHttpDoor, stream: bool) -> None:
    conversation = await made(door)
    door.chat.script(answer(parts=[event("Hel"), WaitGone()]) if stream else never())
    async with door.client() as client:
        await client.send(alice("/v1/responses", {**TEXT, "conversation": conversation, "stream": stream}))
        if stream:
            await client.head()
            while b'"delta":"Hel"' not in await client.part():
                pass
        call = await door.chat.received()
        client.leave()
        async with asyncio.timeout(DEADLINE):
            await call.gone.wait()
    await unlocked(door, conversation)
    assert await texts(door, conversation) == [("user", "free")]


class _SlowLoad:
    """Holds up a conversation that is loaded, with its lock taken already."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self.waits = asyncio.Event()

    async def __call__(self, *given: Any, **named: Any) -> tuple[StoredItem, ...] | None:
        found: tuple[StoredItem, ...] | None = await self._load(*given, **named)
        if named.get("holder"):
            self.waits.set()
            await asyncio.Event().wait()
        return found


async def test_a_client_that_leaves_while_its_conversation_is_locked(
    door: OpenHttpDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await made(door)
    store = door.conversations
    slow = _SlowLoad(store.load)
    with monkeypatch.context() as patch:
        patch.setattr(store, "load", slow)
        async with door.client() as client:
            await client.send(alice("/v1/responses", {**TEXT, "conversation": conversation}))
            async with asyncio.timeout(DEADLINE):
                await slow.waits.wait()
            client.leave()
    await unlocked(door, conversation)


async def test_many_writers_take_turns(door: OpenHttpDoor) -> None:
    """Twenty clients that try again after a 409: every turn sees all turns before it, whole."""
    conversation = await made(door)

    async def one(number: int) -> None:
        while (answered := await create(door, conversation, input=f"q{number}")).status == 409:
            pass
        assert answered.status == 200

    await asyncio.gather(*[one(number) for number in range(20)])
    seen = await texts(door, conversation)
    assert len(seen) == 40
    assert [role for role, _ in seen] == ["user", "assistant"] * 20
    assert sorted(text for role, text in seen if role == "user") == sorted(f"q{n}" for n in range(20))
    for request in door.chat.requests:
        messages = json.loads(request.body)["messages"]
        assert [each["role"] for each in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
