"""The console's list of background responses: what delays a response, and how a user runs it again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from antiphon.config.operators import AdminSettings, ConsoleSettings
from antiphon.console.console import Console
from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.ports.journal import EntryFilter
from tests.support.background_app import BackgroundApp, processes
from tests.support.console_browser import ConsoleBrowser
from tests.support.waiting import until

TOKEN = "the-token-of-the-operators-0123456789"
ANNA, BO = "ant_key-of-anna-0123456789", "ant_key-of-bo-0123456789"
NOWHERE = "http://127.0.0.1:9/v1"


@dataclass
class Place:
    app: BackgroundApp
    url: str

    async def user(self, token: str) -> ConsoleBrowser:
        console = self.app.app.context.console
        assert isinstance(console, Console)
        browser = ConsoleBrowser(console)
        await browser.sign_in(token)
        return browser

    async def shows(self, browser: ConsoleBrowser, text: str) -> str:
        """Wait until the list shows the text. Returns the page."""
        async with asyncio.timeout(60):
            while text not in (page := (await browser.get("/console/background"))[1]):
                await asyncio.sleep(0.01)
        return page

    async def failed(self) -> str:
        """Create a background response for Anna that is cancelled. Returns the id of its entry in the journal."""
        made = await self.app.create(token=ANNA, input="the question", temperature=0.5)
        await until(lambda: bool(self.app.app.workers.running))
        await self.app.ask(f"/{made['id']}/cancel", "POST", ANNA)
        journal = self.app.app.stores.journal
        async with asyncio.timeout(60):
            while not (page := await journal.list(EntryFilter(door="background"), limit=1)).entries:
                await asyncio.sleep(0.01)
        return page.entries[0].id

    async def conversation(self, token: str) -> str:
        """Create an empty conversation. Returns its id."""
        headers = {"authorization": f"Bearer {token}"}
        async with self.app.session.post(f"{self.app.url}/conversations", json={}, headers=headers) as got:
            return str((await got.json())["id"])

    async def run(self, browser: ConsoleBrowser, sent: dict[str, Any], csrf: str) -> tuple[int, dict[str, Any]]:
        """Send the request again, as the page's script does."""
        headers = {"cookie": browser.cookie, "x-csrf-token": csrf}
        url, query = f"{self.url}/console/run", {"owner": sent["owner"]}
        async with self.app.session.post(url, params=query, headers=headers, json=sent["body"]) as got:
            return got.status, await got.json()


@asynccontextmanager
async def place(data: Path, *, act: bool = True, record: Any = "off", **background: Any) -> AsyncIterator[Place]:
    async with processes(data) as made:
        app = await made.start(
            upstream=NOWHERE,
            patience=600,
            owner_keys={"anna": {"keys": [ANNA]}, "bo": {"keys": [BO]}},
            admin=AdminSettings(token=SecretStr(TOKEN)),
            console=ConsoleSettings(enabled=True, act=act, record=record),
            **background,
        )
        door = HttpDoor(app.app.context, console=ConsoleAt.SEPARATE)
        try:
            yield Place(app, f"http://{await door.start('127.0.0.1:0')}")
        finally:
            await door.aclose()


