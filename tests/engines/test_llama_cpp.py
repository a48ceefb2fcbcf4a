"""llama.cpp's own server behind every door: what it does for a chat client, it does for a Responses client.

The weights are made up, so nothing is said here of what a model means; see `tiny_model.py` for what it does do.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import openai
import pytest

from tests.engines.conftest import SLOT_TOKENS, Tiny
from tests.engines.doors import Door
from tests.support.judge import check_response, check_stream

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "tiny"


def _function(name: str, argument: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": "",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {argument: {"type": "string"}},
            "required": [argument],
            "additionalProperties": False,
        },
    }


ENDLESS = {"ignore_eos": True}
TOOLS: Any = [_function("weather", "city"), _function("note", "text")]


def _calls(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


async def test_the_same_seed_says_the_same_whole_streamed_and_directly(door: Door, tiny: Tiny) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "the old boat", "max_output_tokens": 60}
    whole = await door.client.responses.create(**asked, extra_body={"seed": 5})
    check_response(whole.to_dict())
    events = await door.stream(**asked, seed=5)
    streamed = check_stream(events)
    directly = await tiny.chat.chat(messages=[{"role": "user", "content": "the old boat"}], max_tokens=60, seed=5)
    choice = directly["choices"][0]
    assert whole.output_text == streamed["output"][0]["content"][0]["text"] == choice["message"]["content"] != ""
    assert whole.status == streamed["status"] == {"stop": "completed", "length": "incomplete"}[choice["finish_reason"]]
    assert sum(event["type"] == "response.output_text.delta" for event in events) > 1
    for usage in (whole.to_dict()["usage"], streamed["usage"]):
        assert isinstance(usage, dict)
        assert usage["input_tokens"] == directly["usage"]["prompt_tokens"]
        assert usage["output_tokens"] == directly["usage"]["completion_tokens"]


async def test_a_limit_of_tokens_leaves_a_response_incomplete(door: Door) -> None:
    cut = await door.client.responses.create(model=MODEL, input="x", max_output_tokens=16, extra_body=ENDLESS)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage is not None and cut.usage.output_tokens == 16


async def test_log_probabilities_spell_the_text(door: Door) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "a lamp", "max_output_tokens": 40, "top_logprobs": 3}
    asked["include"] = ["message.output_text.logprobs"]
    whole = (await door.client.responses.create(**asked, extra_body={"seed": 5})).to_dict()
    streamed = check_stream(await door.stream(**asked, seed=5))
    for response in (whole, streamed):
        part: Any = response["output"][0]["content"][0]
        # The engine leaves out the space that its text begins with.
        assert "".join(token["token"] for token in part["logprobs"]).strip() == part["text"].strip() != ""
        assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in part["logprobs"])


async def test_a_schema_holds(door: Door) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "rivers": {"type": "array", "items": {"enum": ["Rhine", "Seine"]}}},
        "required": ["city", "rivers"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "place", "strict": True, "schema": schema}}
    whole = await door.client.responses.create(model=MODEL, input="where?", text=form, max_output_tokens=2000)
    streamed = check_stream(await door.stream(model=MODEL, input="where?", text=form, max_output_tokens=2000))
    for text in (whole.output_text, streamed["output"][-1]["content"][0]["text"]):
        made = json.loads(text)
        assert made.keys() == {"city", "rivers"} and set(made["rivers"]) <= {"Rhine", "Seine"}


async def test_a_json_object_is_one(door: Door) -> None:
    form: Any = {"format": {"type": "json_object"}}
    response = await door.client.responses.create(model=MODEL, input="JSON, please", text=form, max_output_tokens=4000)
    assert response.status == "completed" and isinstance(json.loads(response.output_text), dict)


async def test_required_named_and_forbidden_tools(door: Door) -> None:
    named: Any = {"type": "function", "name": "note"}
    both: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    choices: list[tuple[Any, set[str]]] = [
        ("required", {"weather", "note"}),
        (named, {"note"}),
        (both, {"weather"}),
        ("none", set()),
    ]
    for choice, expected in choices:
        for seed in range(3):
            response = await door.client.responses.create(
                model=MODEL,
                input="the weather",
                tools=TOOLS,
                tool_choice=choice,
                max_output_tokens=3000,
                extra_body={"seed": seed},
            )
            calls = _calls(response)
            assert bool(calls) is bool(expected) and {call.name for call in calls} <= expected, (choice, response)
            for call in calls:
                assert json.loads(call.arguments).keys() == {"weather": {"city"}, "note": {"text"}}[call.name]


async def test_parallel_calls_come_where_they_may_and_only_there(door: Door) -> None:
    """Half of the turns call, and some of those twice: of some seeds one does, and streams say the same."""
    most = {True: 0, False: 0}
    for allowed in most:
        for seed in range(12):
            asked: dict[str, Any] = {"model": MODEL, "input": "boats", "tools": TOOLS, "parallel_tool_calls": allowed}
            asked |= {"tool_choice": "required", "max_output_tokens": 3000, "seed": seed}
            final = check_stream(await door.stream(**asked))
            assert final["status"] == "completed"
            calls = [item for item in final["output"] if item["type"] == "function_call"]
            assert len({call["call_id"] for call in calls}) == len(calls)
            most[allowed] = max(most[allowed], len(calls))
            if allowed and most[allowed] > 1:
                break
    assert most == {True: most[True], False: 1} and most[True] > 1


async def test_a_call_there_and_back(door: Door) -> None:
    asked = await door.client.responses.create(
        model=MODEL, input="the weather", tools=TOOLS, tool_choice="required", max_output_tokens=3000
    )
    outputs: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "mild"} for call in _calls(asked)
    ]
    told = await door.client.responses.create(
        model=MODEL,
        input=outputs,
        previous_response_id=asked.id,
        tools=TOOLS,
        tool_choice="none",
        max_output_tokens=200,
        extra_body={"seed": 5},
    )
    assert told.usage is not None and asked.usage is not None
    assert told.usage.input_tokens > asked.usage.total_tokens and told.output_text


async def test_reasoning_is_an_item_of_its_own(door: Door) -> None:
    asked: dict[str, Any] = {"model": "tiny-think", "input": "the tide", "max_output_tokens": 300, "seed": 1}
    final = check_stream(await door.stream(**asked))
    kinds = [item["type"] for item in final["output"]]
    assert kinds[:2] == ["reasoning", "message"], final
    assert final["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    # Kept here, or sealed for the client: it is there in the next turn, and the engine is shown it.
    unstored = await door.client.responses.create(
        model="tiny-think",
        input="the tide",
        max_output_tokens=300,
        store=False,
        include=["reasoning.encrypted_content"],
        extra_body={"seed": 1},
    )
    assert unstored.output[0].type == "reasoning" and unstored.output[0].encrypted_content
    again: Any = [{"role": "user", "content": "the tide"}, *(item.to_dict() for item in unstored.output)]
    more: Any = {"role": "user", "content": "and now?"}
    sealed = await door.count(model="tiny-think", input=[*again, more])
    kept = await door.count(model="tiny-think", input=[more], previous_response_id=final["id"])
    assert sealed == kept > final["usage"]["input_tokens"] + final["usage"]["output_tokens"] * 0.8


async def test_counts_are_the_engines_own(door: Door, tiny: Tiny) -> None:
    """Of text, instructions, tools and a chain, beforehand and in the response's usage."""
    first = await door.client.responses.create(model=MODEL, input="one", instructions="Be brief.", max_output_tokens=30)
    for fields in (
        {"input": "Name a river: Rhine, Thames or Danube?"},
        {"input": "short", "instructions": "Answer in one word."},
        {"input": "call", "tools": TOOLS},
        {"input": "more", "previous_response_id": first.id},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]} for text in ("a", "b c")]},
    ):
        expected = await door.count(model=MODEL, **fields)
        response = await door.client.responses.create(model=MODEL, max_output_tokens=16, **fields)
        assert response.usage is not None and response.usage.input_tokens == expected
    said = [{"role": "user", "content": "Name a river: Rhine, Thames or Danube?"}]
    directly = await tiny.chat.chat(messages=said, max_tokens=1)
    assert await door.count(model=MODEL, input=said) == directly["usage"]["prompt_tokens"]


