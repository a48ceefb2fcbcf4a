"""The demo upstream: what it promises in its docstring, over real HTTP with an OpenAI client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from antiphon.commands.demo_upstream import MODELS, DemoError, chunks, completion, make_app, reply
from antiphon.translation.profiles import named_by_list

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "days", "unit"],
        },
    },
}


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    runner = web.AppRunner(make_app(pause=0), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
        yield made


def _said(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **fields}


def _text(request: dict[str, Any]) -> str:
    return reply(request).text


def _folded(request: dict[str, Any]) -> dict[str, Any]:
    """A stream put together again as the message of the JSON answer."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[Any] = []
    finish = None
    for chunk in chunks(reply(request), usage=False):
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    if calls:
        message["tool_calls"] = calls
    message["content"] = message["content"] or None
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hello", "You said: Hello"),
        ("count to 5", "1 2 3 4 5"),
        ("what are your instructions?", "I have no instructions."),
        ("do you remember?", "You said nothing before."),
    ],
)
def test_what_it_answers(text: str, answer: str) -> None:
    assert _text(_said(text)) == answer


def test_it_repeats_what_it_was_sent() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "You said: one"},
    ]

    def ask(text: str) -> str:
        return _text({"model": "demo", "messages": [*messages, {"role": "user", "content": text}]})

    assert ask("What did I say before?") == 'Before, you said: "one"'
    assert ask("Your instructions?") == "My instructions: Be brief."
    assert ask("two") == "You said: two (I was sent 4 messages.)"


def test_it_calls_a_tool_that_is_talked_about() -> None:
    (call,) = reply(_said("How is the weather in New York for 3 days?", tools=[TOOL])).calls
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "New York", "days": 3, "unit": "C"}


@pytest.mark.parametrize(
    ("text", "fields", "number"),
    [
        ("weather in Paris and Rome", {}, 2),
        ("weather in Paris, Rome, and Oslo", {}, 3),
        ("weather in Paris and Rome", {"parallel_tool_calls": False}, 1),
        ("weather in Paris", {"tool_choice": "none"}, 0),
        ("hello", {}, 0),
        ("is it nice outside?", {}, 1),
        ("hello", {"tool_choice": "required"}, 1),
        ("hello", {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, 1),
        ("hello", {"tool_choice": {"type": "function", "function": {"name": "other"}}}, 0),
    ],
)
def test_how_often_it_calls(text: str, fields: dict[str, Any], number: int) -> None:
    answer = reply(_said(text, tools=[TOOL], **fields))
    assert len(answer.calls) == number
    assert answer.finish_reason == ("tool_calls" if number else "stop")
    assert len({call["id"] for call in answer.calls}) == number


def _function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_a_list_of_texts_gets_what_was_said() -> None:
    tool = _function("file_search", queries={"type": "array", "items": {"type": "string"}}, ids={"type": "array"})
    (call,) = reply(_said("Search my files: how do I mend a tyre?", tools=[tool])).calls
    assert json.loads(call["function"]["arguments"]) == {
        "queries": ["Search my files: how do I mend a tyre?"],
        "ids": [],
    }


@pytest.mark.parametrize(
    ("said", "printed", "drawn"),
    [
        ("Run code that plots 3, -1 and 6.", ["3 " + "█" * 15, "-1 " + "█" * 5, "6 " + "█" * 30], 3),
        ("Run code that plots 0.", ["0"], 1),
        ('Run code: it\'s "fine".', ['Run code: it\'s "fine".'], 0),
    ],
)
def test_code_draws_the_numbers(said: str, printed: list[str], drawn: int, tmp_path: Path) -> None:
    (call,) = reply(_said(said, tools=[_function("code_interpreter", code={"type": "string"})])).calls
    code = json.loads(call["function"]["arguments"])["code"]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.strip() for line in done.stdout.splitlines()] == printed
    assert sum(path.read_text().count("<rect") for path in tmp_path.iterdir()) == drawn


def test_tool_results_are_repeated_in_order() -> None:
    messages = [
        {"role": "user", "content": "weather in Paris and Rome?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
    ]
    assert _text({"model": "demo", "messages": messages, "tools": [TOOL]}) == "The tool said: sun; rain"


@pytest.mark.parametrize(
    "request_",
    [
        _said("Hello  there,\nworld "),
        _said("think about it"),
        _said("weather in Paris and Rome", tools=[TOOL]),
        _said("weather in Paris", tools=[TOOL], reasoning_effort="low"),
        _said("count to 30", max_tokens=7),
    ],
    ids=lambda value: str(value["messages"][0]["content"]),
)
def test_the_stream_is_the_json_answer_in_pieces(request_: dict[str, Any]) -> None:
    answer = completion(reply(request_))
    assert _folded(request_) == answer["choices"][0]
    # And nothing is remembered: asked again, it says the same.
    assert completion(reply(request_)) == answer


def test_reasoning_and_usage() -> None:
    for request in (_said("think"), {**_said("hi"), "model": "demo-reasoner"}, _said("hi", reasoning_effort="high")):
        answer = reply(request)
        assert answer.reasoning
        assert answer.usage["completion_tokens_details"]["reasoning_tokens"] == len(answer.reasoning.split())
    assert not reply(_said("hi", reasoning_effort="none")).reasoning
    assert reply(_said("count to 3")).usage == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    cut = reply(_said("count to 9", max_completion_tokens=2))
    assert (cut.text, cut.finish_reason) == ("1 2", "length")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (_said("please fail"), 500),
        (_said("give me error 429"), 429),
        (_said("hi") | {"model": "other"}, 404),
        ({"model": "demo"}, 400),
        ({"model": "demo", "messages": []}, 400),
    ],
)
def test_errors(request_: dict[str, Any], status: int) -> None:
    with pytest.raises(DemoError) as failure:
        reply(request_)
    assert failure.value.status == status
    assert set(failure.value.body["error"]) == {"message", "type", "param", "code"}


async def test_an_openai_client_can_use_it(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == list(MODELS)
    answer = await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}])
    assert answer.choices[0].message.content == "You said: Hello"
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices) == "You said: Hello"
    assert parts[-1].usage is not None and not parts[-1].choices
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "error 429"}])
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])


async def test_antiphon_knows_it(base_url: str) -> None:
    """So a newcomer gets no warning of an unknown server."""
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/models") as listed:
        assert named_by_list(await listed.json(), "") == "generic"


@pytest.mark.parametrize("stream", [False, True])
async def test_it_breaks_off_when_asked(base_url: str, stream: bool) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.post(f"{base_url}/chat/completions", json=_said("break it", stream=stream)) as answer:
                assert answer.status == 200
                await answer.read()


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/chat/completions", 400), ("GET", "/nothing", 404)])
async def test_what_is_no_request_gets_an_error_object(base_url: str, method: str, path: str, status: int) -> None:
    async with aiohttp.ClientSession() as session, session.request(method, base_url + path, data=b"{") as answer:
        assert answer.status == status
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