async def test_the_list_tells_what_delays_a_response(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        anna = await there.user(ANNA)
        await there.app.create(token=ANNA)
        page = await there.shows(anna, "failed attempt")
        assert "connection refused" in page and '<th class="num hide-small">Lease</th>' in page
        assert "data-retry" not in page, "the response has not ended"
        _, page = await (await there.user(TOKEN)).get("/console/models?whole=1")
        assert "✕ unreachable" in page and "of background responses that still run" in page
        assert "connection refused" in page and "no requests" not in page


@pytest.mark.parametrize("record", ["off", "all"])
@pytest.mark.parametrize("token", [ANNA, TOKEN])
async def test_a_response_that_was_cancelled_runs_again(tmp_path: Path, record: str, token: str) -> None:
    async with place(tmp_path, record=record) as there:
        entry_id = await there.failed()
        browser = await there.user(token)
        assert f"/background/{entry_id}/request" in await there.shows(browser, "data-retry")
        sent = json.loads((await browser.send("GET", f"/console/background/{entry_id}/request")).body)
        assert sent["owner"] == "n:anna" and sent["body"]["temperature"] == 0.5
        assert (sent["body"]["background"], sent["body"]["stream"]) == (True, False)
        assert (await there.run(browser, sent, "wrong"))[0] == 403
        status, made = await there.run(browser, sent, await browser.csrf())
        assert (status, made["status"]) == (200, "queued")
        status, items = await there.app.ask(f"/{made['id']}/input_items", token=ANNA)
        assert status == 200 and "the question" in json.dumps(items)


@pytest.mark.parametrize("record", ["off", "all"])
async def test_a_response_that_was_cancelled_in_the_queue_runs_again(tmp_path: Path, record: str) -> None:
    async with place(tmp_path, record=record, workers=0) as there:
        made = await there.app.create(token=ANNA, input="the question", temperature=0.5)
        browser, bo = await there.user(ANNA), await there.user(BO)
        page = await there.shows(browser, made["id"])
        assert "data-retry" not in page
        assert (await browser.post(f"/console/background/{made['id']}/cancel")).status == 303
        page = await there.shows(browser, "data-retry")
        assert page.count("data-retry") == 1 and "cancelled" in page
        entry_id = page.partition('data-retry="/console/background/')[2].partition("/")[0]
        sent = json.loads((await browser.send("GET", f"/console/background/{entry_id}/request")).body)
        assert sent["owner"] == "n:anna" and sent["body"]["temperature"] == 0.5
        status, again = await there.run(browser, sent, await browser.csrf())
        assert (status, again["status"]) == (200, "queued")
        status, items = await there.app.ask(f"/{again['id']}/input_items", token=ANNA)
        assert status == 200 and "the question" in json.dumps(items)
        assert entry_id not in (await bo.get("/console/background"))[1]
        status, page = await browser.get(f"/console/requests/{entry_id}")
        assert status == 200 and "cancelled" in page


@pytest.mark.parametrize("record", ["off", "all"])
async def test_every_field_of_a_response_that_was_cancelled_in_the_queue_is_sent_again(
    tmp_path: Path, record: str
) -> None:
    """With a recording, the request is the client's own. Without one, the stored response has most of its fields."""
    format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    restored = {
        "model": "m",
        "temperature": 0,
        "top_p": 0.5,
        "top_logprobs": 2,
        "max_output_tokens": 100,
        "max_tool_calls": 3,
        "instructions": "be nice",
        "user": "u1",
        "prompt_cache_key": "pk",
        "safety_identifier": "s",
        "truncation": "auto",
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "text": {"format": format, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "tool_choice": {"type": "function", "name": "f"},
        "background": True,
    }
    lost = {
        "include": ["message.output_text.logprobs"],
        "stop": ["x"],
        "seed": 5,
        "context_management": [{"type": "compaction", "compact_threshold": 5000}],
    }
    many = [{"role": "user", "content": f"item {n}"} for n in range(150)]
    async with place(tmp_path, record=record, workers=0) as there:
        conversation = await there.conversation(ANNA)
        sent = {**restored, **lost, "tools": [tool], "input": many, "conversation": conversation}
        made = await there.app.create(token=ANNA, **sent)
        browser = await there.user(ANNA)
        await there.app.ask(f"/{made['id']}/cancel", "POST", ANNA)
        page = await there.shows(browser, "data-retry")
        entry_id = page.partition('data-retry="/console/background/')[2].partition("/")[0]
        again = json.loads((await browser.send("GET", f"/console/background/{entry_id}/request")).body)
        body, note = again["body"], again["note"]
        if record == "all":
            assert body == {**sent, "stream": False} and note == ""
            status, page = await browser.get(f"/console/requests/{entry_id}")
            assert status == 200 and "Antiphon called no model" in page and "safety_identifier" in page
            return
        assert {name: body[name] for name in restored} == {**restored, "text": body["text"]}
        assert body["text"]["format"] == {**format, "description": None} and body["text"]["verbosity"] == "low"
        assert body["conversation"] == conversation and body["tools"][0]["name"] == "f"
        assert [item["content"][0]["text"] for item in body["input"]] == [item["content"] for item in many]
        assert not lost.keys() & body.keys() and all(name in note for name in lost)
        status, page = await browser.get(f"/console/playground?request={entry_id}")
        assert status == 200 and "context_management, include" in page
        status, page = await browser.get(f"/console/requests/{entry_id}")
        assert status == 200 and "cancelled before a worker ran it" in page and ">0 ms</b><span>total" not in page
        assert "safety_identifier=" in page and f"conversation=&#39;{conversation}&#39;" in page, "the request as code"
        assert (await there.run(browser, again, await browser.csrf()))[0] == 200


async def test_a_recorded_request_that_no_worker_ran_has_no_credentials(tmp_path: Path) -> None:
    secret = "the-authorization-of-the-mcp-server"
    server = {"type": "mcp", "server_label": "s", "server_url": f"http://127.0.0.1:9/x?token={secret}"}
    async with place(tmp_path, record="all", workers=0) as there:
        made = await there.app.create(token=ANNA, input="hi", tools=[{**server, "require_approval": "never"}])
        await there.app.ask(f"/{made['id']}/cancel", "POST", ANNA)
        browser = await there.user(ANNA)
        page = await there.shows(browser, "data-retry")
        entry_id = page.partition('data-retry="/console/background/')[2].partition("/")[0]
        found = await browser.send("GET", f"/console/background/{entry_id}/request")
        assert found.status == 200 and secret.encode() not in found.body and b"127.0.0.1:9" in found.body


async def test_who_may_not_act_gets_no_request(tmp_path: Path) -> None:
    async with place(tmp_path, act=False) as there:
        entry_id = await there.failed()
        operator, bo = await there.user(TOKEN), await there.user(BO)
        assert "Retry" not in await there.shows(operator, entry_id), "the button needs console.act"
        sent = json.loads((await operator.send("GET", f"/console/background/{entry_id}/request")).body)
        assert (await there.run(operator, sent, await operator.csrf()))[0] == 403
        assert (await bo.send("GET", f"/console/background/{entry_id}/request")).status == 404
        assert entry_id not in (await bo.get("/console/background"))[1]


async def test_a_request_whose_contents_are_deleted_cannot_run_again(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        entry_id = await there.failed()
        anna = await there.user(ANNA)
        entry = await there.app.app.stores.journal.get(entry_id, "n:anna")
        assert entry is not None
        await there.app.ask(f"/{entry.response_id}", "DELETE", ANNA)
        assert (await anna.send("GET", f"/console/background/{entry_id}/request")).status == 404
