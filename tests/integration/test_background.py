"""Background responses over HTTP and SQLite: queued, run, followed, resumed, cancelled, by one process or by two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.jobs import split_events
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Answer, Wait, answer, completion, event, json_answer, text_stream
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.waiting import until

DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def many(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
async def one(many: Processes) -> BackgroundApp:
    return await many.start()


def held(gate: asyncio.Event, first: str = "Hel", rest: str = "lo") -> Answer:
    """An answer that waits in its middle."""
    return answer(parts=[event(first), Wait(gate), *text_stream(rest)])


# Alone


async def test_queued_then_completed(one: BackgroundApp) -> None:
    queued = await one.create(metadata={"a": "b"})
    check_response(queued)
    assert (queued["status"], queued["output"], queued["usage"], queued["background"]) == ("queued", [], None, True)
    done = await one.ended(queued["id"])
    check_response(done)
    assert done["status"] == "completed" and done["output"][0]["content"][0]["text"] == "Hello"
    assert (done["created_at"], done["metadata"]) == (queued["created_at"], {"a": "b"})
    assert done["completed_at"] is not None and done["usage"]["total_tokens"] > 0


async def test_what_is_asked_of_the_model_is_what_a_client_would_ask(many: Processes, one: BackgroundApp) -> None:
    asked: dict[str, Any] = {"instructions": "Be brief.", "temperature": 0.5, "max_output_tokens": 50}
    await one.ended((await one.create(**asked))["id"])
    async with one.session.post(f"{one.url}/responses", json={"model": "m", "input": "hi", **asked}) as got:
        assert got.status == 200
    background, foreground = many.chat.requests
    assert background.json == foreground.json and background.headers == foreground.headers


async def test_its_states_and_its_input_while_it_runs(many: Processes) -> None:
    gate = asyncio.Event()
    many.chat.script(
        answer(200, (("content-type", "application/json"),), [Wait(gate), json.dumps(completion("x")).encode()])
    )
    idle = await many.start(workers=0)
    queued = await idle.create(input=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    _, first = await idle.ask(f"/{queued['id']}/input_items")
    assert [item["content"][0]["text"] for item in first["data"]] == ["b", "a"]
    assert (await idle.get(queued["id"]))["status"] == "queued"
    other = await many.start()
    await idle.reaches(queued["id"], "in_progress")
    running = await idle.get(queued["id"])
    check_response(running)
    assert running["output"] == []
    status, refused = await idle.ask(f"/{queued['id']}?stream=true")
    assert (status, refused["error"]["param"]) == (400, "stream")
    gate.set()
    assert (await idle.ended(queued["id"]))["status"] == "completed"
    assert (await other.ask(f"/{queued['id']}/input_items"))[1] == first


async def test_it_can_be_continued_once_it_is_over(many: Processes, one: BackgroundApp) -> None:
    gate = asyncio.Event()
    many.chat.script(held(gate))
    running = await one.create(stream=False)
    async with one.session.post(
        f"{one.url}/responses", json={"model": "m", "input": "more", "previous_response_id": running["id"]}
    ) as got:
        assert got.status == 400
        error = (await got.json())["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_finished")
    gate.set()
    await one.ended(running["id"])
    second = await one.ended((await one.create(input="more", previous_response_id=running["id"]))["id"])
    assert (second["status"], second["previous_response_id"]) == ("completed", running["id"])
    assert [message["content"] for message in many.chat.requests[-1].json["messages"]] == ["hi", "Hello", "more"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_call_that_fails_is_a_failed_response(many: Processes, one: BackgroundApp, stream: bool) -> None:
    told = {"error": {"message": "told you", "type": "server_error", "code": "c", "param": None}}
    many.chat.script(*[json_answer(told, 500)] * 3)
    async with one.stream() as followed:
        if stream:
            events = parse_sse(await followed.whole())
            assert check_stream(events)["status"] == "failed" and events[-2]["type"] == "error"
    if not stream:
        failed = await one.ended((await one.create())["id"])
        check_response(failed)
        assert failed["status"] == "failed" and "told you" in failed["error"]["message"]


async def test_what_it_continued_was_deleted_before_it_ran(many: Processes) -> None:
    idle = await many.start(workers=0)
    async with idle.session.post(f"{idle.url}/responses", json={"model": "m", "input": "hi"}) as got:
        before = (await got.json())["id"]
    queued = await idle.create(previous_response_id=before)
    async with idle.stream(previous_response_id=before) as followed:
        streamed = await followed.response_id()
        assert (await idle.ask(f"/{before}", "DELETE"))[0] == 200
        await many.start()
        events = parse_sse(await followed.whole())
    assert [item["type"] for item in events] == ["response.created", "response.queued", "error", "response.failed"]
    assert events[-1]["response"]["id"] == streamed
    failed = await idle.ended(queued["id"])
    assert failed["status"] == "failed" and failed["error"]["code"] == "previous_response_not_found"
    assert len(many.chat.requests) == 1


# Its stream


async def test_a_stream_is_whole_and_can_be_read_again_from_every_number(one: BackgroundApp) -> None:
    async with one.stream() as followed:
        whole = await followed.whole()
    events = parse_sse(whole)
    final = check_stream(events)
    assert [item["type"] for item in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [item["response"]["status"] for item in events[:3]] == ["queued", "queued", "in_progress"]
    assert final["status"] == "completed" and await one.get(final["id"]) == final
    async with one.stream(final["id"]) as again:
        assert await again.whole() == whole
    parts = split_events(whole)
    for number in range(len(events)):
        async with one.stream(final["id"], starting_after=number) as again:
            assert await again.whole() == b"".join(parts[number + 1 :])
    async with one.stream(final["id"], starting_after=10_000) as again:
        assert await again.whole() == DONE


async def test_events_come_while_the_model_writes_and_go_on_elsewhere(many: Processes, one: BackgroundApp) -> None:
    other = await many.start(workers=0)
    gate = asyncio.Event()
    many.chat.script(held(gate))
    async with one.stream() as first:
        await first.until(b'"delta":"Hel"')
        response_id = await first.response_id()
    # Its client is gone; the response goes on, and another process shows it.
    async with other.stream(response_id, starting_after=3) as second, one.stream(response_id) as third:
        await second.until(b'"delta":"Hel"')
        await third.until(b'"delta":"Hel"')
        gate.set()
        resumed, whole = await second.whole(), await third.whole()
    final = check_stream(parse_sse(whole))
    assert final["output"][0]["content"][0]["text"] == "Hello"
    assert resumed == b"".join(split_events(whole)[4:])


async def test_a_silent_stream_has_comments(many: Processes) -> None:
    gate = asyncio.Event()
    many.chat.script(held(gate))
    one = await many.start(keepalive=0.02)
    async with one.stream() as followed:
        await followed.until(b": keep-alive\n\n")
        gate.set()
        check_stream(parse_sse(await followed.whole()))
    async with one.stream(await followed.response_id()) as again:
        assert b"keep-alive" not in await again.whole()


async def test_streams_of_what_has_none(one: BackgroundApp) -> None:
    async with one.session.post(f"{one.url}/responses", json={"model": "m", "input": "hi"}) as got:
        foreground = (await got.json())["id"]
    background = await one.ended((await one.create())["id"])
    for response_id in (foreground, background["id"]):
        status, refused = await one.ask(f"/{response_id}?stream=true")
        assert (status, refused["error"]["param"]) == (400, "stream")
    status, refused = await one.ask(f"/{foreground}?starting_after=3")
    assert (status, refused["error"]["param"]) == (400, "starting_after")
    for wrong in ("-1", "x", "1.5"):
        status, refused = await one.ask(f"/{foreground}?stream=true&starting_after={wrong}")
        assert (status, refused["error"]["param"]) == (400, "starting_after")
    for missing in ("resp_" + "0" * 48, "nonsense"):
        assert (await one.ask(f"/{missing}?stream=true"))[0] == 404


# Cancelling


async def test_cancel_while_the_model_writes(many: Processes, one: BackgroundApp) -> None:
    other = await many.start(workers=0)
    gate = asyncio.Event()
    many.chat.script(held(gate))
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
        status, cancelled = await other.ask(f"/{response_id}/cancel", "POST")
        assert (status, cancelled["status"], cancelled["error"]) == (200, "cancelled", None)
        check_response(cancelled)
        events = parse_sse(await followed.whole())
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.failed", "cancelled")
    assert [item["sequence_number"] for item in events] == list(range(len(events)))
    # The model call ends with it, and nothing it still said counts.
    async with asyncio.timeout(30):
        await many.chat.requests[0].gone.wait()
    await until(lambda: not one.app.workers.running)
    assert await one.get(response_id) == cancelled
    assert await one.ask(f"/{response_id}/cancel", "POST") == (200, cancelled)


async def test_cancel_keeps_the_items_that_were_whole(many: Processes, one: BackgroundApp) -> None:
    gate = asyncio.Event()
    thought = [event({"choices": [{"delta": {"reasoning_content": "hm"}}]}), event("Hel")]
    many.chat.script(answer(parts=[*thought, Wait(gate)]))
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
        _, cancelled = await one.ask(f"/{response_id}/cancel", "POST")
        events = parse_sse(await followed.whole())
    assert [item["type"] for item in cancelled["output"]] == ["reasoning"]
    assert events[-1]["response"]["output"] == cancelled["output"]
    assert await one.get(response_id) == cancelled
    # What it had said can be continued from.
    many.chat.script(answer(parts=text_stream("ok")))
    assert (await one.ended((await one.create(previous_response_id=response_id))["id"]))["status"] == "completed"


async def test_cancel_before_it_runs(many: Processes) -> None:
    idle = await many.start(workers=0)
    queued = await idle.create()
    async with idle.stream() as followed:
        streamed = await followed.response_id()
        for response_id in (queued["id"], streamed):
            status, cancelled = await idle.ask(f"/{response_id}/cancel", "POST")
            assert (status, cancelled["status"], cancelled["output"]) == (200, "cancelled", [])
        events = parse_sse(await followed.whole())
    assert [item["type"] for item in events] == ["response.created", "response.queued", "response.failed"]
    await many.start()
    assert many.sql("SELECT count(*) FROM jobs") == [(0,)] and not many.chat.requests


async def test_cancel_of_what_cannot_be_cancelled(one: BackgroundApp) -> None:
    done = await one.ended((await one.create())["id"])
    assert await one.ask(f"/{done['id']}/cancel", "POST") == (200, done)
    async with one.session.post(f"{one.url}/responses", json={"model": "m", "input": "hi"}) as got:
        foreground = (await got.json())["id"]
    status, refused = await one.ask(f"/{foreground}/cancel", "POST")
    assert (status, refused["error"]["type"]) == (400, "invalid_request_error")
    for missing in ("resp_" + "0" * 48, "nonsense"):
        assert (await one.ask(f"/{missing}/cancel", "POST"))[0] == 404


async def test_a_stranger_sees_cancels_and_follows_nothing(many: Processes) -> None:
    idle = await many.start(workers=0)
    async with idle.stream() as followed:
        response_id = await followed.response_id()
        for path, method in ((f"/{response_id}/cancel", "POST"), (f"/{response_id}?stream=true", "GET")):
            missing = path.replace(response_id, "resp_" + "0" * 48)
            status, refused = await idle.ask(path, method, token="sk-stranger")
            assert status == 404
            _, same = await idle.ask(missing, method, token="sk-stranger")
            assert json.dumps(refused).replace(response_id, "x") == json.dumps(same).replace("resp_" + "0" * 48, "x")
        assert (await idle.ask("", token="sk-stranger"))[1]["data"] == []
        assert (await idle.get(response_id))["status"] == "queued"


async def test_a_response_that_is_deleted_while_it_runs(many: Processes, one: BackgroundApp) -> None:
    many.chat.script(held(asyncio.Event()))
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
        assert (await one.ask(f"/{response_id}", "DELETE"))[0] == 200
        await followed.whole()
    # A clean end, which is nobody's fault: who asks again learns that there is no such response.
    assert not followed.cut and DONE not in followed.data
    async with asyncio.timeout(30):
        await many.chat.requests[0].gone.wait()
    await until(lambda: not one.app.workers.running)
    assert (await one.ask(f"/{response_id}"))[0] == 404
    assert many.sql("SELECT count(*) FROM response_events") == [(0,)]


# The list


async def test_the_list_of_responses(one: BackgroundApp) -> None:
    made = [await one.ended((await one.create())["id"]) for _ in range(3)]
    status, listed = await one.ask("?limit=2")
    assert status == 200 and listed["object"] == "list" and listed["has_more"] is True
    assert listed["data"] == made[:0:-1]
    assert (listed["first_id"], listed["last_id"]) == (made[2]["id"], made[1]["id"])
    _, rest = await one.ask(f"?limit=2&after={listed['last_id']}")
    assert rest["data"] == made[:1] and rest["has_more"] is False
    _, forward = await one.ask("?order=asc")
    assert forward["data"] == made
    for wrong in ("limit=0", "limit=101", "order=x", "after=resp_none"):
        status, refused = await one.ask(f"?{wrong}")
        assert (status, refused["error"]["param"]) == (400, wrong.split("=")[0])
    status, empty = await one.ask("", token="sk-stranger")
    assert (status, empty["data"], empty["first_id"]) == (200, [], None)


# With everything else


async def test_a_prompt_in_the_background(many: Processes, one: BackgroundApp) -> None:
    made = {"name": "p", "instructions": "Speak {{tone}}.", "input": [{"role": "user", "content": "About {{topic}}."}]}
    async with one.session.post(f"{one.url}/prompts", json=made) as got:
        assert got.status == 200, await got.text()
        prompt = (await got.json())["id"]
    queued = await one.create(prompt={"id": prompt, "variables": {"tone": "softly", "topic": "tea"}}, input=None)
    done = await one.ended(queued["id"])
    assert done["status"] == "completed" and done["prompt"] == queued["prompt"]
    sent = json.dumps(many.chat.requests[-1].json)
    assert "Speak softly." in sent and "About tea." in sent
    refused = await one.create(prompt={"id": prompt, "variables": {}}, input=None)
    assert refused["error"]["type"] == "invalid_request_error"


async def test_a_conversation_that_is_compacted_in_the_background(many: Processes, one: BackgroundApp) -> None:
    words = [{"role": "user", "content": "word " * 1000}, {"role": "user", "content": "Hi"}]
    asked: dict[str, Any] = {
        "input": words,
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    }
    many.chat.script(answer(parts=text_stream("A summary.")), answer(parts=text_stream("An answer.")))
    async with one.stream(**asked) as followed:
        final = check_stream(parse_sse(await followed.whole()))
    assert [item["type"] for item in final["output"]] == ["compaction", "message"]
    assert await one.get(final["id"]) == final and len(many.chat.requests) == 2


async def test_a_job_compares_its_prompt_as_it_runs(one: BackgroundApp) -> None:
    first = await one.ended((await one.create())["id"])
    for asked, told in (("hi", "cache_hit"), ("ho", "cache_miss")):
        options = {"comparison_response_id": first["id"]}
        queued = await one.create(input=asked, prompt_cache_options=options)
        assert "prompt_cache_diagnostics" not in queued
        done = await one.ended(queued["id"])
        check_response(done)
        assert done["prompt_cache_diagnostics"]["type"] == told
