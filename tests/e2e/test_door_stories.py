"""The door contract for what takes several requests: the same story through every door gives the same bytes.

Ids and times are normalised over a whole story, so that an id which comes back is the one that was given.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import DOORS, Door, Setup
from tests.support.chat_server import Wait, answer, event, text_stream
from tests.support.judge import check_response, check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TEXT: dict[str, Any] = {"model": "demo-model", "input": "hi"}
_USER = {"role": "user", "content": "hello"}
_NONE = "0" * 48


@dataclass(frozen=True)
class Step:
    """One request. `{name}` in path and body stands for what an earlier step kept; `keep` maps names to keys of the
    answer (`data.0.id`). `agent` is the client's User-Agent."""

    method: str
    path: str
    body: Any = None
    status: int = 200
    keep: dict[str, str] = field(default_factory=dict)
    owner: str = "alice"
    kind: str = "application/json"
    agent: str = "tests"


def _conversation(conversation: str = "{conv}", **fields: Any) -> dict[str, Any]:
    return {**TEXT, "conversation": conversation, **fields}


def _prompt(version: str) -> dict[str, Any]:
    return {**TEXT, "prompt": {"id": "{prompt}", "version": version, "variables": {"who": "Ann"}}}


def _stack(method: str, path: str, body: Any = None, status: int = 200, **keep: str) -> Step:
    return Step(method, path, body, status, keep, "stacy", agent="LlamaStackClient/Python 0.7.5")


def _with_file(kind: str = "input_file", **fields: Any) -> dict[str, Any]:
    return {**TEXT, "input": [{"role": "user", "content": [{"type": kind, "file_id": "{file}"}]}], **fields}


def _upload(name: str = "a.txt", content: str = "hello", status: int = 200, **keep: str) -> Step:
    parts = (('name="purpose"', "user_data"), (f'name="file"; filename="{name}"', content))
    body = "".join(f"--b\r\ncontent-disposition: form-data; {head}\r\n\r\n{text}\r\n" for head, text in parts)
    kind = "multipart/form-data; boundary=b"
    return Step("POST", "/files", f"{body}--b--\r\n".encode(), status, keep, "fay", kind)


