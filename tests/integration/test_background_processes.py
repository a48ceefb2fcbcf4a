"""Background responses when processes die, stop or are several; their limits; conversations they run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from antiphon.stores.sqlite.jobs import SqliteJobWriter
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Answer, Wait, answer, event, json_answer, text_stream
from tests.support.judge import check_response, fold, parse_sse
from tests.support.metrics import value_of
from tests.support.state import lapse, needs_sqlite
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


# Restarts


async def test_a_response_whose_process_was_killed_is_run_again(many: Processes, one: BackgroundApp) -> None:
    gate = asyncio.Event()
    many.chat.script(held(gate), answer(parts=text_stream("Again")))
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
        await one.kill()
        other = await many.start()
        async with other.stream(response_id) as second:
            await second.until(b'"delta":"Hel"')
            many.expire_leases()
            whole = parse_sse(await second.whole())
    numbers = [item["sequence_number"] for item in whole]
    assert numbers == sorted(set(numbers)), "a number was used twice"
    assert [item["type"] for item in whole].count("response.in_progress") == 2
    final = whole[-1]["response"]
    assert final["status"] == "completed" and final["output"][0]["content"][0]["text"] == "Again"
    assert await other.get(response_id) == final
    # Who comes later sees one answer only.
    async with other.stream(response_id) as third:
        later = parse_sse(await third.whole())
    assert [item["type"] for item in later].count("response.in_progress") == 1
    assert b"Hel" not in third.data and later[-1] == whole[-1]


async def test_or_it_fails_with_a_clear_reason(many: Processes) -> None:
    one = await many.start(on_restart="fail")
    many.chat.script(held(asyncio.Event()))
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
    await one.kill()
    other = await many.start(on_restart="fail")
    many.expire_leases()
    failed = await other.ended(response_id)
    check_response(failed)
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
    assert "stopped" in failed["error"]["message"] and len(many.chat.requests) == 1
    async with other.stream(response_id) as again:
        events = parse_sse(await again.whole())
    assert [item["type"] for item in events[-2:]] == ["error", "response.failed"]
    assert [item["sequence_number"] for item in events] == list(range(len(events)))


async def test_one_that_kills_its_processes_is_given_up(many: Processes) -> None:
    response_id = ""
    for attempt in range(2):
        many.chat.script(held(asyncio.Event()))
        process = await many.start(attempts=2)
        response_id = response_id or (await process.create())["id"]

        def asked(seen: int = attempt) -> bool:
            return len(many.chat.requests) == seen + 1

        await until(asked)
        await process.kill()
        many.expire_leases()
    with capture_logs() as lines:
        last = await many.start(attempts=2)
        assert (await last.ended(response_id))["status"] == "failed" and len(many.chat.requests) == 2
        # The killed ones, which are tasks of this process, have a line of their own, `cancelled`.
        await until(lambda: any(line.get("outcome") == "failed" for line in lines))
    (line,) = [line for line in lines if line.get("outcome") == "failed"]
    assert (line["log_level"], line["fault"], line["operation"]) == ("warning", "ours", "restart")
    assert line["response_id"] == response_id and "stopped before it was complete" in line["cause"]


@pytest.mark.parametrize("on_restart", ["retry", "fail"])
async def test_a_process_that_stops_leaves_nothing_behind(many: Processes, on_restart: str) -> None:
    many.chat.script(held(asyncio.Event()), answer(parts=text_stream("Again")))
    one = await many.start(on_restart=on_restart)
    async with one.stream() as followed:
        await followed.until(b'"delta":"Hel"')
        response_id = await followed.response_id()
    many.opened.remove(one)
    await one.stop()
    # Nobody has to wait for a lease to run out.
    other = await many.start(on_restart=on_restart)
    ended = await other.ended(response_id)
    assert ended["status"] == ("completed" if on_restart == "retry" else "failed")
    async with other.stream(response_id) as later:
        events = parse_sse(await later.whole())
    assert [item["type"] for item in events].count("response.in_progress") == 1
    if on_restart == "retry":
        # Of two attempts the second one alone is in the stream.
        assert b"Hel" not in later.data and fold(events) == ended["output"]


async def test_a_drain_ends_when_nothing_is_left_but_what_others_can_go_on_with(
    many: Processes, one: BackgroundApp
) -> None:
    many.chat.script(held(asyncio.Event()), answer(parts=text_stream("Again")))
    made = await one.create()
    await until(lambda: many.chat.requests)
    async with asyncio.timeout(30):
        assert await one.app.drain(one.door.drain(60), 0.2) is True
        await one.app.give_back()
    assert many.sql("SELECT worker, attempts FROM jobs") == [(None, 0)]
    other = await many.start()
    assert (await other.ended(made["id"]))["status"] == "completed"


@pytest.mark.parametrize("by_id", [True, False], ids=["asked for by its id", "asked for when it was made"])
async def test_a_follower_is_let_go_and_reads_on_elsewhere(many: Processes, one: BackgroundApp, by_id: bool) -> None:
    """While the response goes on where it was: its stream is whole, over both processes, each event once."""
    gate = asyncio.Event()
    many.chat.script(held(gate))
    other = await many.start()
    # The response is to run in the process that leaves.
    other.app.workers.retire()
    async with one.stream() as first:
        response_id = await first.response_id()
        await first.until(b'"delta":"Hel"')
        async with one.stream(response_id) if by_id else nullcontext(first) as followed:
            await followed.until(b'"delta":"Hel"')
            draining = asyncio.create_task(one.app.drain(one.door.drain(60), 60))
            assert b"[DONE]" not in await followed.whole() and not followed.cut, "a clean end, not the last one"
    # Nobody but the response itself is waited for.
    await until(lambda: one.app.context.admission.in_flight == {"background": 1})
    begun = parse_sse(followed.data + b"data: [DONE]\n\n")
    async with other.stream(response_id, starting_after=begun[-1]["sequence_number"]) as later:
        gate.set()
        events = begun + parse_sse(await later.whole())
    assert later.data.endswith(b"data: [DONE]\n\n") and await draining
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert fold(events) == (await other.ended(response_id))["output"]


async def test_during_the_notice_nothing_is_begun_that_others_can_run(many: Processes, one: BackgroundApp) -> None:
    many.chat.script(answer(parts=text_stream("a")))
    draining = asyncio.create_task(one.app.drain(one.door.drain(60, notice=60), 60))
    await until(lambda: one.app.context.admission.leaving)
    made = await one.create()
    other = await many.start()
    assert (await other.ended(made["id"]))["status"] == "completed"
    begun = [
        value_of(
            each.app.context.telemetry.metrics.render().decode(), "antiphon_background_attempts_total", kind="first"
        )
        for each in (one, other)
    ]
    assert begun == [0, 1]
    draining.cancel()


async def test_what_a_drain_has_no_time_for_is_counted_and_fails(many: Processes, one: BackgroundApp) -> None:
    many.chat.script(held(asyncio.Event()))
    body = {"model": "m", "input": "hi", "stream": True}
    async with one.session.post(f"{one.url}/responses", json=body) as cut:
        await cut.content.readuntil(b'"delta":"Hel"')
        assert await one.app.drain(one.door.drain(0.05), 0.05) is False
        metrics = one.app.context.telemetry.metrics
        assert value_of(metrics.render().decode(), "antiphon_requests_cut_total", kind="response") == 1
        await one.door.aclose()
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.content.read()
    failed = value_of(
        metrics.render().decode(),
        "antiphon_response_failures_total",
        fault="ours",
        code="shutting_down",
        upstream="default",
    )
    assert failed == 1 and many.sql("SELECT status FROM responses") == [("failed",)]


async def test_two_processes_share_the_work(many: Processes, one: BackgroundApp) -> None:
    other = await many.start()
    gate = asyncio.Event()
    many.chat.script(*[held(gate)] * 12)
    made = await asyncio.gather(*[(one, other)[n % 2].create() for n in range(12)])
    await until(lambda: len(many.chat.requests) == 12)
    assert len(one.app.workers.running) + len(other.app.workers.running) == 12
    assert one.app.workers.running and other.app.workers.running
    gate.set()
    for value in made:
        assert (await other.ended(value["id"]))["status"] == "completed"
    assert len(many.chat.requests) == 12 and many.sql("SELECT count(*) FROM jobs") == [(0,)]


# Limits


async def test_so_many_run_at_once(many: Processes) -> None:
    gate = asyncio.Event()
    many.chat.script(*[held(gate)] * 5)
    one = await many.start(workers=2)
    made = [await one.create() for _ in range(5)]
    await until(lambda: len(many.chat.requests) == 2)
    assert len(one.app.workers.running) == 2
    states = [(await one.get(value["id"]))["status"] for value in made]
    assert sorted(states) == ["in_progress"] * 2 + ["queued"] * 3
    gate.set()
    for value in made:
        assert (await one.ended(value["id"]))["status"] == "completed"


async def test_an_owner_may_have_so_many(many: Processes) -> None:
    idle = await many.start(workers=0, per_owner=2)
    made = [await idle.create(), await idle.create()]
    refused = await idle.create()
    assert refused["error"]["code"] == "rate_limit_exceeded"
    await idle.ask(f"/{made[0]['id']}/cancel", "POST")
    assert (await idle.create())["status"] == "queued"


async def test_an_upstream_that_is_not_there_yet(many: Processes, unused_tcp_port: int) -> None:
    one = await many.start(upstream=f"http://127.0.0.1:{unused_tcp_port}/v1")
    made = await one.create()
    await one.reaches(made["id"], "in_progress")
    late = type(many.chat)(port=unused_tcp_port)
    async with late:
        assert (await one.ended(made["id"]))["status"] == "completed"


async def test_an_upstream_that_never_comes(many: Processes, unused_tcp_port: int) -> None:
    one = await many.start(upstream=f"http://127.0.0.1:{unused_tcp_port}/v1", patience=0)
    failed = await one.ended((await one.create())["id"])
    assert failed["status"] == "failed" and failed["error"]["code"]


# Conversations


async def test_a_conversation_is_kept_until_the_response_is_over(many: Processes, one: BackgroundApp) -> None:
    other = await many.start(workers=0)
    conversations = f"{other.url}/conversations"
    async with one.session.post(conversations, json={"items": [{"role": "user", "content": "first"}]}) as got:
        conversation = (await got.json())["id"]

    async def items() -> list[str]:
        async with one.session.get(f"{conversations}/{conversation}/items?order=asc") as got:
            return [item["content"][0]["text"] for item in (await got.json())["data"]]

    gate = asyncio.Event()
    many.chat.script(held(gate))
    running = await one.create(conversation=conversation, stream=False)
    assert running["conversation"] == {"id": conversation}
    await until(lambda: many.chat.requests)
    assert [message["content"] for message in many.chat.requests[0].json["messages"]] == ["first", "hi"]
    for app in (one, other):
        refused = await app.create(conversation=conversation)
        assert refused["error"]["code"] == "conversation_locked"
        async with app.session.delete(f"{conversations}/{conversation}") as got:
            assert got.status == 409
    assert await items() == ["first"]
    gate.set()
    done = await one.ended(running["id"])
    assert done["status"] == "completed" and await items() == ["first", "hi", "Hello"]
    # Deleted, cancelled and failed ones give it back, and leave nothing in it.
    many.chat.script(held(asyncio.Event()))
    deleted = await one.create(conversation=conversation)
    await until(lambda: len(many.chat.requests) == 2)
    await one.ask(f"/{deleted['id']}", "DELETE")
    await until(lambda: not one.app.workers.running)
    many.chat.script(held(asyncio.Event()))
    second = await one.create(conversation=conversation)
    await until(lambda: len(many.chat.requests) == 3)
    await one.ask(f"/{second['id']}/cancel", "POST")
    await until(lambda: not one.app.workers.running)
    conversations_of_one = one.app.runner.ports.conversations
    assert conversations_of_one is not None and not conversations_of_one.held
    many.chat.script(json_answer({"error": {"message": "no"}}, 500))
    third = await one.ended((await one.create(conversation=conversation))["id"])
    assert third["status"] == "failed" and await items() == ["first", "hi", "Hello"]
    fourth = await one.ended((await one.create(conversation=conversation, input="more"))["id"])
    assert fourth["status"] == "completed" and (await items())[3:] == ["more", "Hello"]
    async with one.session.delete(f"{conversations}/{conversation}") as got:
        assert got.status == 200


async def test_a_client_that_leaves_while_its_response_is_queued(
    many: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is queued all the same, and its conversation is its job's: nobody holds it for nothing."""
    needs_sqlite()
    enqueue, begun, gate = SqliteJobWriter.enqueue, asyncio.Event(), asyncio.Event()

    async def slow(store: SqliteJobWriter, *given: Any) -> None:
        begun.set()
        await gate.wait()
        await enqueue(store, *given)

    monkeypatch.setattr(SqliteJobWriter, "enqueue", slow)
    one = await many.start(workers=0)
    async with one.session.post(f"{one.url}/conversations", json={}) as got:
        conversation = (await got.json())["id"]
    asked = asyncio.ensure_future(one.create(conversation=conversation))
    await begun.wait()
    asked.cancel()
    await until(lambda: not one.app.context.admission.active)
    gate.set()
    await until(lambda: many.sql("SELECT 1 FROM jobs"))
    ((response_id,),) = many.sql("SELECT response_id FROM jobs")
    held = one.app.runner.ports.conversations
    assert held is not None
    await until(lambda: not held.held)
    await one.ask(f"/{response_id}/cancel", "POST")
    turn = {"model": "m", "input": "more", "conversation": conversation}
    async with one.session.post(f"{one.url}/responses", json=turn) as got:
        assert got.status == 200


