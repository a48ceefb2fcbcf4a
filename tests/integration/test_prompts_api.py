"""Prompts over the HTTP door: their operations, what `prompt` in a request leads to, and every way to ask wrongly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from antiphon.doors.owners import OwnerResolver
from tests.support.http_door import OpenHttpDoor, RawAnswer, open_http_door, post_bytes
from tests.support.judge import check_response, parse_sse

NOWHERE = "pmpt_" + "0" * 48
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


@pytest.fixture
async def door() -> AsyncIterator[OpenHttpDoor]:
    async with open_http_door(owners=OwnerResolver("bearer", key=b"key")) as door:
        yield door


async def send(door: OpenHttpDoor, method: str, path: str, value: Any = None, owner: str = "alice") -> RawAnswer:
    headers = {"authorization": f"Bearer {owner}", "x-request-id": "same"}
    return await door.ask(post_bytes(value, path=f"/v1{path}", method=method, headers=headers))


async def ask(door: OpenHttpDoor, method: str, path: str, value: Any = None) -> Any:
    """What a request that must succeed answers."""
    answered = await send(door, method, path, value)
    assert answered.status == 200, answered.body
    return answered.json


async def made(door: OpenHttpDoor, **template: Any) -> str:
    found: str = (await ask(door, "POST", "/prompts", template))["id"]
    return found


async def create(door: OpenHttpDoor, prompt: Any, **fields: Any) -> RawAnswer:
    return await send(door, "POST", "/responses", {"model": "m", "input": "hi", "prompt": prompt, **fields})


def chat(door: OpenHttpDoor) -> Any:
    """The last model call."""
    return json.loads(door.chat.requests[-1].body)


def check(response: dict[str, Any]) -> None:
    """The response is valid but for `instructions`.

    With a prompt's messages it is a list. Open Responses knows no such list, and in OpenAI's schema a message fits two
    of the things that one of may stand there.
    """
    assert isinstance(response["instructions"], list)
    check_response({**response, "instructions": None})


# The operations


async def test_a_prompt_is_made_read_changed_and_deleted(door: OpenHttpDoor) -> None:
    template = {"instructions": "You are {{who}}.", "model": "gpt", "temperature": 0.5}
    prompt = await ask(
        door,
        "POST",
        "/prompts",
        {"name": "greeter", "description": "says hello", "metadata": {"a": "ü"}, "variables": ["who"], **template},
    )
    assert prompt == {
        "id": prompt["id"],
        "object": "prompt",
        "created_at": prompt["created_at"],
        "updated_at": prompt["created_at"],
        "name": "greeter",
        "description": "says hello",
        "version": "1",
        "default_version": "1",
        "last_version": "1",
        "is_default": True,
        "variables": ["who"],
        "metadata": {"a": "ü"},
        **template,
    }
    assert prompt["id"].startswith("pmpt_") and len(prompt["id"]) <= 64
    path = f"/prompts/{prompt['id']}"
    assert await ask(door, "GET", path) == prompt
    listed = await ask(door, "GET", "/prompts")
    assert listed["data"] == [prompt] and listed["has_more"] is False and listed["first_id"] == prompt["id"]

    # POST keeps what it does not name, and null takes a field away.
    second = await ask(door, "POST", path, {"instructions": "You are {{who}} of {{where}}.", "temperature": None})
    assert (second["version"], second["default_version"], second["variables"]) == ("2", "2", ["who", "where"])
    assert second["model"] == "gpt" and "temperature" not in second and second["description"] == "says hello"
    # PUT keeps nothing of the template.
    third = await ask(door, "PUT", path, {"input": "Say {{what}}", "set_as_default": False, "version": 2})
    assert (third["version"], third["default_version"], third["is_default"]) == ("3", "2", False)
    assert third["variables"] == ["what"] and "model" not in third and third["description"] is None
    assert (await ask(door, "GET", path))["version"] == "2"
    for asked in (f"{path}?version=1", f"{path}/versions/1"):
        first = await ask(door, "GET", asked)
        assert first["instructions"] == "You are {{who}}." and first["is_default"] is False
    versions = await ask(door, "GET", f"{path}/versions")
    assert [each["version"] for each in versions["data"]] == ["3", "2", "1"]

    # What belongs to the prompt makes no version.
    renamed = await ask(door, "POST", path, {"name": "other", "metadata": {"b": "c"}})
    assert (renamed["version"], renamed["last_version"], renamed["name"]) == ("2", "3", "other")
    for name, value in (("default_version", 1), ("set-default-version", "3")):
        chosen = await ask(door, "POST", f"{path}/{name}", {"version": value})
        assert chosen["version"] == chosen["default_version"] == str(value)
    assert await ask(door, "DELETE", path) == {"id": prompt["id"], "object": "prompt.deleted", "deleted": True}
    assert (await send(door, "GET", path)).status == 404


@pytest.mark.parametrize("name", ["prompt", "template"])
async def test_other_names_for_its_text(door: OpenHttpDoor, name: str) -> None:
    prompt = await ask(door, "POST", "/prompts", {name: "Be {{how}}."})
    assert prompt["instructions"] == "Be {{how}}." and name not in prompt


async def test_prompts_are_listed_in_pages(door: OpenHttpDoor) -> None:
    ids = [await made(door, instructions="x") for _ in range(5)]
    await send(door, "POST", "/prompts", {"instructions": "x"}, owner="bob")
    seen: list[str] = []
    more = True
    while more:
        after = f"&after={seen[-1]}" if seen else ""
        page = await ask(door, "GET", f"/prompts?limit=2&order=asc{after}")
        seen += [each["id"] for each in page["data"]]
        more = page["has_more"]
    assert sorted(seen) == sorted(ids) and len(seen) == 5


async def test_a_change_of_an_old_version_is_a_409(door: OpenHttpDoor) -> None:
    prompt = await made(door, instructions="one")
    await ask(door, "POST", f"/prompts/{prompt}", {"instructions": "two", "version": "1"})
    refused = await send(door, "PUT", f"/prompts/{prompt}", {"instructions": "three", "version": 1})
    assert refused.status == 409 and refused.error["code"] == "version_conflict"
    assert (await ask(door, "GET", f"/prompts/{prompt}"))["instructions"] == "two"


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "code"),
    [
        ("POST", "", {}, "instructions", "missing_required_parameter"),
        ("POST", "", {"name": "n"}, "instructions", "missing_required_parameter"),
        ("POST", "", {"instructions": 5}, "instructions", "invalid_type"),
        ("POST", "", {"instructions": "x", "template": "y"}, "template", "mutually_exclusive_parameters"),
        ("POST", "", {"instructions": "x", "stream": True}, "stream", "unknown_parameter"),
        ("POST", "", {"instructions": "x", "name": "n" * 257}, "name", "string_above_max_length"),
        ("POST", "", {"instructions": "x", "name": 1}, "name", "invalid_type"),
        ("POST", "", {"instructions": "x", "metadata": {"a": 1}}, "metadata", "invalid_type"),
        ("POST", "", {"instructions": "x", "temperature": 9}, "temperature", "decimal_above_max_value"),
        ("POST", "", {"instructions": "x", "tools": [{"type": "function"}]}, "tools[0].name", None),
        ("POST", "", {"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_value"),
        ("POST", "", {"input": [{"type": "reasoning"}]}, "input[0].type", "invalid_value"),
        ("POST", "", {"instructions": "{{a}}", "variables": ["b"]}, "variables", "invalid_value"),
        ("POST", "", {"instructions": "{{a}}", "variables": "a"}, "variables", "invalid_type"),
        ("POST", "/{}", {"instructions": 5}, "instructions", "invalid_type"),
        ("POST", "/{}", {"instructions": "x", "set_as_default": "no"}, "set_as_default", "invalid_type"),
        ("POST", "/{}", {"instructions": "x", "version": "last"}, "version", "invalid_value"),
        ("PUT", "/{}", {"instructions": None}, "instructions", "missing_required_parameter"),
        ("POST", "/{}/default_version", {}, "version", "missing_required_parameter"),
        ("POST", "/{}/default_version", {"version": 0}, "version", "invalid_value"),
        ("GET", "?after=pmpt_none", None, "after", None),
        ("GET", "?limit=1000", None, "limit", "integer_above_max_value"),
    ],
)
async def test_what_is_wrong_is_named(
    door: OpenHttpDoor, method: str, path: str, body: Any, param: str, code: str | None
) -> None:
    prompt = await made(door, instructions="one")
    refused = await send(door, method, "/prompts" + path.replace("{}", prompt), body)
    assert refused.status == 400, refused.body
    assert refused.error["param"] == param and (code is None or refused.error["code"] == code)
    kept = await ask(door, "GET", "/prompts")
    assert [each["last_version"] for each in kept["data"]] == ["1"]


async def test_missing_and_foreign_are_one_answer(door: OpenHttpDoor) -> None:
    prompt = await made(door, instructions="secret")
    for method, path, body in (
        ("GET", "", None),
        ("GET", "?version=1", None),
        ("POST", "", {"instructions": "x"}),
        ("PUT", "", {"instructions": "x"}),
        ("DELETE", "", None),
        ("GET", "/versions", None),
        ("GET", "/versions/1", None),
        ("POST", "/default_version", {"version": 1}),
    ):
        foreign = await send(door, method, f"/prompts/{prompt}{path}", body, owner="bob")
        missing = await send(door, method, f"/prompts/{NOWHERE}{path}", body, owner="bob")
        assert foreign.status == missing.status == 404
        assert foreign.body.replace(prompt.encode(), b"") == missing.body.replace(NOWHERE.encode(), b"")
    for version in ("2", "0", "x", "1e3"):
        assert (await send(door, "GET", f"/prompts/{prompt}/versions/{version}")).status == 404
    answers = [await send(door, "POST", "/responses", {"prompt": {"id": each}}, "bob") for each in (prompt, NOWHERE)]
    assert answers[0].status == answers[1].status == 400
    assert answers[0].error["code"] == "prompt_not_found" and answers[0].error["param"] == "prompt"
    assert answers[0].body.replace(prompt.encode(), b"") == answers[1].body.replace(NOWHERE.encode(), b"")
    assert not door.chat.requests


# In a request


async def test_a_request_may_consist_of_a_prompt(door: OpenHttpDoor) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    prompt = await made(
        door,
        description="for people only",
        model="gpt-x",
        instructions="You are {{who}}.",
        input=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What of {{what}}?"}],
        tools=[tool],
        temperature=0.25,
        text={"format": {"type": "json_object"}, "verbosity": "low"},
    )
    reference = {"id": prompt, "variables": {"who": "Ann", "what": {"type": "input_text", "text": "Rome"}}}
    answered = await send(door, "POST", "/responses", {"prompt": reference})
    assert answered.status == 200, answered.body
    assert answered.header("antiphon-ignored") == "text.verbosity", (
        "what the prompt says is named like what clients say"
    )
    response = answered.json
    assert response["model"] == "gpt-x" and response["temperature"] == 0.25
    assert response["prompt"] == {**reference, "version": "1"}
    assert [item["role"] for item in response["instructions"]] == ["developer", "developer", "user"]
    check(response)
    sent = chat(door)
    assert sent["model"] == "gpt-x" and sent["temperature"] == 0.25 and sent["tools"][0]["function"]["name"] == "f"
    assert [(each["role"], each["content"]) for each in sent["messages"]] == [
        ("system", "You are Ann.\n\nBe brief."),
        ("user", "What of Rome?"),
    ]
    stored = await ask(door, "GET", f"/responses/{response['id']}")
    assert stored["prompt"] == response["prompt"]
    assert (await ask(door, "GET", f"/responses/{response['id']}/input_items"))["data"] == []


async def test_the_request_wins_over_the_prompt(door: OpenHttpDoor) -> None:
    prompt = await made(door, model="gpt-x", instructions="template", temperature=0.25, input="from the template")
    answered = await create(
        door, {"id": prompt}, model="mine", instructions="mine", temperature=1.0, top_p=None, stream=True
    )
    events = parse_sse(answered.body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        if "response" in event:
            check(event["response"])
    assert {event["response"]["prompt"]["version"] for event in events if "response" in event} == {"1"}
    sent = chat(door)
    assert (sent["model"], sent["temperature"]) == ("mine", 1.0)
    assert [each["content"] for each in sent["messages"]] == ["mine", "from the template", "hi"]


async def test_the_version_that_is_asked_for(door: OpenHttpDoor) -> None:
    prompt = await made(door, instructions="one")
    await ask(door, "POST", f"/prompts/{prompt}", {"instructions": "two"})
    for version, said in ((None, "two"), ("1", "one"), (2, "two")):
        answered = await create(door, {"id": prompt, "version": version})
        assert chat(door)["messages"][0]["content"] == answered.json["instructions"] == said
        assert answered.json["prompt"] == {"id": prompt, "version": str(version or 2), "variables": {}}
    refused = await create(door, {"id": prompt, "version": "3"})
    assert refused.status == 400 and refused.error["code"] == "prompt_not_found"


async def test_a_picture_as_a_variable(door: OpenHttpDoor) -> None:
    prompt = await made(door, input=[{"role": "user", "content": "Look: {{it}} Nice?"}])
    assert (await create(door, {"id": prompt, "variables": {"it": IMAGE}}, input=None)).status == 200
    (message,) = chat(door)["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text"]


async def test_a_prompts_messages_are_no_part_of_the_conversation(door: OpenHttpDoor) -> None:
    """Like instructions: said anew with every request, and of no later turn."""
    prompt = await made(door, input=[{"role": "user", "content": "from the template"}])
    conversation = (await ask(door, "POST", "/conversations", {}))["id"]
    answered = await create(door, {"id": prompt}, conversation=conversation, input="one")
    assert answered.status == 200
    await create(door, {"id": prompt}, conversation=conversation, input="two")
    said = [each["content"] for each in chat(door)["messages"]]
    assert said[:2] == ["from the template", "one"] and said[3:] == ["two"] and len(said) == 4
    items = await ask(door, "GET", f"/conversations/{conversation}/items?order=asc")
    assert [item["content"][0]["text"] for item in items["data"] if item["role"] == "user"] == ["one", "two"]
    plain = {"model": "m", "input": "three", "previous_response_id": answered.json["id"]}
    await send(door, "POST", "/responses", plain)
    assert chat(door)["messages"][0]["content"] == "one"


@pytest.mark.parametrize(
    ("template", "changes", "param", "code"),
    [
        ({"instructions": "{{a}}"}, {}, "prompt.variables", "missing_required_parameter"),
        ({"instructions": "x"}, {"prompt": {"variables": {"a": "b"}}}, "prompt.variables", "unknown_parameter"),
        ({"instructions": "{{a}}"}, {"prompt": {"variables": {"a": 1}}}, "prompt.variables.a", "invalid_type"),
        ({"instructions": "{{a}}"}, {"prompt": {"variables": {"a": IMAGE}}}, "prompt.variables.a", "invalid_value"),
        ({"instructions": "x"}, {"model": None}, "model", "missing_required_parameter"),
        ({"instructions": "x"}, {"input": None}, "input", "missing_required_parameter"),
        ({"instructions": "x"}, {"temperature": 7}, "temperature", "decimal_above_max_value"),
        ({"instructions": "x"}, {"prompt": {"version": "x"}}, "prompt.version", "invalid_value"),
    ],
)
async def test_a_request_that_does_not_fit_its_prompt(
    door: OpenHttpDoor, template: dict[str, Any], changes: dict[str, Any], param: str, code: str
) -> None:
    prompt = await made(door, **template)
    reference = {"id": prompt, **changes.pop("prompt", {})}
    refused = await create(door, reference, **changes)
    assert refused.status == 400, refused.body
    assert (refused.error["param"], refused.error["code"]) == (param, code)
    assert not door.chat.requests


async def test_over_a_websocket_and_in_a_count(door: OpenHttpDoor) -> None:
    prompt = await made(door, model="gpt-x", instructions="You are {{who}}.")
    request = {"prompt": {"id": prompt, "variables": {"who": "Ann"}}, "input": "hi"}
    counted = await ask(door, "POST", "/responses/input_tokens", request)
    assert counted["input_tokens"] > 5
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer alice"}) as session,
        session.ws_connect(f"http://{door.address}/v1/responses") as socket,
    ):
        await socket.send_json({"type": "response.create", **request})
        while (event := await socket.receive_json(timeout=10))["type"] != "response.completed":
            assert event["type"].startswith("response."), event
        assert event["response"]["model"] == "gpt-x"
        await socket.send_json({"type": "response.create", **request, "prompt": {"id": prompt}})
        event = await socket.receive_json(timeout=10)
        assert (event["type"], event["error"]["param"]) == ("error", "prompt.variables")
    assert chat(door)["messages"][0]["content"] == "You are Ann."


async def test_a_template_holds_parameters_of_chat_servers_too(door: OpenHttpDoor) -> None:
    prompt = await made(door, instructions="Hi.", seed=5, chat_template_kwargs={"enable_thinking": False})
    assert (await create(door, {"id": prompt}, seed=6)).status == 200
    sent = chat(door)
    assert (sent["seed"], sent["chat_template_kwargs"]) == (6, {"enable_thinking": False})
    wrong = await send(door, "POST", "/prompts", {"instructions": "Hi.", "top_k": "many"})
    assert wrong.status == 400 and wrong.error["param"] == "top_k"


# Llama Stack's clients


async def test_a_llama_stack_client_gets_its_own_shape(door: OpenHttpDoor) -> None:
    async def stack(method: str, path: str, value: Any = None) -> Any:
        headers = {"authorization": "Bearer alice", "user-agent": "LlamaStackClient/Python 0.7.5"}
        answered = await door.ask(post_bytes(value, path=f"/v1{path}", method=method, headers=headers))
        assert answered.status == 200, answered.body
        return answered.json

    prompt = await stack("POST", "/prompts", {"prompt": "You are {{who}}.", "variables": ["who"]})
    number = prompt["prompt_id"]
    first = {"prompt_id": number, "prompt": "You are {{who}}.", "version": 1, "variables": ["who"], "is_default": True}
    assert prompt == first
    second = {"prompt_id": number, "prompt": "Be {{who}}!", "version": 2, "variables": ["who"], "is_default": True}
    assert await stack("PUT", f"/prompts/{number}", {"prompt": "Be {{who}}!", "version": 1}) == second
    before = {**first, "is_default": False}
    assert (await stack("GET", f"/prompts/{number}/versions"))["data"] == [before, second]
    assert await stack("GET", f"/prompts/{number}?version=1") == before
    assert await stack("PUT", f"/prompts/{number}/set-default-version", {"version": 1}) == first
    assert (await stack("GET", "/prompts"))["data"] == [first]
    # Everybody else sees the same prompt as it is here.
    assert (await ask(door, "GET", f"/prompts/{number}"))["instructions"] == "You are {{who}}."