STORIES: dict[str, tuple[Step, ...]] = {
    "a conversation": (
        Step("POST", "/conversations", {"metadata": {"a": "ü"}, "items": [_USER]}, keep={"conv": "id"}),
        Step("GET", "/conversations/{conv}"),
        Step("POST", "/conversations/{conv}", {"metadata": {"b": "c"}}),
        Step("POST", "/conversations/{conv}/items", {"items": [_USER, _USER]}, keep={"item": "data.1.id"}),
        Step("GET", "/conversations/{conv}/items?limit=2"),
        Step("GET", "/conversations/{conv}/items?order=asc&after={item}"),
        Step("GET", "/conversations/{conv}/items/{item}"),
        Step("DELETE", "/conversations/{conv}/items/{item}"),
        Step("GET", "/conversations/{conv}/items/{item}", status=404),
        Step("GET", "/conversations", keep={"conv": "data.0.id"}),
        Step("DELETE", "/conversations/{conv}"),
        Step("GET", "/conversations/{conv}", status=404),
        Step("GET", "/conversations"),
    ),
    "turns of a conversation": (
        Step("POST", "/conversations", None, keep={"conv": "id"}),
        Step("POST", "/responses", _conversation(), keep={"first": "id"}),
        Step("POST", "/responses", _conversation(stream=True)),
        Step("POST", "/responses", {**TEXT, "conversation": {"id": "{conv}"}, "store": False}),
        Step("GET", "/conversations/{conv}/items?order=asc", keep={"item": "first_id"}),
        Step("GET", "/responses/{first}"),
        Step("GET", "/responses/{first}/input_items"),
        Step("POST", "/responses", {**TEXT, "previous_response_id": "{first}"}),
        Step("POST", "/responses", {**TEXT, "input": [{"type": "item_reference", "id": "{item}"}]}),
        Step("DELETE", "/responses/{first}"),
        Step("GET", "/conversations/{conv}/items?order=asc"),
    ),
    "a prompt": (
        Step("POST", "/prompts", {"name": "n", "instructions": "You are {{who}}."}, keep={"prompt": "id"}),
        Step("GET", "/prompts/{prompt}"),
        Step("POST", "/prompts/{prompt}", {"instructions": "Be {{who}}.", "version": "1"}),
        Step("PUT", "/prompts/{prompt}", {"input": "Hello {{who}}", "model": "demo-model", "set_as_default": False}),
        Step("GET", "/prompts/{prompt}/versions"),
        Step("GET", "/prompts/{prompt}?version=1"),
        Step("POST", "/prompts/{prompt}/default_version", {"version": 1}),
        Step("GET", "/prompts", keep={"prompt": "data.0.id"}),
        Step("POST", "/responses", _prompt("1")),
        Step("POST", "/responses", {**_prompt("3"), "stream": True}),
        Step("POST", "/responses", {"prompt": {"id": "{prompt}", "version": "3", "variables": {"who": "Ann"}}}),
        Step("POST", "/responses", _prompt("4"), 400),
        Step("POST", "/responses", {**TEXT, "prompt": {"id": "{prompt}"}}, 400),
        Step("POST", "/responses", {**_prompt("1"), "temperature": 9}, 400),
        Step("GET", "/prompts/{prompt}", owner="bob", status=404),
        Step("POST", "/responses", _prompt("1"), owner="bob", status=400),
        Step("DELETE", "/prompts/{prompt}"),
        Step("PUT", "/prompts/{prompt}", {"instructions": "x"}, 404),
    ),
    "a prompt of a Llama Stack client": (
        _stack("POST", "/prompts", {"prompt": "You are {{who}}.", "variables": ["who"]}, prompt="prompt_id"),
        _stack("PUT", "/prompts/{prompt}", {"prompt": "Be {{who}}!", "version": 1, "set_as_default": False}),
        _stack("GET", "/prompts/{prompt}/versions"),
        _stack("GET", "/prompts/{prompt}?version=2"),
        _stack("GET", "/prompts/{prompt}"),
        _stack("PUT", "/prompts/{prompt}/set-default-version", {"version": 2}),
        _stack("GET", "/prompts", prompt="data.0.prompt_id"),
        Step("POST", "/responses", _prompt("2"), owner="stacy"),
        Step("GET", "/prompts/{prompt}", owner="stacy"),
        _stack("DELETE", "/prompts/{prompt}"),
        _stack("GET", "/prompts/{prompt}", status=404),
    ),
    "a file": (
        _upload(file="id"),
        Step("GET", "/files/{file}", owner="fay"),
        Step("GET", "/files/{file}/content", owner="fay"),
        Step("GET", "/files?purpose=user_data&limit=1", owner="fay", keep={"file": "first_id"}),
        Step("POST", "/responses", _with_file(), owner="fay", keep={"first": "id"}),
        Step("GET", "/responses/{first}/input_items", owner="fay"),
        Step("POST", "/responses", _with_file(stream=True), owner="fay"),
        Step("POST", "/responses", _with_file("input_image"), 400, owner="fay"),
        Step("GET", "/files/{file}", owner="bob", status=404),
        Step("GET", "/files/{file}/content", owner="bob", status=404),
        Step("DELETE", "/files/{file}", owner="bob", status=404),
        Step("POST", "/responses", _with_file(), 400, owner="bob"),
        Step("DELETE", "/files/{file}", owner="fay"),
        Step("GET", "/files/{file}/content", owner="fay", status=404),
        Step("POST", "/responses", {**TEXT, "previous_response_id": "{first}"}, owner="fay"),
        Step("GET", "/files", owner="fay"),
    ),
    "files asked for wrongly": (
        _upload(name="", status=400),
        Step("POST", "/files", {"purpose": "user_data"}, 415),
        Step("POST", "/files", b"", 400, kind="multipart/form-data; boundary=b"),
        Step("GET", "/files?limit=0", status=400),
        Step("GET", f"/files?after=file-{_NONE}", status=400),
        Step("PUT", "/files", {}, 405),
    ),
    "a stranger": (
        Step("POST", "/conversations", {"items": [_USER]}, keep={"conv": "id"}),
        Step("GET", "/conversations/{conv}", owner="bob", status=404),
        Step("POST", "/responses", _conversation(), owner="bob", status=404),
        Step("GET", "/conversations", owner="carol"),
    ),
    "conversations asked for wrongly": (
        Step("POST", "/conversations", {"items": [_USER] * 21}, 400),
        Step("POST", "/conversations", {"metadata": {"a": 1}}, 400),
        Step("POST", "/conversations", b"{", 400),
        Step("POST", "/conversations", {}, keep={"conv": "id"}),
        Step("POST", "/conversations/{conv}", {}, 400),
        Step("POST", "/conversations/{conv}/items", {"items": [{"role": "user"}]}, 400),
        Step("POST", "/conversations/{conv}/items", {"items": [{"type": "nothing"}]}),
        Step("GET", "/conversations/{conv}/items?limit=101", status=400),
        Step("PUT", "/conversations/{conv}", {}, 405),
        Step("POST", "/responses", _conversation(f"conv_{_NONE}"), 404),
        Step("POST", "/responses", _conversation(previous_response_id=f"resp_{_NONE}"), 400),
        Step("POST", "/responses", _conversation(input=[]), 400),
        Step("POST", "/responses", _conversation(input=[{"role": "robot"}]), 400),
        Step("POST", "/responses", _conversation()),
    ),
}

_ID = re.compile(rb"\b([a-z]+)[_-][0-9a-f]{48}\b")
_TIME = re.compile(rb'"(created_at|updated_at|completed_at)":\d+(\.\d+)?')