async def test_a_conversation_is_free_as_soon_as_its_response_is_cancelled(one: BackgroundApp) -> None:
    """Wherever its worker is just then."""
    async with one.session.post(f"{one.url}/conversations", json={}) as got:
        conversation = (await got.json())["id"]
    for _ in range(20):
        made = await one.create(conversation=conversation)
        assert made.get("status") == "queued", made
        _, over = await one.ask(f"/{made['id']}/cancel", "POST")
        assert over["status"] in ("cancelled", "completed")


async def test_a_conversation_survives_the_process_that_worked_on_it(many: Processes, one: BackgroundApp) -> None:
    async with one.session.post(f"{one.url}/conversations", json={}) as got:
        conversation = (await got.json())["id"]
    many.chat.script(held(asyncio.Event()), answer(parts=text_stream("Again")))
    made = await one.create(conversation=conversation)
    await until(lambda: many.chat.requests)
    await one.kill()
    other = await many.start()
    many.expire_leases()
    lapse(many.data, "conversations", "locked_until")
    done = await other.ended(made["id"])
    assert done["output"][0]["content"][0]["text"] == "Again"
    async with other.session.get(f"{other.url}/conversations/{conversation}/items?order=asc") as got:
        texts = [item["content"][0]["text"] for item in (await got.json())["data"]]
    assert texts == ["hi", "Again"]
