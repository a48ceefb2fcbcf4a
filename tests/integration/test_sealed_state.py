"""`state.seal`: what was said is at rest in no file of the state, and everything reads as without."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from antiphon.stores.bodies import Bodies
from antiphon.stores.choice import backend_of
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Wait, answer, text_stream
from tests.support.state import SEALING_KEY, at_rest, look, on_postgres, state_settings

IN, OUT, NOTE, RULE = "QUESTIONxyzzy", "ANSWERplugh", "METADATAfrotz", "TEMPLATEnitfol"
TEXTS = (IN, OUT, NOTE, RULE)
FIRST, SECOND = SEALING_KEY, "another-key-of-at-least-16"


@pytest.fixture
async def many(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as opened:
        yield opened


async def send(app: BackgroundApp, path: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
    async with app.session.request(method, f"{app.url}{path}", json=body) as got:
        return got.status, json.loads(await got.read())


async def read(app: BackgroundApp, path: str) -> Any:
    status, got = await send(app, path, method="GET")
    assert status == 200, got
    return got


async def say_everything(many: Processes, app: BackgroundApp) -> tuple[str, ...]:
    """A response, one that continues it, a background one in a conversation, and a prompt; their ids."""
    many.chat.default = lambda _: answer(parts=text_stream(f"It is {OUT}."))
    item = {"role": "user", "content": f"Say {IN}."}
    note: dict[str, Any] = {"metadata": {"note": NOTE}}
    asked: dict[str, Any] = {"model": "m", "input": [item], "instructions": RULE, **note}

    async def make(path: str, body: Any) -> str:
        status, got = await send(app, path, body)
        assert status == 200, got
        return str(got["id"])

    prompt = await make("/prompts", {"name": "greeting", "instructions": RULE, **note})
    conversation = await make("/conversations", {"items": [item], **note})
    plain = await make("/responses", asked)
    next_one = await make("/responses", {**asked, "previous_response_id": plain})
    assert json.dumps(many.chat.requests[-1].json).count(IN) == 2
    async with app.stream(**asked, conversation=conversation) as stream:
        whole = await stream.whole()
        queued = await stream.response_id()
    async with app.stream(queued) as again:
        assert await again.whole() == whole
    assert OUT.encode() in whole
    return plain, next_one, queued, conversation, prompt


async def check_everything(app: BackgroundApp, ids: tuple[str, ...]) -> None:
    *responses, conversation, prompt = ids
    for name in responses:
        found = await read(app, f"/responses/{name}")
        assert found["status"] == "completed" and found["metadata"]["note"] == NOTE and found["instructions"] == RULE
        assert found["output"][0]["content"][0]["text"] == f"It is {OUT}."
        assert IN in json.dumps(await read(app, f"/responses/{name}/input_items"))
    assert (await read(app, f"/conversations/{conversation}"))["metadata"] == {"note": NOTE}
    said = json.dumps(await read(app, f"/conversations/{conversation}/items"))
    assert said.count(IN) == 2 and said.count(OUT) == 1
    assert RULE in json.dumps(await read(app, f"/prompts/{prompt}"))
    assert OUT in json.dumps(await read(app, "/responses"))


async def exported(many: Processes) -> str:
    state = (await state_settings(many.data))["state"]
    async with aclosing(
        await backend_of(state, many.data).open_owner_data(Bodies([FIRST.encode()], seals=False))
    ) as data:
        (owner,) = [one.owner for one in await data.owners()]
        return json.dumps([row.data async for row in data.export(owner)])


@pytest.mark.parametrize("keys", ((), (FIRST,)), ids=("made", "given"))
async def test_nothing_of_what_was_said_is_at_rest(many: Processes, keys: tuple[str, ...]) -> None:
    app = await many.start(seal=True, sealing_keys=keys)
    ids = await say_everything(many, app)
    await check_everything(app, ids)
    assert at_rest(many.data, TEXTS) == set()
    many.opened.remove(app)
    await app.stop()
    # After the log was folded into the database as well.
    assert at_rest(many.data, TEXTS) == set()
    if keys:
        found = await exported(many)
        assert all(text in found for text in TEXTS)


async def test_what_was_stored_before_stays_and_the_setting_can_be_turned_off(many: Processes) -> None:
    plain = await many.start(sealing_keys=(FIRST,))
    before = await say_everything(many, plain)
    assert at_rest(many.data, TEXTS) == set(TEXTS)
    sealing = await many.start(sealing_keys=(FIRST,), seal=True)
    after = await say_everything(many, sealing)
    for app in (plain, sealing):
        await check_everything_of(app, before, after)


async def check_everything_of(app: BackgroundApp, *made: tuple[str, ...]) -> None:
    for ids in made:
        await check_everything(app, ids)


async def test_keys_are_rotated(many: Processes) -> None:
    old = await many.start(sealing_keys=(FIRST,), seal=True)
    before = await say_everything(many, old)
    # Machines that share a database learn of the new one first.
    told = await many.start(sealing_keys=(FIRST, SECOND), seal=True)
    many.opened.remove(old)
    await old.stop()
    both = await many.start(sealing_keys=(SECOND, FIRST), seal=True)
    after = await say_everything(many, both)
    for app in (told, both):
        await check_everything_of(app, before, after)
    if on_postgres():
        # Such a process does not start: the keys that machines share are compared.
        return
    new = await many.start(sealing_keys=(SECOND,), seal=True)
    # The third response ran in the background, perhaps in the process that still seals with the old key.
    for name, status in ((after[0], 200), (after[1], 200), (before[0], 500), (before[2], 500)):
        assert (await send(new, f"/responses/{name}", None, "GET"))[0] == status


async def test_without_the_key_nothing_is_read_and_the_answer_says_why(many: Processes) -> None:
    if on_postgres():
        pytest.skip("a process without the key of its machines does not start")
    app = await many.start(sealing_keys=(FIRST,), seal=True)
    response, *_ = await say_everything(many, app)
    other = await many.start(sealing_keys=(SECOND,), seal=True)
    for method, path, body in (
        ("GET", f"/responses/{response}", None),
        ("POST", "/responses", {"model": "m", "input": "And?", "previous_response_id": response}),
    ):
        status, got = await send(other, path, body, method)
        assert status == 500 and got["error"]["code"] == "storage_sealed", got
        assert "encrypted with a key that this server does not have" in got["error"]["message"]
    assert (await send(other, f"/responses/{response}", None, "DELETE"))[0] == 200


async def test_a_background_response_is_in_progress_while_it_runs_and_can_be_cancelled(many: Processes) -> None:
    gone = asyncio.Event()
    many.chat.script(answer(parts=[*text_stream(OUT)[:1], Wait(gone)]))
    app = await many.start(sealing_keys=(FIRST,), seal=True)
    made = await app.create(input=f"Say {IN}.")
    await app.reaches(made["id"], "in_progress")
    status, ended = await app.ask(f"/{made['id']}/cancel", "POST")
    assert status == 200 and ended["status"] == "cancelled"
    assert (await app.get(made["id"]))["status"] == "cancelled"
    assert at_rest(many.data, TEXTS) == set()


IN_WAL = """
SELECT coalesce(bool_or(position(?::bytea IN pg_read_binary_file('pg_wal/' || name)) > 0), false) FROM pg_ls_waldir()
"""


async def test_the_write_ahead_log_of_postgresql_holds_nothing_of_it(many: Processes) -> None:
    if not on_postgres():
        pytest.skip("SQLite's log is one of the files that are searched above")
    for seal in (True, False):
        # The server's log holds what other tests have stored.
        text = secrets.token_hex(16)
        app = await many.start(sealing_keys=(FIRST,), seal=seal)
        many.chat.script(answer(parts=text_stream(text)))
        assert (await send(app, "/responses", {"model": "m", "input": text}))[0] == 200
        assert at_rest(many.data, (text,)) == (set() if seal else {text})
        assert look(many.data, IN_WAL, text.encode())[0][0] is not seal
