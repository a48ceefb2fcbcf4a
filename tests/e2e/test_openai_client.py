"""The official OpenAI client, unmodified, through every door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.e2e.conftest import Setup
from tests.support.chat_server import Wait, WaitGone, answer, chunk, completion, event, json_answer, text_stream

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest_asyncio.fixture(loop_scope="session")
async def client(setup: Setup) -> AsyncIterator[openai.AsyncOpenAI]:
    # There is no TLS here, and reading the authorities' certificates for each client takes longer than most tests.
    plain = openai.DefaultAsyncHttpxClient(verify=False)
    base_url = setup.gateway.base_url
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-test", max_retries=0, http_client=plain) as made:
        yield made


async def test_text(client: openai.AsyncOpenAI, setup: Setup) -> None:
    response = await client.responses.create(
        model="demo-model", input="hi", instructions="be brief", metadata={"k": "v"}, temperature=0.5
    )
    assert response.output_text == "Hello" and response.status == "completed"
    assert response.usage is not None and response.usage.total_tokens == 5
    assert response.metadata == {"k": "v"} and response.instructions == "be brief"
    sent = setup.server.requests[-1]
    assert sent.json["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    assert sent.header("authorization") == "Bearer sk-test"
    assert not [name for name, _ in sent.headers if name.startswith(("x-antiphon", "x-stainless", "cookie"))]


async def test_the_clients_own_fold_of_the_stream(client: openai.AsyncOpenAI) -> None:
    """`.stream()` checks the order and identity of events by itself and folds them."""
    async with client.responses.stream(model="demo-model", input="hi") as stream:
        kinds = [part.type async for part in stream]
        final = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert final.output_text == "Hello"
    assert (await client.responses.retrieve(final.id)).output_text == "Hello"


async def test_events_come_as_they_are_made(client: openai.AsyncOpenAI, setup: Setup) -> None:
    """Each delta reaches the client before the upstream sends the next."""
    gates = [asyncio.Event() for _ in range(3)]
    parts = [step for number, gate in enumerate(gates) for step in (event(f"w{number} "), Wait(gate))]
    setup.server.script(answer(parts=[*parts, *text_stream("end")]))
    seen = []
    async for part in await client.responses.create(model="demo-model", input="hi", stream=True):
        if part.type == "response.output_text.delta":
            seen.append(part.delta)
            if len(seen) <= len(gates):
                gates[len(seen) - 1].set()
    assert seen == ["w0 ", "w1 ", "w2 ", "end"]


async def test_function_calls_there_and_back(client: openai.AsyncOpenAI, setup: Setup) -> None:
    """Parallel calls, answered by `previous_response_id` with the outputs alone, in any order."""
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
        }
        for city in ("Rome", "Oslo")
    ]
    setup.server.script(json_answer(completion("", tool_calls=calls)))
    asked = await client.responses.create(model="demo-model", input="weather?", tools=[_TOOL])  # type: ignore[list-item]
    made = [item for item in asked.output if item.type == "function_call"]
    assert [item.call_id for item in made] == ["call_Rome", "call_Oslo"]
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"sunny {item.call_id}"}
        for item in reversed(made)
    ]
    told = await client.responses.create(
        model="demo-model",
        previous_response_id=asked.id,
        input=outputs,  # type: ignore[arg-type]
        tools=[_TOOL],  # type: ignore[list-item]
    )
    assert told.previous_response_id == asked.id
    messages = setup.server.requests[-1].json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [message["tool_call_id"] for message in messages[2:]] == ["call_Rome", "call_Oslo"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["call_Rome", "call_Oslo"]
    with pytest.raises(openai.BadRequestError, match="No tool output found for function call call_Rome"):
        await client.responses.create(model="demo-model", previous_response_id=asked.id, input="never mind")


async def test_streamed_function_call(client: openai.AsyncOpenAI, setup: Setup) -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"ci', 'ty":"R', 'ome"}')]
    parts = [event(chunk({"tool_calls": [call]})) for call in (first, *rest)]
    setup.server.script(answer(parts=[*parts, event(chunk(finish_reason="tool_calls"))]))
    async with client.responses.stream(model="demo-model", input="weather?", tools=[_TOOL]) as stream:  # type: ignore[list-item]
        final = await stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Rome"}


async def test_a_chain_keeps_both_sides(client: openai.AsyncOpenAI, setup: Setup) -> None:
    previous = None
    for turn in range(4):
        asked: dict[str, Any] = {"model": "demo-model", "input": f"turn {turn}", "instructions": f"i{turn}"}
        if turn % 2:
            made = [
                part
                async for part in await client.responses.create(**asked, previous_response_id=previous, stream=True)
            ]
            previous = made[-1].response.id
        else:
            previous = (await client.responses.create(**asked, previous_response_id=previous)).id
    messages = setup.server.requests[-1].json["messages"]
    assert [message["content"] for message in messages] == [
        "i3",
        "turn 0",
        "Hello",
        "turn 1",
        "Hello",
        "turn 2",
        "Hello",
        "turn 3",
    ]


async def test_stored_things(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(
        model="demo-model", input=[{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    )
    found = await client.responses.retrieve(made.id)
    assert found.model_dump() == made.model_dump()
    newest: Any = await client.responses.input_items.list(made.id, limit=1)
    assert newest.has_more and newest.data[0].content[0].text == "two"
    every: list[Any] = [item async for item in client.responses.input_items.list(made.id, limit=1, order="asc")]
    assert [item.content[0].text for item in every] == ["one", "two"]
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="demo-model", input="x", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"


async def test_owners_do_not_see_each_other(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="demo-model", input="mine")
    stranger = client.with_options(api_key="sk-other")
    with pytest.raises(openai.NotFoundError) as hidden:
        await stranger.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError) as missing:
        await stranger.responses.retrieve("resp_" + "0" * len(made.id.removeprefix("resp_")))
    assert str(hidden.value).replace(made.id, "X") == str(missing.value).replace("resp_" + "0" * 48, "X")
    with pytest.raises(openai.BadRequestError) as chained:
        await stranger.responses.create(model="demo-model", input="x", previous_response_id=made.id)
    assert chained.value.code == "previous_response_not_found"
    assert (await client.responses.retrieve(made.id)).id == made.id


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_the_right_classes(
    client: openai.AsyncOpenAI, setup: Setup, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    body = {"error": {"message": "the model says no", "type": "invalid_request_error", "param": None, "code": None}}
    setup.server.script(json_answer(body, status))
    with pytest.raises(kind, match="the model says no"):
        await client.responses.create(model="demo-model", input="hi", stream=stream)


async def test_leaving_cancels_the_model_call_and_leaves_a_failed_row(client: openai.AsyncOpenAI, setup: Setup) -> None:
    setup.server.script(answer(parts=[event("a"), WaitGone()]))
    stream = await client.responses.create(model="demo-model", input="hi", stream=True)
    response_id = ""
    async for part in stream:
        if part.type == "response.created":
            response_id = part.response.id
        if part.type == "response.output_text.delta":
            break
    call = setup.server.requests[-1]
    await stream.close()
    async with asyncio.timeout(30):
        await call.gone.wait()
        while True:
            try:
                stored = await client.responses.retrieve(response_id)
                break
            except openai.NotFoundError:
                await asyncio.sleep(0.01)
    assert stored.status == "failed"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["demo-model", "other/model:7b"]
    assert (await client.models.retrieve("demo-model")).id == "demo-model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_why_a_prompt_missed_the_cache(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="demo-model", input="hi", instructions="be brief")
    again = await client.responses.create(
        model="demo-model", input="hi", prompt_cache_options={"comparison_response_id": first.id}
    )
    told = again.prompt_cache_diagnostics
    assert told is not None and told.type == "cache_miss" and told.reason == "input_changed"
    async with client.responses.stream(
        model="demo-model",
        input="ho",
        previous_response_id=again.id,
        prompt_cache_options={"comparison_response_id": again.id},
    ) as stream:
        final = await stream.get_final_response()
    assert final.prompt_cache_diagnostics is not None and final.prompt_cache_diagnostics.type == "cache_hit"
    kept = await client.responses.retrieve(final.id)
    assert kept.prompt_cache_diagnostics == final.prompt_cache_diagnostics