def _filled(value: Any, kept: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{([a-z]+)\}", lambda found: kept.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _filled(each, kept) for key, each in value.items()}
    return [_filled(each, kept) for each in value] if isinstance(value, list) else value


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if key.isdigit() else value[key]
    return value


async def _ask(session: aiohttp.ClientSession, url: str, step: Step, kept: dict[str, str]) -> tuple[int, str, bytes]:
    body = _filled(step.body, kept)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {"user-agent": step.agent, "x-request-id": "same"}
    headers = {"content-type": step.kind, "authorization": f"Bearer {step.owner}", **named}
    async with session.request(step.method, url + _filled(step.path, kept), data=data, headers=headers) as answered:
        return answered.status, answered.headers.get("content-type", ""), await answered.read()


def _check(response: dict[str, Any]) -> None:
    """Valid, but for the list that a prompt's messages make of `instructions`: neither schema has an answer to that."""
    check_response({**response, "instructions": None} if isinstance(response["instructions"], list) else response)


async def _tell(story: tuple[Step, ...], base_url: str) -> list[tuple[int, str, bytes]]:
    """What every step of the story got, normalised."""
    kept: dict[str, str] = {}
    names: dict[bytes, bytes] = {}
    seen = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for step in story:
            status, kind, body = await _ask(session, base_url, step, kept)
            assert status == step.status, (step, body)
            if kind.startswith("text/event-stream"):
                events = parse_sse(body)
                if "prompt" not in events[0]["response"]:
                    check_stream(events)
                _check(events[-1]["response"])
                body = b"\n\n".join(part for part in body.split(b"\n\n") if not part.startswith(b":"))
            elif kind == "application/json":
                value = json.loads(body)
                kept |= {name: _at(value, path) for name, path in step.keep.items()}
                if status == 200 and value.get("object") == "response" and "status" in value:
                    _check(value)
                if status >= 400:
                    assert set(value["error"]) == {"message", "type", "param", "code", "request_id"}
            body = _ID.sub(lambda found: names.setdefault(found[0], b"%b_%d" % (found[1], len(names))), body)
            seen.append((status, kind, _TIME.sub(rb'"\1":0', body)))
    return seen


@pytest.mark.parametrize("name", STORIES)
async def test_every_door_tells_the_same_story(name: str, doors: dict[Door, Setup]) -> None:
    told = {}
    for door, setup in doors.items():
        setup.server.forget_script()
        told[door] = await _tell(STORIES[name], setup.gateway.base_url)
    for door in DOORS:
        for step, here, there in zip(STORIES[name], told[door], told["http"], strict=True):
            assert here == there, (door, step)


async def test_a_conversation_is_locked_in_every_door(setup: Setup) -> None:
    """A second turn is refused while the first is streamed, and taken as soon as the first has ended."""
    url, headers = setup.gateway.base_url, {"authorization": "Bearer alice"}
    go_on = asyncio.Event()
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
        async with session.post(f"{url}/conversations", json={}) as answered:
            conversation = (await answered.json())["id"]
        turn = {**TEXT, "conversation": conversation}
        setup.server.script(answer(parts=[event("a"), Wait(go_on), *text_stream("b")]))
        async with session.post(f"{url}/responses", json={**turn, "stream": True}) as streamed:
            assert streamed.status == 200
            body = b""
            while b"output_text.delta" not in body:
                body += await streamed.content.readany()
            async with session.post(f"{url}/responses", json=turn) as refused:
                assert refused.status == 409
                assert (await refused.json())["error"]["code"] == "conversation_locked"
            go_on.set()
            body += await streamed.content.read()
        assert parse_sse(body)[-1]["type"] == "response.completed"
        async with session.post(f"{url}/responses", json=turn) as taken:
            assert taken.status == 200
        async with session.get(f"{url}/conversations/{conversation}/items") as listed:
            assert len((await listed.json())["data"]) == 4


async def test_a_client_that_leaves_gives_the_conversation_back(setup: Setup) -> None:
    url, headers = setup.gateway.base_url, {"authorization": "Bearer alice"}
    forever = asyncio.Event()
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
        async with session.post(f"{url}/conversations", json={}) as answered:
            conversation = (await answered.json())["id"]
        turn = {**TEXT, "conversation": conversation}
        setup.server.script(answer(parts=[event("a"), Wait(forever)]))
        streamed = await session.post(f"{url}/responses", json={**turn, "stream": True})
        body = b""
        while b"output_text.delta" not in body:
            body += await streamed.content.readany()
        streamed.close()
        async with asyncio.timeout(60):
            while True:
                async with session.post(f"{url}/responses", json=turn) as taken:
                    if taken.status != 409:
                        break
        assert taken.status == 200
        async with session.get(f"{url}/conversations/{conversation}/items") as listed:
            assert len((await listed.json())["data"]) == 2
