"""Two machines that share nothing but a PostgreSQL database serve one another's clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.background_app import BackgroundApp, processes

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full


@pytest.fixture
async def machines(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[BackgroundApp, BackgroundApp]]:
    async with processes(tmp_path / "one", postgres_url) as one, processes(tmp_path / "other", postgres_url) as other:
        yield await one.start(), await other.start()


async def _asked(app: BackgroundApp, path: str, **body: Any) -> dict[str, Any]:
    async with app.session.post(f"{app.url}/{path}", json=body) as got:
        value: dict[str, Any] = await got.json()
        assert got.status == 200, value
    return value


async def test_what_one_stored_the_other_continues(machines: tuple[BackgroundApp, BackgroundApp]) -> None:
    one, other = machines
    first = await _asked(one, "responses", model="m", input="hi")
    second = await _asked(other, "responses", model="m", input="on", previous_response_id=first["id"])
    assert (await one.get(second["id"]))["previous_response_id"] == first["id"]
    assert (await other.ask(f"/{first['id']}", "DELETE"))[0] == 200
    assert (await one.ask(f"/{first['id']}"))[0] == 404
    conversation = await _asked(one, "conversations")
    for app in (other, one):
        await _asked(app, "responses", model="m", input="hi", conversation=conversation["id"])
    async with other.session.get(f"{other.url}/conversations/{conversation['id']}/items") as got:
        assert len((await got.json())["data"]) == 4


async def test_what_one_queued_is_read_from_the_other(machines: tuple[BackgroundApp, BackgroundApp]) -> None:
    one, other = machines
    made = await one.create()
    assert (await other.ended(made["id"]))["status"] == "completed"
    async with one.stream() as stream:
        response_id = await stream.response_id()
        async with other.stream(response_id) as followed:
            assert b"response.completed" in await followed.whole()


async def test_contents_on_the_disk_of_one_are_said_to_be_there(
    machines: tuple[BackgroundApp, BackgroundApp],
) -> None:
    """The file is there on both, and whoever asks the wrong machine is told why it has no content."""
    one, other = machines
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", b"words", filename="a.txt", content_type="text/plain")
    async with one.session.post(f"{one.url}/files", data=form) as got:
        file = await got.json()
    async with other.session.get(f"{other.url}/files/{file['id']}") as got:
        assert await got.json() == file
    named = {"role": "user", "content": [{"type": "input_file", "file_id": file["id"]}]}
    for app, status in ((one, 200), (other, 503)):
        async with app.session.get(f"{app.url}/files/{file['id']}/content") as content:
            assert content.status == status
            told = [await content.read()]
        async with app.session.post(f"{app.url}/responses", json={"model": "m", "input": [named]}) as made:
            assert made.status == status
            told.append(await made.read())
        for text in told if status != 200 else ():
            error = json.loads(text)["error"]
            assert error["code"] == "content_elsewhere" and "another machine" in error["message"]
            assert "/" not in error["message"]
