"""`Idempotency-Key`: a request that comes again makes nothing a second time, whichever process it comes to."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.stores.sqlite.backend import VECTORS_FILE
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Reset, Wait, answer, event, json_answer, text_stream
from tests.support.judge import check_stream, parse_sse
from tests.support.state import PAST, lapse, on_postgres
from tests.support.waiting import until

BODY: dict[str, Any] = {"model": "m", "input": "hi"}


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as opened:
        yield opened


async def post(
    app: BackgroundApp, path: str, body: Any, key: str | None = "k1", token: str = "t"
) -> tuple[int, Any, dict[str, str]]:
    headers = {"authorization": f"Bearer {token}"} | ({"idempotency-key": key} if key is not None else {})
    sent = {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
    async with asyncio.timeout(60), app.session.post(f"{app.url}{path}", headers=headers, **sent) as got:
        text = await got.text()
        value = json.loads(text) if got.content_type == "application/json" else text
        return got.status, value, {name.lower(): value for name, value in got.headers.items()}


def keys(made: Processes) -> list[Any]:
    return made.sql("SELECT key, object_id, lease_until FROM idempotency")


def asked(made: Processes) -> int:
    """How often the model was asked."""
    return len(made.chat.requests)


async def test_a_response_that_was_stored_is_given_again_by_any_process(made: Processes) -> None:
    one, other = await made.start(), await made.start()
    status, first, headers = await post(one, "/responses", BODY)
    assert status == 200 and "idempotent-replayed" not in headers
    status, again, headers = await post(other, "/responses", BODY)
    assert (status, again, headers["idempotent-replayed"]) == (200, first, "true")
    assert asked(made) == 1 and keys(made) == [("k1", first["id"], None)]
    assert (await post(one, "/responses", BODY, key="k2"))[1]["id"] != first["id"]
    assert (await post(one, "/responses", BODY, token="other"))[1]["id"] != first["id"], "a key is its owner's"


async def test_a_stream_is_given_again_as_a_stream(made: Processes) -> None:
    app = await made.start()
    body = {**BODY, "stream": True}
    made.chat.script(answer(parts=text_stream("hel", "lo")))
    _, first, _ = await post(app, "/responses", body)
    _, again, headers = await post(app, "/responses", body)
    assert asked(made) == 1 and headers["idempotent-replayed"] == "true"
    (then,), (now,) = ([line for line in text.split("\n") if '"response.completed"' in line] for text in (first, again))
    assert json.loads(then[6:])["response"] == json.loads(now[6:])["response"]
    assert again.endswith("data: [DONE]\n\n")
    check_stream(parse_sse(again.encode()))


@pytest.mark.parametrize("path", ["/responses", "/conversations", "/prompts"])
async def test_another_request_with_the_key_is_refused(made: Processes, path: str) -> None:
    app = await made.start()
    one, two = ({**BODY}, {**BODY, "input": "other"}) if path != "/conversations" else ({}, {"metadata": {"a": "b"}})
    assert (await post(app, path, one))[0] == 200
    status, error, _ = await post(app, path, two)
    assert (status, error["error"]["code"]) == (422, "idempotency_key_reused")
    other = "/conversations" if path != "/conversations" else "/prompts"
    assert (await post(app, other, {}))[0] in (400, 422), "a path is part of the request"


async def test_a_request_that_is_being_served_is_a_409(made: Processes) -> None:
    app, other = await made.start(), await made.start()
    gate = asyncio.Event()
    made.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    first = asyncio.create_task(post(app, "/responses", BODY))
    await until(lambda: asked(made) == 1)
    for each in (app, other):
        status, error, headers = await post(each, "/responses", BODY)
        assert (status, error["error"]["code"]) == (409, "idempotency_key_in_use") and headers["retry-after"]
    gate.set()
    status, value, _ = await first
    assert status == 200 and (await post(other, "/responses", BODY))[1]["id"] == value["id"]


async def test_many_at_once_make_one(made: Processes) -> None:
    """Real overlap: two processes, each asked many times at the same moment."""
    apps = [await made.start(), await made.start()]
    got = await asyncio.gather(*(post(apps[n % 2], "/responses", BODY) for n in range(24)))
    good = {value["id"] for status, value, _ in got if status == 200}
    assert len(good) == 1 and {status for status, _, _ in got} <= {200, 409}
    assert asked(made) == 1 and made.sql("SELECT count(*) FROM responses") == [(1,)]
    got = await asyncio.gather(*(post(apps[n % 2], "/conversations", {}, key="c") for n in range(24)))
    assert {status for status, _, _ in got} == {200} and len({value["id"] for _, value, _ in got}) == 1
    assert made.sql("SELECT count(*) FROM conversations") == [(1,)]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_failed_can_be_tried_again_with_its_key(made: Processes, stream: bool) -> None:
    app = await made.start()
    body = {**BODY, "stream": stream}
    made.chat.script(answer(parts=[event("a"), Reset()]), json_answer({"error": {"message": "no"}}, status=500))
    for _ in range(2):
        await post(app, "/responses", body)
        assert keys(made) == []
    status, value, headers = await post(app, "/responses", body)
    assert status == 200 and "hello" in json.dumps(value).lower() and "idempotent-replayed" not in headers
    assert asked(made) == 3


async def _left(made: Processes, app: BackgroundApp, body: dict[str, Any], parts: list[Any]) -> None:
    """A client that leaves while the model answers."""
    made.chat.script(answer(parts=parts))
    leaving = asyncio.create_task(post(app, "/responses", body))
    await until(lambda: asked(made) == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_left_finds_what_was_made_without_it(made: Processes, stream: bool) -> None:
    one, other = await made.start(), await made.start()
    gate, body = asyncio.Event(), {**BODY, "stream": stream}
    await _left(made, one, body, [*text_stream("hel", "lo")[:2], Wait(gate), *text_stream("hel", "lo")[2:]])
    for app in (one, other):
        status, error, headers = await post(app, "/responses", body)
        assert (status, error["error"]["code"]) == (409, "idempotency_key_in_use") and headers["retry-after"]
    gate.set()
    await until(lambda: keys(made)[0][2] is None)
    status, again, headers = await post(other, "/responses", body)
    assert status == 200 and "hello" in json.dumps(again) and headers["idempotent-replayed"] == "true"
    assert asked(made) == 1 and made.sql("SELECT status FROM responses") == [("completed",)]


async def test_one_that_goes_on_without_its_client_fails_like_any_other(made: Processes) -> None:
    app, gate = await made.start(), asyncio.Event()
    await _left(made, app, {**BODY, "stream": True}, [event("a"), Wait(gate), Reset()])
    assert len(keys(made)) == 1
    gate.set()
    await until(lambda: keys(made) == [])
    assert (await post(app, "/responses", {**BODY, "stream": True}))[0] == 200


async def test_a_process_that_stops_breaks_off_what_goes_on_without_its_client(made: Processes) -> None:
    app, gate = await made.start(), asyncio.Event()
    await _left(made, app, {**BODY, "stream": True}, [event("a"), Wait(gate)])
    await app.stop()
    assert keys(made) == [] and made.sql("SELECT status FROM responses") == [("failed",)]


async def test_without_a_key_nothing_goes_on_without_its_client(made: Processes) -> None:
    app, gate = await made.start(), asyncio.Event()
    made.chat.script(answer(parts=[event("a"), Wait(gate)]))
    leaving = asyncio.create_task(post(app, "/responses", {**BODY, "stream": True}, key=None))
    await until(lambda: asked(made) == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until(lambda: made.sql("SELECT status FROM responses") == [("failed",)])


async def test_nothing_is_kept_of_a_response_that_is_not_stored(made: Processes) -> None:
    app = await made.start()
    body = {**BODY, "store": False}
    _, first, _ = await post(app, "/responses", body)
    for _ in range(2):
        status, refused, _ = await post(await made.start(), "/responses", body)
        assert (status, refused["error"]["code"]) == (422, "idempotency_result_not_kept")
    assert asked(made) == 1 and keys(made) == [("k1", first["id"], None)]
    assert made.sql("SELECT count(*) FROM responses") == [(0,)]


async def test_a_conversation_gets_a_turn_once(made: Processes) -> None:
    app = await made.start()
    _, conversation, _ = await post(app, "/conversations", {}, key=None)
    body = {**BODY, "conversation": conversation["id"]}
    first = await post(app, "/responses", body)
    assert (await post(app, "/responses", body))[1] == first[1]
    assert made.sql("SELECT count(*) FROM conversation_items") == [(2,)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_background_response_is_queued_once(made: Processes, stream: bool) -> None:
    app = await made.start()
    body = {**BODY, "background": True, "stream": stream}
    first = await post(app, "/responses", body)
    again = await post(app, "/responses", body)
    assert (first[0], again[0], again[2]["idempotent-replayed"]) == (200, 200, "true")
    if stream:
        assert again[1] == first[1]
    else:
        assert again[1]["id"] == first[1]["id"]
    assert made.sql("SELECT count(*) FROM responses") == [(1,)]


async def test_what_was_made_and_deleted_is_not_made_again(made: Processes) -> None:
    app = await made.start()
    _, first, _ = await post(app, "/responses", BODY)
    assert (await app.ask(f"/{first['id']}", "DELETE", token="t"))[0] == 200
    assert (await post(app, "/responses", BODY))[0] == 404 and asked(made) == 1


async def gone(app: BackgroundApp, path: str) -> None:
    async with app.session.delete(f"{app.url}{path}", headers={"authorization": "Bearer t"}) as got:
        assert got.status == 200, await got.text()


MODES: list[dict[str, Any]] = [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}]


@pytest.mark.parametrize("mode", MODES, ids=["whole", "stream", "background", "followed"])
@pytest.mark.parametrize(
    "kind", ["prompt", "file", "conversation", "previous", "item", "vector store", "prompt's file"]
)
async def test_what_a_request_refers_to_may_be_gone_when_it_comes_again(
    made: Processes, kind: str, mode: dict[str, Any]
) -> None:
    """The first answer is given without anything being looked for again."""
    app, other = await made.start(), await made.start()
    body: dict[str, Any] = {**BODY, **mode}
    _, file, _ = await post(app, "/files", form("a file"), key=None)
    text = [{"type": "input_file", "file_id": file["id"]}]
    if kind == "file":
        body["input"] = [{"role": "user", "content": text}]
        away = [f"/files/{file['id']}"]
    elif kind == "conversation":
        _, found, _ = await post(app, "/conversations", {}, key=None)
        body["conversation"] = found["id"]
        away = [f"/conversations/{found['id']}"]
    elif kind in ("previous", "item"):
        _, found, _ = await post(app, "/responses", BODY, key=None)
        if kind == "previous":
            body["previous_response_id"] = found["id"]
        else:
            body["input"] = [{"type": "item_reference", "id": found["output"][0]["id"]}]
        away = [f"/responses/{found['id']}"]
    elif kind == "vector store":
        _, found, _ = await post(app, "/vector_stores", {}, key=None)
        body["tools"] = [{"type": "file_search", "vector_store_ids": [found["id"]]}]
        away = [f"/vector_stores/{found['id']}"]
    else:
        template = {"input": [{"role": "user", "content": "{{x}}"}]}
        _, found, _ = await post(app, "/prompts", template, key=None)
        variable = text[0] if kind == "prompt's file" else "a text"
        body |= {"prompt": {"id": found["id"], "variables": {"x": variable}}}
        away = [f"/prompts/{found['id']}", f"/files/{file['id']}"]
    status, first, _ = await post(app, "/responses", body)
    assert status == 200, first
    if "background" in mode and "stream" not in mode:
        async with asyncio.timeout(60):
            while (first := (await app.ask(f"/{first['id']}", token="t"))[1])["status"] != "completed":
                await asyncio.sleep(0.002)
    count = asked(made)
    for path in away:
        await gone(app, path)
    status, again, headers = await post(other, "/responses", body)
    assert (status, headers.get("idempotent-replayed")) == (200, "true"), again
    assert asked(made) == count
    if mode == {"stream": True}:
        first, again = (
            [line for line in text.split("\n") if '"response.completed"' in line] for text in (first, again)
        )
        first, again = (json.loads(lines[0][6:])["response"] for lines in (first, again))
    assert again == first
    status, error, _ = await post(other, "/responses", body, key="k2")
    assert status in (400, 404) or kind == "vector store", error


def form(content: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("purpose", "user_data")
    data.add_field("file", content, filename="a.txt", content_type="text/plain")
    return data


async def test_a_file_is_known_by_what_it_holds(made: Processes) -> None:
    app = await made.start()
    _, first, _ = await post(app, "/files", form("hello"))
    _, again, headers = await post(app, "/files", form("hello"))
    assert again == first and headers["idempotent-replayed"] == "true"
    assert (await post(app, "/files", form("hello!")))[0] == 422
    assert made.sql("SELECT count(*) FROM files") == [(1,)]
    contents = [path for path in (made.data / "files").rglob("*") if path.is_file()]
    assert len(contents) == 1, "a content that nobody has does not stay"


async def test_a_prompt_is_made_once(made: Processes) -> None:
    app = await made.start()
    body = {"name": "p", "input": "hi"}
    _, first, _ = await post(app, "/prompts", body)
    assert (await post(app, "/prompts", body))[1] == first
    assert made.sql("SELECT count(*) FROM prompts") == [(1,)]


@pytest.mark.parametrize("key", ["", "x" * 256, "k\u00e4y"])
async def test_a_key_that_is_none_is_refused(made: Processes, key: str) -> None:
    app = await made.start()
    for path, body in (("/responses", BODY), ("/conversations", {})):
        status, error, _ = await post(app, path, body, key=key)
        assert (status, error["error"]["code"]) == (400, "invalid_idempotency_key")


async def test_a_key_is_forgotten_after_its_time_and_when_its_process_died(made: Processes) -> None:
    app = await made.start()
    _, first, _ = await post(app, "/responses", BODY)
    lapse(made.data, "idempotency", "expires_at")
    _, second, _ = await post(app, "/responses", BODY)
    assert second["id"] != first["id"]
    made.sql("UPDATE idempotency SET object_id = 'resp_of_the_dead'")
    lapse(made.data, "idempotency", "lease_until")
    _, third, headers = await post(app, "/responses", BODY)
    assert third["id"] != second["id"] and "idempotent-replayed" not in headers
    lapse(made.data, "idempotency", "expires_at")
    assert await app.app.stores.keys.sweep() == (1,) and keys(made) == []


@pytest.fixture
def stored(made: Processes) -> Callable[[str], list[Any]]:
    """Looks at the database of vector stores."""
    if on_postgres():
        return made.sql

    def sql(statement: str) -> list[Any]:
        with closing(sqlite3.connect(made.data / VECTORS_FILE, timeout=10)) as database, database:
            return database.execute(statement).fetchall()

    return sql


async def test_a_vector_store_its_files_and_batches_are_made_once(
    made: Processes, stored: Callable[[str], list[Any]]
) -> None:
    one, other = await made.start(), await made.start()
    _, file, _ = await post(one, "/files", form("hello"), key=None)
    body = {"name": "s"}
    got = await asyncio.gather(*(post((one, other)[n % 2], "/vector_stores", body) for n in range(12)))
    assert {status for status, _, _ in got} == {200} and len({value["id"] for _, value, _ in got}) == 1
    assert sum("idempotent-replayed" not in headers for _, _, headers in got) == 1
    assert (await post(one, "/vector_stores", {"name": "t"}))[1]["error"]["code"] == "idempotency_key_reused"
    path = f"/vector_stores/{got[0][1]['id']}"
    for below, sent, table in (
        ("files", {"file_id": file["id"]}, "vector_files"),
        ("file_batches", {"file_ids": [file["id"]]}, "vector_batches"),
    ):
        status, first, headers = await post(one, f"{path}/{below}", sent, key=below)
        assert status == 200 and "idempotent-replayed" not in headers
        ingested = stored(f"SELECT {'number' if on_postgres() else 'no'} FROM vector_files")
        status, again, headers = await post(other, f"{path}/{below}", sent, key=below)
        assert (status, again["id"], headers["idempotent-replayed"]) == (200, first["id"], "true")
        assert stored(f"SELECT {'number' if on_postgres() else 'no'} FROM vector_files") == ingested, (
            "it is not ingested anew"
        )
        assert stored(f"SELECT count(*) FROM {table}") == [(1,)]
    assert (await post(one, f"{path}/files", {"file_id": "file-none"}, key="n"))[0] == 404
    assert stored("SELECT key FROM idempotency ORDER BY key") == [("file_batches",), ("files",), ("k1",)]


async def test_the_keys_of_vector_stores_are_forgotten_after_their_time(
    made: Processes, stored: Callable[[str], list[Any]]
) -> None:
    app = await made.start()
    _, first, _ = await post(app, "/vector_stores", {})
    async with app.session.delete(
        f"{app.url}/vector_stores/{first['id']}", headers={"authorization": "Bearer t"}
    ) as got:
        assert got.status == 200
    assert (await post(app, "/vector_stores", {}))[0] == 404, "what was deleted is not made again"
    stored(f"UPDATE idempotency SET expires_at = {PAST if on_postgres() else 1}")
    _, second, headers = await post(app, "/vector_stores", {})
    assert second["id"] != first["id"] and "idempotent-replayed" not in headers
    stored(f"UPDATE idempotency SET expires_at = {PAST if on_postgres() else 1}")
    async with asyncio.timeout(60):
        vector_search = app.app.vector_search
        assert vector_search is not None and await vector_search.stores.keys.sweep() == (1,)
    assert stored("SELECT * FROM idempotency") == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/vector_stores/{store}", {"name": "t"}),
        ("/vector_stores/{store}/search", {"query": "q"}),
        ("/conversations/{conversation}", {"metadata": {"a": "b"}}),
        ("/conversations/{conversation}/items", {"items": [{"role": "user", "content": "hi"}]}),
        ("/responses/input_tokens", BODY),
        ("/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_where_a_key_has_no_effect_the_answer_says_so(made: Processes, path: str, body: Any) -> None:
    app = await made.start()
    _, store, _ = await post(app, "/vector_stores", {}, key=None)
    _, conversation, _ = await post(app, "/conversations", {}, key=None)
    path = path.format(store=store["id"], conversation=conversation["id"])
    status, _, headers = await post(app, path, body, key=None)
    assert status == 200 and "idempotency-key" not in headers.get("antiphon-ignored", "")
    status, _, headers = await post(app, path, body)
    assert status == 200 and "idempotency-key" in headers["antiphon-ignored"].split(", ")
    assert "idempotent-replayed" not in headers


async def test_what_a_new_object_was_made_of_may_be_gone(made: Processes) -> None:
    app, other = await made.start(), await made.start()
    _, file, _ = await post(app, "/files", form("a file"), key=None)
    _, response, _ = await post(app, "/responses", BODY, key=None)
    _, store, _ = await post(app, "/vector_stores", {}, key=None)
    path = f"/vector_stores/{store['id']}"
    requests: list[tuple[str, Any]] = [
        ("/conversations", {"items": [{"type": "item_reference", "id": response["output"][0]["id"]}]}),
        ("/vector_stores", {"file_ids": [file["id"]]}),
        (f"{path}/file_batches", {"file_ids": [file["id"]]}),
    ]
    first = [await post(app, path, body, key=path) for path, body in requests]
    assert [status for status, _, _ in first] == [200] * 3, first
    await gone(app, f"/files/{file['id']}")
    await gone(app, f"/responses/{response['id']}")
    for (path, body), (_, value, _) in zip(requests, first, strict=True):
        status, again, headers = await post(other, path, body, key=path)
        assert (status, headers.get("idempotent-replayed")) == (200, "true"), (path, again)
        assert again["id"] == value["id"]
        assert (await post(other, path, body, key=f"{path} again"))[0] in (400, 404)


async def test_an_owner_without_room_is_given_what_he_made(made: Processes) -> None:
    app = await made.start(limits={"owner_bytes": 200_000})
    body = {**BODY, "background": True, "stream": True}
    status, first, _ = await post(app, "/responses", body)
    assert status == 200
    _, conversation, _ = await post(app, "/conversations", {}, key="c")
    large = {"items": [{"role": "user", "content": "x" * 300_000}]}
    assert (await post(app, "/conversations", large, key=None))[0] == 200
    assert (await post(app, "/responses", BODY, key="k2"))[0] == 429
    assert (await post(app, "/responses", body))[1] == first
    assert (await post(app, "/conversations", {}, key="c"))[1] == conversation