async def test_embeddings_pass_untouched(door: Door, tiny: Tiny) -> None:
    words = ["a river", "a mountain"]
    made = await door.client.embeddings.create(model="tiny-embed", input=words, encoding_format="float")
    directly = await tiny.embed.chat("/embeddings", input=words, encoding_format="float")
    assert [one.embedding for one in made.data] == [one["embedding"] for one in directly["data"]]
    assert len(made.data[0].embedding) == 64


async def test_documents_are_found_by_the_engines_vectors(door: Door) -> None:
    """A search by meaning alone finds what is said in the very same words first."""
    texts = ("a boat on the river", "bread and honey in the kettle", "an owl in the old tower")
    store = await door.client.vector_stores.create(name="documents")
    for number, text in enumerate(texts):
        uploaded = await door.client.files.create(file=(f"{number}.txt", text.encode()), purpose="assistants")
        made = await door.client.vector_stores.files.create_and_poll(uploaded.id, vector_store_id=store.id)
        assert made.status == "completed", made.last_error
    found = await door.client.vector_stores.search(store.id, query=texts[1])
    assert found.data[0].filename == "1.txt"


# What a client that leaves asks for: the engine works on it for many seconds, and nothing else would end it.
LONG: dict[str, Any] = {"model": MODEL, "input": "on and on", "max_output_tokens": 60_000}


