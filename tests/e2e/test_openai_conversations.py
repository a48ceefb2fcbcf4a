"""The official OpenAI client, unmodified: conversations and prompts through every door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.e2e.conftest import Setup
from tests.support.chat_server import ChatServer, Wait, answer, completion, event, json_answer, text_stream
from tests.support.gateway import start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest_asyncio.fixture(loop_scope="session")
async def client(setup: Setup) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=setup.gateway.base_url, api_key="sk-state", max_retries=0) as made:
        yield made


async def test_every_operation(client: Any) -> None:
    conversation = await client.conversations.create(
        metadata={"topic": "a"}, items=[{"type": "message", "role": "user", "content": "hello"}]
    )
    assert conversation.object == "conversation" and conversation.metadata == {"topic": "a"}
    assert await client.conversations.retrieve(conversation.id) == conversation
    updated = await client.conversations.update(conversation.id, metadata={"topic": "b"})
    assert updated.metadata == {"topic": "b"}
    added = await client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": f"number {n}"} for n in range(20)]
    )
    assert len(added.data) == 20 and added.has_more is False
    listed = [item async for item in client.conversations.items.list(conversation.id, limit=6, order="asc")]
    assert len(listed) == 21, "the client asks for one page after the other"
    assert [item.content[0].text for item in listed if item.type == "message"][:2] == ["hello", "number 0"]
    newest = await client.conversations.items.list(conversation.id, limit=1)
    assert newest.data[0].id == listed[-1].id and newest.has_more
    item = await client.conversations.items.retrieve(
        listed[3].id or "", conversation_id=conversation.id, include=["message.output_text.logprobs"]
    )
    assert item == listed[3]
    after = await client.conversations.items.delete(item.id or "", conversation_id=conversation.id)
    assert after.id == conversation.id and after.object == "conversation"
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(item.id or "", conversation_id=conversation.id)
    deleted = await client.conversations.delete(conversation.id)
    assert deleted.deleted and deleted.object == "conversation.deleted"
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(conversation.id)


async def test_turns_with_a_tool(client: Any, setup: Setup) -> None:
    """Only what is new is sent; the conversation brings the rest."""
    conversation = await client.conversations.create()
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    setup.server.script(json_answer(completion("", tool_calls=[call])), answer(parts=text_stream("Sunny.")))
    first = await client.responses.create(
        model="demo-model", input="Weather in Rome?", conversation=conversation.id, tools=[_TOOL]
    )
    assert first.conversation is not None and first.conversation.id == conversation.id
    (made,) = first.output
    assert made.type == "function_call"
    async with client.responses.stream(
        model="demo-model",
        input=[{"type": "function_call_output", "call_id": made.call_id, "output": "20 degrees"}],
        conversation={"id": conversation.id},
        tools=[_TOOL],
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_text == "Sunny."
    sent = setup.server.requests[-1].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]
    assert items[-1].id == final.output[0].id


async def test_a_conversation_that_is_busy(client: Any, setup: Setup) -> None:
    """The client's own retry after a 409 finds it free again."""
    conversation = await client.conversations.create()
    go_on = asyncio.Event()
    setup.server.script(answer(parts=[event("a"), Wait(go_on), *text_stream("b")]))
    stream = await client.responses.create(model="demo-model", input="hi", conversation=conversation.id, stream=True)
    async for part in stream:
        if part.type == "response.output_text.delta":
            break
    with pytest.raises(openai.ConflictError) as caught:
        await client.responses.create(model="demo-model", input="hi", conversation=conversation.id)
    assert caught.value.code == "conversation_locked"
    patient = client.with_options(max_retries=5)
    waiting = asyncio.ensure_future(
        patient.responses.create(model="demo-model", input="me too", conversation=conversation.id)
    )
    go_on.set()
    async for _ in stream:
        pass
    assert (await waiting).output_text == "Hello"
    assert len((await client.conversations.items.list(conversation.id)).data) == 4


async def test_errors(client: Any) -> None:
    unknown = "conv_" + "0" * 48
    with pytest.raises(openai.NotFoundError) as missing:
        await client.responses.create(model="demo-model", input="hi", conversation=unknown)
    assert (missing.value.code, missing.value.param) == ("conversation_not_found", "conversation")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.create(items=[{"type": "message", "role": "user", "content": "x"}] * 21)
    assert (caught.value.code, caught.value.param) == ("array_above_max_length", "items")


async def test_a_prompt(client: Any, setup: Setup) -> None:
    """OpenAI's client has no operations for prompts: they are made by plain requests, and used by `prompt`."""
    made = await client.post(
        "/prompts",
        cast_to=dict[str, Any],
        body={"model": "demo-model", "instructions": "You are {{who}}.", "input": "Look: {{it}}"},
    )
    response = await client.responses.create(
        prompt={
            "id": made["id"],
            "version": "1",
            "variables": {
                "who": "Ann",
                "it": {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
            },
        },
        input="Nice?",
    )
    assert response.output_text == "Hello"
    assert response.prompt is not None and (response.prompt.id, response.prompt.version) == (made["id"], "1")
    system, template, question = setup.server.requests[-1].json["messages"]
    assert system["content"] == "You are Ann." and question["content"] == "Nice?"
    assert [part["type"] for part in template["content"]] == ["text", "image_url"]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(prompt={"id": made["id"], "variables": {"who": "Ann"}})
    assert caught.value.param == "prompt.variables"


@pytest.mark.parametrize("arguments", [("--door", "http"), ()], ids=["http", "envoy"])
async def test_in_the_background(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A conversation is locked from the queue to the end, and a prompt stays the version it was queued with."""
    async with ChatServer() as server:
        # What runs without its client needs no credentials of the client's.
        gateway = await start_gateway(
            server.base_url, tmp_path, *arguments, environ={"ANTIPHON_UPSTREAM__AUTH": "none"}
        )
        try:
            async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="sk-state", max_retries=0) as client:
                await _queue_and_wait(client, server)
        finally:
            await gateway.stop()


async def _queue_and_wait(client: Any, server: ChatServer) -> None:
    conversation = await client.conversations.create()
    made = await client.post("/prompts", cast_to=dict[str, Any], body={"instructions": "You are {{who}}."})
    queued = await client.responses.create(
        model="demo-model",
        input="hi",
        conversation=conversation.id,
        prompt={"id": made["id"], "variables": {"who": "Ann"}},
        background=True,
    )
    await client.post(f"/prompts/{made['id']}", cast_to=dict[str, Any], body={"instructions": "You are somebody else."})
    response = queued
    async with asyncio.timeout(30):
        while response.status in ("queued", "in_progress"):
            response = await client.responses.retrieve(queued.id)
    assert response.status == "completed" and response.output_text == "Hello"
    assert response.prompt.version == "1" and response.conversation.id == conversation.id
    sent = [message["content"] for message in server.requests[-1].json["messages"]]
    assert sent == ["You are Ann.", "hi"]
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert [item.role for item in items] == ["user", "assistant"]
    after = await client.responses.create(model="demo-model", input="next", conversation=conversation.id)
    assert after.status == "completed"
