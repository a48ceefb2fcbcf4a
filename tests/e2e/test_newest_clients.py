"""What this month's clients send, through every door: what is unknown is named, what is newer than Chat is served.

Not here: the clients themselves (`scripts/lab clients`), each thing in all its forms (`tests/unit/translation`).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Setup
from tests.support.chat_server import Answer, ChatServer, Received, Responder, answer
from tests.support.gateway import Answered, post, start_gateway
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import Called, model_turn

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

Json = dict[str, Any]
KEY = {"authorization": "Bearer newest"}
USER = {"role": "user", "content": "hi"}
SEALED = "gAAAAABp-r_nDEFD_pLd6MEzoOCG8O" + "Zm9vYmFy" * 8
CLOSED = {"type": "encrypted_content", "encrypted_content": SEALED}
NOTHING: Json = {"type": "object", "properties": {}}
WRITTEN = {"type": "string", "description": "What to do."}
SPAWN = {
    "type": "function",
    "name": "spawn_agent",
    "parameters": {"type": "object", "properties": {"message": {**WRITTEN, "encrypted": True}}},
}


def says(text: str, *calls: Called) -> Responder:
    """The model says this, in the form that it is asked for."""

    def respond(request: Received) -> Answer:
        if request.json.get("stream"):
            return answer(parts=[model_turn(text, *calls, stream=True, pieces=3)])
        said = model_turn(text, *calls, stream=False)
        return answer(200, (("content-type", "application/json"),), [said], framing="length")

    return respond


def function(name: str, **more: Any) -> Json:
    return {"type": "function", "name": name, "description": f"Does {name}.", "parameters": NOTHING, **more}


class Asking:
    """One client of one gateway."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def raw(self, **fields: Any) -> Answered:
        return await post(f"{self._setup.gateway.base_url}/responses", {"model": "demo-model", **fields}, KEY)

    async def __call__(self, *said: Responder, stream: bool = False, **fields: Any) -> Json:
        """The finished response; `said` is what the model says in it, turn by turn."""
        self._setup.server.script(*said)
        answered = await self.raw(stream=stream, **fields)
        assert answered.status == 200, answered.body
        if stream:
            return check_stream(parse_sse(answered.body))
        response: Json = json.loads(answered.body)
        check_response(response)
        return response

    async def stored(self, response: Json) -> Json:
        url = f"{self._setup.gateway.base_url}/responses/{response['id']}"
        async with aiohttp.ClientSession(headers=KEY) as session, session.get(url) as got:
            kept: Json = await got.json()
        return kept

    @property
    def chats(self) -> list[Json]:
        """What the model was asked."""
        return [asked.json for asked in self._setup.server.requests]


@pytest.fixture
def ask(setup: Setup) -> Asking:
    return Asking(setup)


def texts(chat: Json, role: str = "user") -> list[str]:
    """What one side says, the parts of a message in lines."""
    found = [message["content"] for message in chat["messages"] if message["role"] == role]
    return [one if isinstance(one, str) else "\n".join(part["text"] for part in one) for one in found]


def is_continued(chats: list[Json]) -> bool:
    """Whether each call begins with all that the one before it was told."""
    told = [chat["messages"] for chat in chats]
    return all(later[: len(earlier)] == earlier for earlier, later in pairwise(told))


# What nobody here knows

UNKNOWN: dict[str, tuple[str, Json]] = {
    "item": ("input.future_call", {"input": [USER, {"type": "future_call", "x": 1}]}),
    "part": (
        "content.input_smell",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_smell"}]}]},
    ),
    "compaction": ("input.context_compaction", {"input": [{**CLOSED, "type": "context_compaction"}, USER]}),
    "include": ("include:future.thing", {"include": ["future.thing"]}),
    "effort": ("reasoning.effort:heroic", {"reasoning": {"effort": "heroic"}}),
    "tier": ("service_tier:platinum", {"service_tier": "platinum"}),
    "verbosity": ("text.verbosity:epic", {"text": {"verbosity": "epic"}}),
    "member of a tool": ("tools.function.aura", {"tools": [function("f", aura=1)]}),
}
WORDS = ("future", "smell", "heroic", "platinum", "epic", "aura", "gAAAA")


def _all_unknown(kind: str) -> Json:
    """All of it in one request; `kind` is an item that no other request of these tests has."""
    together: Json = {"input": [{"type": kind}]}
    for _, fields in UNKNOWN.values():
        together |= {**fields, "input": together["input"] + fields.get("input", [])}
    return together


