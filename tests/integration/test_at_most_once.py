"""What a tool changes is changed once: approvals, keys and calls, of two processes on one state."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Answer, Received, Wait, answer, chunk, completion, event, json_answer, text_stream
from tests.support.mcp_server import OpenMcpServer, open_mcp_server
from tests.support.state import lapse
from tests.support.waiting import until

_CALL = [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "dice__count", "arguments": "{}"}}]


@dataclass
class Setup:
    """Two processes, a model that calls the tool `count` of an MCP server once, and that server."""

    one: BackgroundApp
    other: BackgroundApp
    mcp: OpenMcpServer
    made: Processes

    def dice(self, approval: str = "always") -> dict[str, Any]:
        return {"type": "mcp", "server_label": "dice", "server_url": self.mcp.url, "require_approval": approval}

    async def post(self, path: str, app: BackgroundApp | None = None, key: str = "", **body: Any) -> tuple[int, Any]:
        app = app or self.one
        headers = {"authorization": "Bearer t"} | ({"idempotency-key": key} if key else {})
        async with app.session.post(f"{app.url}/{path}", json=body, headers=headers) as got:
            return got.status, await got.json(content_type=None)

    async def ask(self, app: BackgroundApp | None = None, approval: str = "always", **body: Any) -> tuple[int, Any]:
        return await self.post("responses", app, **{"model": "m", "tools": [self.dice(approval)], **body})


def _talk(asked: Received) -> Answer:
    """It calls the tool where no tool has said anything yet."""
    stream = asked.json.get("stream")
    if any(message["role"] == "tool" for message in asked.json["messages"]):
        return answer(parts=text_stream("Done.")) if stream else json_answer(completion("Done."))
    if not asked.json.get("tools"):
        return answer(parts=text_stream("Hi.")) if stream else json_answer(completion("Hi."))
    if stream:
        parts = [event(chunk({"tool_calls": _CALL})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]
        return answer(parts=parts)
    return json_answer(completion("", tool_calls=_CALL))


@asynccontextmanager
async def _setup(state: str, folder: Path) -> AsyncIterator[Setup]:
    async with open_mcp_server() as mcp, processes(folder, state) as made:
        made.chat.default = _talk
        yield Setup(await made.start(mcp=mcp.url), await made.start(mcp=mcp.url), mcp, made)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def state(request: pytest.FixtureRequest, postgres_url: str) -> str:
    return "sqlite:" if request.param == "sqlite" else postgres_url


@pytest.fixture
async def setup(state: str, tmp_path: Path) -> AsyncIterator[Setup]:
    async with _setup(state, tmp_path / "data") as made:
        yield made


def _answer(request: dict[str, Any], approve: bool = True) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}


def _kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def _refused(got: tuple[int, Any], by: str = "") -> None:
    status, body = got
    assert status == 400, body
    error = body["error"]
    assert (error["param"], error["code"]) == ("input[0].approval_request_id", "approval_already_answered")
    assert by in error["message"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
async def test_an_approval_is_used_once_in_a_chain_and_its_branches(setup: Setup, first: bool, second: bool) -> None:
    _, asked = await setup.ask(input="count")
    assert _kinds(asked) == ["mcp_list_tools", "mcp_approval_request"]
    request = asked["output"][-1]
    status, done = await setup.ask(input=[_answer(request, first)], previous_response_id=asked["id"])
    assert status == 200 and _kinds(done) == (["mcp_call", "message"] if first else ["message"])
    again = [_answer(request, second)]
    _refused(await setup.ask(setup.other, input=again, previous_response_id=asked["id"]), done["id"])
    _refused(await setup.ask(setup.other, input=again, previous_response_id=done["id"]))
    status, queued = await setup.ask(setup.other, input=again, previous_response_id=asked["id"], background=True)
    _refused((status, queued), done["id"])
    assert setup.mcp.counted == int(first)
    assert (await setup.ask(input="on", tools=[], previous_response_id=done["id"]))[0] == 200


async def test_of_many_that_approve_at_once_one_does(setup: Setup) -> None:
    _, asked = await setup.ask(input="count")
    given = {"input": [_answer(asked["output"][-1])], "previous_response_id": asked["id"]}
    apps = (setup.one, setup.other) * 4
    results = await asyncio.gather(*(setup.ask(app, **given) for app in apps))
    assert sorted(status for status, _ in results) == [200, *[400] * 7] and setup.mcp.counted == 1


async def test_an_approval_is_used_once_in_a_conversation(setup: Setup) -> None:
    _, conversation = await setup.post("conversations")
    _, asked = await setup.ask(input="count", conversation=conversation["id"])
    given = {"input": [_answer(asked["output"][-1])], "conversation": conversation["id"]}
    assert (await setup.ask(**given))[0] == 200
    _refused(await setup.ask(setup.other, **given))
    assert setup.mcp.counted == 1


@pytest.mark.parametrize("store", [True, False])
async def test_a_client_that_keeps_the_conversation_approves_once(setup: Setup, store: bool) -> None:
    talk: list[Any] = [{"role": "user", "content": "count"}]
    _, asked = await setup.ask(input=talk, store=store)
    request = asked["output"][-1]
    talk += [*asked["output"], _answer(request, False)]
    _, declined = await setup.ask(input=talk, store=store)
    talk += declined["output"]
    # All of it again, with every request.
    assert (await setup.ask(setup.other, input=[*talk, {"role": "user", "content": "on"}], store=store))[0] == 200
    status, refused = await setup.ask(input=[*talk, _answer(request)], store=store)
    assert (status, refused["error"]["code"]) == (400, "approval_already_answered") and setup.mcp.counted == 0
    _, asked = await setup.ask(input="count", store=store)
    request = asked["output"][-1]
    talk = [{"role": "user", "content": "count"}, *asked["output"], _answer(request)]
    _, done = await setup.ask(input=talk, store=store)
    assert _kinds(done) == ["mcp_call", "message"]
    status, refused = await setup.ask(setup.other, input=talk, store=store)
    assert (status, refused["error"]["code"]) == (400, "approval_already_answered")
    status, _ = await setup.ask(input=[*talk, *done["output"], {"role": "user", "content": "on"}], store=store)
    assert status == 200 and setup.mcp.counted == 1


async def test_background_responses_approve_once(setup: Setup) -> None:
    _, asked = await setup.ask(input="count")
    given = {"input": [_answer(asked["output"][-1])], "previous_response_id": asked["id"], "background": True}
    status, queued = await setup.ask(**given)
    assert status == 200
    _refused(await setup.ask(setup.other, **given), queued["id"])
    done = await setup.one.ended(queued["id"], token="t")
    assert done["status"] == "completed" and _kinds(done) == ["mcp_call", "message"]
    _refused(await setup.ask(setup.other, **given), queued["id"])
    assert setup.mcp.counted == 1


async def test_of_two_requests_one_may_be_answered_first(setup: Setup) -> None:
    calls = [{**_CALL[0], "index": number, "id": f"call_{number}"} for number in range(2)]
    setup.made.chat.script(json_answer(completion("", tool_calls=calls)))
    _, asked = await setup.ask(input="count twice")
    *_, first, second = asked["output"]
    _, one = await setup.ask(input=[_answer(first)], previous_response_id=asked["id"])
    _, two = await setup.ask(input=[_answer(second)], previous_response_id=one["id"])
    assert _kinds(one)[0] == _kinds(two)[0] == "mcp_call" and setup.mcp.counted == 2


async def test_an_approval_that_nothing_came_of_can_be_given_again(setup: Setup) -> None:
    _, asked = await setup.ask(input="count")
    declined = {"input": [_answer(asked["output"][-1], False)], "previous_response_id": asked["id"]}
    setup.made.chat.script(json_answer({"error": {"message": "down"}}, 500))
    assert (await setup.ask(**declined))[0] >= 500
    given = {"input": [_answer(asked["output"][-1])], "previous_response_id": asked["id"]}
    status, refused = await setup.ask(tools=[{**setup.dice(), "server_label": "else"}], **given)
    assert (status, refused["error"]["param"]) == (400, "tools")
    assert (await setup.ask(setup.other, **given))[0] == 200 and setup.mcp.counted == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_what_ran_stands_where_its_client_can_read_it(setup: Setup, stream: bool) -> None:
    """The model fails after the call: the conversation has the call, and so has the response that failed."""
    _, conversation = await setup.post("conversations")
    _, asked = await setup.ask(input="count", conversation=conversation["id"])
    given = {"input": [_answer(asked["output"][-1])], "conversation": conversation["id"]}
    setup.made.chat.script(json_answer({"error": {"message": "down"}}, 500))
    if stream:
        body = {"model": "m", "tools": [setup.dice()], "stream": True, **given}
        headers = {"authorization": "Bearer t"}
        async with setup.one.session.post(f"{setup.one.url}/responses", json=body, headers=headers) as got:
            last = (await got.text()).strip().split("\n\n")[-2]
        failed = json.loads(last.partition("data: ")[2])["response"]["id"]
    else:
        status, error = await setup.ask(**given)
        assert status >= 500
        failed = error["error"]["message"].split("'")[-2]
    found = await setup.other.get(failed, token="t")
    assert found["status"] == "failed" and _kinds(found) == ["mcp_call"]
    (call,) = found["output"]
    assert (call["status"], call["approval_request_id"]) == ("completed", asked["output"][-1]["id"])
    _refused(await setup.ask(setup.other, **given))
    _, page = await setup.other.ask(f"/../conversations/{conversation['id']}/items?order=asc", token="t")
    kinds = [item["type"] for item in page["data"]]
    assert kinds[-2:] == ["mcp_approval_response", "mcp_call"]
    assert (await setup.ask(input="on", conversation=conversation["id"]))[0] == 200 and setup.mcp.counted == 1


# A process that dies while a call runs: as far as the others know it is dead when its leases are over.


def _waits(setup: Setup) -> None:
    """The model calls a tool that does not answer."""
    call = {**_CALL[0], "function": {"name": "dice__wait", "arguments": "{}"}}
    setup.made.chat.script(json_answer(completion("", tool_calls=[call])))


def _die(setup: Setup) -> None:
    lapse(setup.made.data, "idempotency", "lease_until", "lease_until IS NOT NULL")


def _unknown(response: dict[str, Any]) -> None:
    assert response["status"] == "failed" and "died while tools" in response["error"]["message"]
    call = response["output"][-1]
    assert (call["type"], call["name"], call["status"]) == ("mcp_call", "wait", "incomplete")
    assert "outcome of this call is unknown" in json.dumps(call["error"])


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Setup]:
    async with _setup("sqlite:", tmp_path / "data") as made:
        yield made
        made.mcp.stops.set()


@pytest.mark.parametrize("store", [True, False])
async def test_a_key_whose_process_died_while_a_call_ran_makes_no_second_run(here: Setup, store: bool) -> None:
    _waits(here)
    given: dict[str, Any] = {"input": "wait", "approval": "never", "store": store, "key": "k"}
    first = asyncio.create_task(here.ask(**given))
    await asyncio.wait_for(here.mcp.started.wait(), 20)
    assert (await here.ask(here.other, **given))[0] == 409
    _die(here)
    asked = len(here.made.chat.requests)
    for _ in range(2):
        status, again = await here.ask(here.other, **given)
        if store:
            assert status == 200
            _unknown(again)
            _unknown(await here.other.get(again["id"], token="t"))
        else:
            assert (status, again["error"]["code"]) == (422, "idempotency_result_not_kept")
    assert len(here.made.chat.requests) == asked
    assert here.made.sql("SELECT count(*) FROM idempotency WHERE lease_until IS NOT NULL") == [(0,)]
    here.mcp.stops.set()
    await first


async def _died_in_a_conversation(here: Setup) -> tuple[asyncio.Task[Any], str]:
    """A process dies while it serves a turn of a conversation whose tool runs: its client, and the conversation."""
    _, conversation = await here.post("conversations")
    _waits(here)
    first = asyncio.create_task(here.ask(input="wait", approval="never", conversation=conversation["id"]))
    await asyncio.wait_for(here.mcp.started.wait(), 20)
    _die(here)
    return first, conversation["id"]


async def _swept(here: Setup) -> None:
    """A process that starts now ends the response of the dead one."""
    here.made.sql("DELETE FROM sweeps")
    third = await here.made.start()
    async with asyncio.timeout(20):
        while not (found := here.made.sql("SELECT id FROM responses")):
            await asyncio.sleep(0.01)
    _unknown(await third.get(found[0][0], token="t"))


async def test_what_a_dead_process_has_called_is_kept_without_a_key_too(here: Setup) -> None:
    first, _ = await _died_in_a_conversation(here)
    await _swept(here)
    here.mcp.stops.set()
    await first


async def test_a_dead_response_is_kept_whose_conversation_is_gone(here: Setup) -> None:
    first, conversation = await _died_in_a_conversation(here)
    lapse(here.made.data, "conversations", "locked_until")
    url = f"{here.other.url}/conversations/{conversation}"
    async with here.other.session.delete(url, headers={"authorization": "Bearer t"}) as got:
        assert got.status == 200
    await _swept(here)
    await until(lambda: here.made.sql("SELECT count(*) FROM idempotency WHERE lease_until IS NOT NULL") == [(0,)])
    here.mcp.stops.set()
    await first


async def test_a_background_response_that_has_sent_a_call_is_not_run_again(here: Setup) -> None:
    _waits(here)
    _, queued = await here.ask(input="wait", approval="never", background=True)
    await asyncio.wait_for(here.mcp.started.wait(), 20)
    asked = len(here.made.chat.requests)
    running = here.one if queued["id"] in here.one.app.workers.running else here.other
    await running.kill()
    here.made.expire_leases()
    another = here.other if running is here.one else here.one
    another.app.workers.wake()
    ended = await another.ended(queued["id"], token="t")
    _unknown(ended)
    assert len(here.made.chat.requests) == asked


async def test_a_background_response_whose_process_is_stopped_sends_its_calls_once(here: Setup) -> None:
    """A process that stops in order gives its jobs back, but not one that has claimed calls."""
    _waits(here)
    _, queued = await here.ask(input="wait", approval="never", background=True)
    await asyncio.wait_for(here.mcp.started.wait(), 20)
    asked = len(here.made.chat.requests)
    running = here.one if queued["id"] in here.one.app.workers.running else here.other
    await running.app.workers.aclose()
    another = here.other if running is here.one else here.one
    another.app.workers.wake()
    _unknown(await another.ended(queued["id"], token="t"))
    assert len(here.made.chat.requests) == asked


async def test_who_was_taken_for_dead_sends_nothing_any_more(here: Setup) -> None:
    """A process stands still while the model speaks; meanwhile another serves the request of its key."""
    gate = asyncio.Event()
    body = json.dumps(completion("", tool_calls=_CALL)).encode()
    here.made.chat.script(answer(headers=[("content-type", "application/json")], parts=[Wait(gate), body]))
    given: dict[str, Any] = {"input": "count", "approval": "never", "key": "k"}
    first = asyncio.create_task(here.ask(**given))
    await until(lambda: len(here.made.chat.requests) == 1)
    _die(here)
    status, done = await here.ask(here.other, **given)
    assert status == 200 and here.mcp.counted == 1
    gate.set()
    status, late = await first
    assert status >= 500, late
    assert here.mcp.counted == 1
    status, again = await here.ask(**given)
    assert (status, again["id"]) == (200, done["id"])


async def test_a_background_response_that_is_cancelled_shows_what_it_has_called(here: Setup) -> None:
    _waits(here)
    _, queued = await here.ask(input="wait", approval="never", background=True)
    await asyncio.wait_for(here.mcp.started.wait(), 20)
    status, cancelled = await here.other.ask(f"/{queued['id']}/cancel", "POST", token="t")
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert [item["type"] for item in cancelled["output"]][-1] == "mcp_call"


async def test_what_ended_well_leaves_nothing_behind(setup: Setup) -> None:
    _, done = await setup.ask(input="count", approval="never")
    assert _kinds(done) == ["mcp_list_tools", "mcp_call", "message"]
    assert await setup.one.app.stores.keys.left_calls() == []
    owner_keys = setup.one.app.stores.keys
    assert await owner_keys.sweep() == (0,) and setup.mcp.counted == 1


async def test_with_a_key_a_client_that_gives_up_runs_a_tool_once(setup: Setup) -> None:
    """As the official client does by itself: it gives up, and sends the same again."""
    gate = asyncio.Event()
    setup.made.chat.script(json_answer(completion("", tool_calls=_CALL)), answer(parts=[Wait(gate)]))
    given: dict[str, Any] = {"input": "count", "approval": "never", "key": "k"}
    for app in (setup.one, setup.other):
        leaving = asyncio.create_task(setup.ask(app, **given))
        await until(lambda: setup.mcp.counted == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    assert (await setup.ask(setup.other, **given))[0] == 409
    gate.set()
    async with asyncio.timeout(20):
        while (got := await setup.ask(setup.other, **given))[0] == 409:
            await asyncio.sleep(0.02)
    # The model's answer was none: what ran is kept, and nothing runs again.
    assert got[0] == 200 and got[1]["status"] == "failed" and _kinds(got[1]) == ["mcp_list_tools", "mcp_call"]
    assert setup.mcp.counted == 1
