"""A model that answers, SmolLM2 with 135 million parameters on llama.cpp's server, behind every door.

By name only: a processor takes its time. What needs no meaning is asked of the tiny models (`test_llama_cpp.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pydantic
import pytest

from tests.engines.doors import Door
from tests.engines.llama_server import LlamaServer
from tests.support.judge import check_stream

pytestmark = [pytest.mark.full, pytest.mark.asyncio(loop_scope="session")]

MODEL = "smollm2"
SLOT_TOKENS = 8192


async def test_the_capital_of_france(smollm2_door: Door) -> None:
    question = "Which city is the capital of France?"
    asked = {"model": MODEL, "input": question, "temperature": 0, "max_output_tokens": 30}
    whole = await smollm2_door.client.responses.create(**asked)  # type: ignore[call-overload]
    streamed = check_stream(await smollm2_door.stream(**asked))
    assert "Paris" in whole.output_text and whole.status == "completed"
    assert streamed["output"][0]["content"][0]["text"] == whole.output_text
    counted = await smollm2_door.count(model=MODEL, input=question)
    assert counted == whole.usage.input_tokens == streamed["usage"]["input_tokens"]


async def test_what_was_said_before_is_known(smollm2_door: Door) -> None:
    asked: Any = {"model": MODEL, "instructions": "Answer in English, in one short sentence.", "temperature": 0}
    create = smollm2_door.client.responses.create
    first = await create(input="Which city is the capital of France?", max_output_tokens=40, **asked)
    told = await create(
        input="In which country is that city?", previous_response_id=first.id, max_output_tokens=40, **asked
    )
    assert "France" in told.output_text


async def test_what_the_sdk_parses(smollm2_door: Door) -> None:
    class City(pydantic.BaseModel):
        name: str
        inhabitants: int

    parsed = await smollm2_door.client.responses.parse(
        model=MODEL, input="Tell me about Paris.", text_format=City, temperature=0, max_output_tokens=300
    )
    assert parsed.output_parsed is not None and parsed.output_parsed.inhabitants >= 0


async def test_ten_turns_are_computed_once(smollm2_door: Door) -> None:
    began = time.perf_counter()
    asked, cached = await smollm2_door.chain(
        10, "tell me one more thing about boats.", model=MODEL, temperature=0, max_output_tokens=40
    )
    assert all(now >= before for now, before in zip(cached[1:], asked, strict=False)), (asked, cached)
    taken = time.perf_counter() - began
    print(f"engines: {smollm2_door.name} {MODEL}: asked {asked}, cached {cached}, {taken:.1f} s")


async def test_the_engine_stops_when_the_client_leaves(smollm2_door: Door, smollm2: LlamaServer) -> None:
    await smollm2.become_idle(60.0)
    before = await smollm2.generated()
    body = {"model": MODEL, "input": "Tell a long story.", "stream": True, "max_output_tokens": 3000}
    async with (
        smollm2_door.session() as session,
        session.post(smollm2_door.url, json={**body, "ignore_eos": True}) as answer,
    ):
        await answer.content.readuntil(b"response.output_text.delta")
    await smollm2.become_idle(30.0)
    assert await smollm2.generated() - before < 1000


async def test_what_does_not_fit_is_said_clearly(smollm2_door: Door) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await smollm2_door.client.responses.create(model=MODEL, input="river " * (SLOT_TOKENS + 100))
    assert refused.value.code == "context_length_exceeded" and str(SLOT_TOKENS) in refused.value.message


async def test_ten_streams_at_once(smollm2_door: Door) -> None:
    questions = [f"Name {number} rivers." for number in range(2, 12)]
    asked = [{"model": MODEL, "input": question, "max_output_tokens": 30} for question in questions]
    finals = [check_stream(events) for events in await asyncio.gather(*(smollm2_door.stream(**one) for one in asked))]
    assert all(final["output"][0]["content"][0]["text"] for final in finals)