@pytest.mark.parametrize("stream", [False, True], ids=["object", "stream"])
async def test_what_is_unknown_is_left_out_and_named(setup: Setup, ask: Asking, stream: bool) -> None:
    kind = f"future_of_{'streams' if stream else 'objects'}"
    answered = await ask.raw(**_all_unknown(kind), stream=stream)
    assert answered.status == 200, answered.body
    named = answered.headers["antiphon-ignored"].split(", ")
    wanted = [f"input.{kind}", *(name for name, _ in UNKNOWN.values())]
    assert [name for name in wanted if named.count(name) != 1] == [], named
    (chat,) = ask.chats
    assert texts(chat)[-1] == "hi" and not any(word in json.dumps(chat) for word in WORDS)
    line = json.loads(await setup.gateway.log_line(kind))
    assert line["level"] == "warning" and set(wanted) == set(line["ignored"])


@pytest.mark.parametrize("said", [{"type": "smell"}, CLOSED], ids=["unknown", "sealed"])
async def test_what_a_call_waits_for_is_not_left_out(ask: Asking, said: Json) -> None:
    """A result that cannot be read is one that cannot be read; one that is not understood is refused."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    answered = await ask.raw(input=[USER, call, {"type": "function_call_output", "call_id": "c", "output": [said]}])
    if said is CLOSED:
        assert answered.status == 200 and answered.headers["antiphon-ignored"] == "content.encrypted_content"
        assert "encrypted by another server" in texts(ask.chats[0], "tool")[0]
    else:
        assert answered.status == 400 and json.loads(answered.body)["error"]["param"] == "input[2].output"


@pytest.mark.slow
@pytest.mark.parametrize("door", ["relay", "drive", "http"])
async def test_strict_makes_each_of_them_a_400(tmp_path: Path, door: str) -> None:
    arguments = ("--door", "http") if door == "http" else ("--mode", door)
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, tmp_path, *arguments, environ={"ANTIPHON_STRICT": "true"})
        try:
            for name, fields in UNKNOWN.values():
                body = {"model": "demo-model", "input": "hi", **fields}
                answered = await post(f"{gateway.base_url}/responses", body, KEY)
                assert answered.status == 400, (name, answered.body)
                error = json.loads(answered.body)["error"]
                assert error["type"] == "invalid_request_error" and error["param"], name
            assert not server.requests
            answered = await post(f"{gateway.base_url}/responses", {"model": "demo-model", "input": "hi"}, KEY)
            assert answered.status == 200
        finally:
            await gateway.stop()


# What is newer than Chat


async def test_a_changed_configuration_holds_until_the_next_change(ask: Asking) -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object", "additionalProperties": False}}
    change = {"type": "configuration_update", "reasoning": {"effort": "high"}, "text": {"format": schema}}
    first = await ask(says('{"a":1}'), input=[USER, change], reasoning={"effort": "low"})
    second = await ask(says('{"a":2}'), input="more", previous_response_id=first["id"], stream=True)
    back = {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"format": None}}
    await ask(says("done"), input=[back, USER], previous_response_id=second["id"])
    told = [(chat["reasoning_effort"], "response_format" in chat) for chat in ask.chats]
    assert told == [("high", True), ("high", True), ("low", False)]
    assert is_continued(ask.chats)


async def test_agents_tell_each_other_what_they_say(ask: Asking) -> None:
    """Sealed by another server, as text, and as text that is only called encrypted."""
    head = {"type": "input_text", "text": "Payload:\n"}
    between = {"type": "agent_message", "author": "/root", "recipient": "/root/a"}
    plain = {"type": "encrypted_content", "encrypted_content": "Count the files."}
    answered = await ask.raw(input=[USER, *({**between, "content": [head, part]} for part in (head, plain, CLOSED))])
    assert answered.status == 200 and answered.headers["antiphon-ignored"] == "content.encrypted_content"
    told = texts(ask.chats[0])[1:]
    assert [one.splitlines()[-1] for one in told] == ["Payload:", "Count the files.", "Payload:"]
    assert "(encrypted)" in told[2] and not any("gAAAA" in one for one in told)


@pytest.mark.parametrize("stream", [False, True], ids=["object", "stream"])
async def test_calls_say_that_their_arguments_are_plain(ask: Asking, stream: bool) -> None:
    team = {"type": "namespace", "name": "collaboration", "description": "Agents.", "tools": [SPAWN]}
    call = ("collaboration__spawn_agent", '{"message":"Count."}')
    made = await ask(says("", call), input="hi", tools=[team], stream=stream)
    (item,) = made["output"]
    assert item["encrypted_function_args"] == [] and item["namespace"] == "collaboration"
    assert (await ask.stored(made))["output"] == [item]
    assert ask.chats[0]["tools"][0]["function"]["parameters"]["properties"] == {"message": WRITTEN}
    done = {"type": "function_call_output", "call_id": item["call_id"], "output": "{}"}
    final = await ask(says("Done."), input=[done], previous_response_id=made["id"], tools=[team], stream=stream)
    assert final["output"][0]["content"][0]["text"] == "Done." and is_continued(ask.chats)


async def test_a_tool_may_answer_later(ask: Asking) -> None:
    """The conversation goes on meanwhile, and nothing that was said before changes when the output comes."""
    options: Json = {"tools": [function("slow", **{"async": True})]}
    called = await ask(says("Let me see.", ("slow", "{}")), input="start it", **options)
    assert [(item["type"], item.get("phase")) for item in called["output"]] == [
        ("message", "commentary"),
        ("function_call", None),
    ]
    meanwhile = await ask(
        says("Waiting."), input="and meanwhile?", previous_response_id=called["id"], stream=True, **options
    )
    assert meanwhile["output"][0]["phase"] == "final_answer"
    late = {"type": "function_call_output", "call_id": called["output"][1]["call_id"], "output": "It is 42."}
    await ask(says("42."), input=[late], previous_response_id=meanwhile["id"], **options)
    unasked = {"type": "function_call_output", "name": "watch", "namespace": "door", "output": "it opened"}
    await ask(says("Oh."), input=[USER, unasked], previous_response_id=meanwhile["id"], **options)
    said = [chat["messages"][-1] for chat in ask.chats[2:4]]
    assert [(one["role"], one["content"]) for one in said] == [("tool", "It is 42."), ("tool", "it opened")]
    assert is_continued(ask.chats[:3])


@pytest.mark.parametrize("stream", [False, True], ids=["object", "stream"])
async def test_tools_are_searched_here_and_stay_found(ask: Asking, stream: bool) -> None:
    rates = function("get_exchange_rate", defer_loading=True)
    tools = [{"type": "tool_search"}, rates, function("now")]
    search, rate = ("tool_search", '{"query":"exchange rate"}'), ("get_exchange_rate", "{}")
    made = await ask(says("One moment.", search), says("", rate), input="rate?", tools=tools, stream=stream)
    kinds = [(item["type"], item.get("phase")) for item in made["output"]]
    assert kinds == [
        ("message", "commentary"),
        ("tool_search_call", None),
        ("tool_search_output", None),
        ("function_call", None),
    ]
    assert [tool["name"] for tool in made["output"][2]["tools"]] == ["get_exchange_rate"]
    assert (await ask.stored(made))["output"] == made["output"]
    done = {"type": "function_call_output", "call_id": made["output"][3]["call_id"], "output": "0.92"}
    final = await ask(says("0.92."), input=[done], previous_response_id=made["id"], tools=tools, stream=stream)
    assert final["output"][0]["phase"] == "final_answer"
    shown = [[tool["function"]["name"] for tool in chat["tools"]] for chat in ask.chats]
    assert shown == [["tool_search", "now"], *[["tool_search", "now", "get_exchange_rate"]] * 2]
    assert is_continued(ask.chats)


async def test_a_thread_that_was_compacted_elsewhere_goes_on(ask: Asking) -> None:
    compacted = {"type": "compaction", "encrypted_content": SEALED}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SEALED}
    first = await ask(says("On we go."), input=[compacted, thought, USER])
    await ask(says("And on."), input="and then?", previous_response_id=first["id"], stream=True)
    for chat in ask.chats:
        assert "compacted by another server" in texts(chat)[0] and "gAAAA" not in json.dumps(chat)
    assert is_continued(ask.chats)


async def test_a_search_of_the_clients_own_needs_a_service(setup: Setup) -> None:
    """`test_hosted_tools.py` has one that finds something."""
    answered = await post(f"{setup.gateway.base_url}/alpha/search", {"commands": {"search_query": [{"q": "x"}]}}, KEY)
    error = json.loads(answered.body)["error"]
    assert answered.status == 400 and error["code"] == "unsupported_tool" and "web_search.provider" in error["message"]


async def test_the_document_of_the_api_is_the_same_everywhere(setup: Setup) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{setup.gateway.origin}/openapi.json") as got:
        paths = (await got.json())["paths"]
    assert {"/v1/responses", "/v1/alpha/search", "/v1/prompts"} <= set(paths)
