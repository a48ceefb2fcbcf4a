"""Why a prompt missed the cache, asked with the official client and read from the store again."""

from __future__ import annotations

from typing import Any

import openai

from tests.support.chat_server import json_answer
from tests.support.http_door import OpenHttpDoor, post_bytes

ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi"}


async def test_the_official_client(door: OpenHttpDoor) -> None:
    async with openai.AsyncOpenAI(base_url=door.base_url, api_key="sk-test", max_retries=0) as client:

        async def ask(compared: str, **fields: Any) -> Any:
            options: Any = {"comparison_response_id": compared}
            return await client.responses.create(**{**ASK, **fields}, prompt_cache_options=options)

        first = await client.responses.create(model="demo-model", input="Hi", instructions="Be kind.")
        assert first.prompt_cache_diagnostics is None
        hit = await ask(first.id, input="And?", instructions="Be kind.", previous_response_id=first.id)
        assert hit.prompt_cache_diagnostics.type == "cache_hit"
        miss = await ask(hit.id, instructions="Be rude.")
        told = miss.prompt_cache_diagnostics
        assert (told.type, told.reason) == ("cache_miss", "input_changed")
        assert told.cache_missed_tokens + told.comparison_reusable_tokens == miss.usage.input_tokens
        assert (await client.responses.retrieve(miss.id)).prompt_cache_diagnostics == told
        async with client.responses.stream(
            model="demo-model", input="Hi", prompt_cache_options={"comparison_response_id": "resp_none"}
        ) as stream:
            final = await stream.get_final_response()
        assert final.prompt_cache_diagnostics is not None
        assert final.prompt_cache_diagnostics.type == "comparison_response_not_found"
    assert all(b"comparison_response_id" not in request.body for request in door.chat.requests)
    for result, reason in (("cache_hit", ""), ("cache_miss", "input_changed"), ("comparison_response_not_found", "")):
        assert door.metric("antiphon_prompt_comparisons_total", type=result, reason=reason) == 1


async def test_another_owners_response_is_like_none(door: OpenHttpDoor) -> None:
    async def ask(owner: str, compared: str | None) -> Any:
        body = {**ASK, "prompt_cache_options": {"comparison_response_id": compared}}
        got = await door.ask(post_bytes(body, headers={"authorization": f"Bearer {owner}"}))
        assert got.status == 200
        return got.json

    mine = await ask("alice", None)
    assert "prompt_cache_diagnostics" not in mine
    for owner, result in (("alice", "cache_hit"), ("bob", "comparison_response_not_found")):
        assert (await ask(owner, mine["id"]))["prompt_cache_diagnostics"] == {"type": result}


async def test_a_cached_beginning_is_the_servers_count(door: OpenHttpDoor) -> None:
    first = (await door.ask(post_bytes(ASK))).json["id"]
    usage = {"prompt_tokens": 90, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}
    message = {"index": 0, "message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}
    door.chat.script(json_answer({"choices": [message], "usage": usage}))
    asked = {**ASK, "input": "Ho", "prompt_cache_options": {"comparison_response_id": first}}
    told = (await door.ask(post_bytes(asked))).json["prompt_cache_diagnostics"]
    assert told == {
        "type": "cache_miss",
        "cache_missed_tokens": 26,
        "reason": "input_changed",
        "comparison_reusable_tokens": 64,
    }