async def _stops_early(tiny: Tiny, before: int) -> None:
    await tiny.chat.become_idle(30.0)
    assert await tiny.chat.generated() - before < LONG["max_output_tokens"] * 0.9


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_the_engine_stops_when_the_client_leaves(door: Door, tiny: Tiny, stream: bool) -> None:
    await tiny.chat.become_idle(30.0)
    before = await tiny.chat.generated()
    async with door.session() as session:
        sending = asyncio.create_task(session.post(door.url, json={**LONG, **ENDLESS, "stream": stream}))
        if stream:
            answer = await sending
            await answer.content.readuntil(b"response.output_text.delta")
            assert await tiny.chat.working() == 1
            answer.close()
        else:
            await tiny.chat.begin_work()
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
    await _stops_early(tiny, before)


async def test_the_engine_stops_when_a_background_response_is_cancelled(door: Door, tiny: Tiny) -> None:
    await tiny.chat.become_idle(30.0)
    before = await tiny.chat.generated()
    queued = await door.client.responses.create(**LONG, background=True, extra_body=ENDLESS)
    await tiny.chat.begin_work()
    assert (await door.client.responses.cancel(queued.id)).status == "cancelled"
    await _stops_early(tiny, before)


async def test_the_engine_stops_when_a_web_socket_is_closed(door: Door, tiny: Tiny) -> None:
    await tiny.chat.become_idle(30.0)
    before = await tiny.chat.generated()
    async with door.session() as session, session.ws_connect(door.url, max_msg_size=0) as socket:
        await socket.send_json({"type": "response.create", **LONG, **ENDLESS})
        while (await socket.receive_json(timeout=60))["type"] != "response.output_text.delta":
            pass
        assert await tiny.chat.working() == 1
    await _stops_early(tiny, before)


async def test_what_does_not_fit_is_said_clearly(door: Door) -> None:
    """More than the engine's context, of whoever asks: OpenAI's code for it, and the engine's own numbers."""
    much = "river " * (SLOT_TOKENS + 500)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await door.client.responses.create(model=MODEL, input=much, stream=stream)
        assert refused.value.code == "context_length_exceeded" and refused.value.param == "input"
        assert str(SLOT_TOKENS) in refused.value.message


async def test_ten_streams_at_once(door: Door, tiny: Tiny) -> None:
    """More than the engine has places for: each is whole, and as if it were alone."""
    asked = [{"model": MODEL, "input": f"the {n} boats", "max_output_tokens": 200, "seed": n} for n in range(10)]
    alone = [check_stream(await door.stream(**fields)) for fields in asked]
    finals = [check_stream(events) for events in await asyncio.gather(*(door.stream(**each) for each in asked))]
    assert len({final["id"] for final in finals}) == 10
    for final, single in zip(finals, alone, strict=True):
        assert final["status"] == single["status"] and final["usage"]["input_tokens"] == single["usage"]["input_tokens"]
        assert final["output"][0]["content"][0]["text"]
    await tiny.chat.become_idle(30.0)


@pytest.mark.parametrize("model", ["tiny", "tiny-think"])
async def test_ten_turns_are_computed_once(door: Door, model: str) -> None:
    """With `previous_response_id` the engine has to read nothing of a turn that it has read or written before."""
    words = "the boats of the harbour and the lamp by the window"
    asked, cached = await door.chain(10, words, model=model, max_output_tokens=120, extra_body={"seed": 1})
    # At least what the turn before was asked. An answer of nothing leaves no message, nor an empty thought its tag:
    # then the dozen tokens that opened it are not there again.
    assert all(now >= before - 14 for now, before in zip(cached[1:], asked, strict=False)), (asked, cached)
    assert asked[-1] > 2 * asked[1] and cached[-1] > 2 * cached[2]
    print(f"engines: {door.name} {model}: asked {asked}, cached {cached}")
