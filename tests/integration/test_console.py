"""The console's pages over a real gateway: who sees what, which changes are refused, and what hostile texts do."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from antiphon.api.http import ApiRequest
from antiphon.config.operators import AdminSettings, ConsoleSettings
from antiphon.console.console import Console
from antiphon.engine.ports.journal import EntryFilter
from antiphon.entry import main
from antiphon.errors import ApiError
from antiphon.recordings.format import read_entries
from tests.support.background_app import BackgroundApp, processes
from tests.support.chat_server import ChatServer, completion, json_answer
from tests.support.console_browser import HOST, ConsoleBrowser, header, links
from tests.support.state import needs_sqlite

TOKEN = "the-token-of-the-operators-0123456789"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>"
ANNA, BO = "ant_key-of-anna-0123456789", "ant_key-of-bo-0123456789"


@dataclass
class Place:
    app: BackgroundApp
    console: Console
    chat: ChatServer

    def browser(self, **headers: str) -> ConsoleBrowser:
        return ConsoleBrowser(self.console, headers)

    async def user(self, token: str) -> ConsoleBrowser:
        made = self.browser()
        await made.sign_in(token)
        return made

    async def create(self, token: str, request_id: str = "", **body: Any) -> dict[str, Any]:
        """Create a response, and wait until the journal has its entry."""
        before = await self._entries()
        made = await self.post(token, request_id, **body)
        await self.journal_has(before + 1)
        return made

    async def post(self, token: str, request_id: str = "", **body: Any) -> dict[str, Any]:
        """Create a response. The journal writes its entry up to a second later."""
        sent = {"model": "demo-model", "input": "hi", **body}
        headers = {"authorization": f"Bearer {token}"} | ({"x-request-id": request_id} if request_id else {})
        async with self.app.session.post(f"{self.app.url}/responses", json=sent, headers=headers) as got:
            made: dict[str, Any] = await got.json(content_type=None)
        return made

    async def journal_has(self, entries: int) -> None:
        """Wait until the journal has this number of entries."""
        async with asyncio.timeout(30):
            while await self._entries() < entries:
                await asyncio.sleep(0.02)

    async def _entries(self) -> int:
        return (await self.app.app.stores.journal.list(EntryFilter(), limit=1)).total


@asynccontextmanager
async def place(data: Path, *, act: bool = False, record: Any = "all", **changes: Any) -> AsyncIterator[Place]:
    async with processes(data) as made:
        changes.setdefault("owner_keys", {"anna": {"keys": [ANNA], "team": "lab"}, "bo": {"keys": [BO]}})
        app = await made.start(
            managed_keys=True,
            admin=AdminSettings(token=SecretStr(TOKEN)),
            console=ConsoleSettings(enabled=True, act=act, record=record, record_unstored=True),
            **changes,
        )
        console = app.app.context.console
        assert isinstance(console, Console)
        yield Place(app, console, made.chat)


async def test_without_a_session_only_the_sign_in_page_is_served(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        stranger = there.browser()
        for path in there.console.paths:
            answer = await stranger.send("GET", path.replace("{}", "x"))
            assert (answer.status, header(answer, "location").partition("?")[0]) == (303, "/console/sign-in"), path
            assert (await stranger.send("POST", path.replace("{}", "x"), {})).status in (303, 405), path
        assert (await stranger.send("GET", "/console/static/console.js")).status == 404
        assert (await stranger.send("GET", "/console/static/console.css")).status == 200
        assert (await stranger.send("GET", "/console/static/..%2fconsole.py")).status == 404
        answer = await stranger.send("GET", "/console/requests", hx_request="true")
        assert answer.status == 401


async def test_a_request_shows_both_sides(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA, input=f"both sides {HOSTILE}", instructions="be brief")
        anna = await there.user(ANNA)
        status, listed = await anna.get("/console/requests")
        assert status == 200 and "1\N{EN DASH}1 of 1" in listed
        status, page = await anna.get(f"/console/requests/{made['id']}")
        assert status == 200
        for part in ("Client ⇄ Antiphon", "Antiphon ⇄ model server", "both sides", "&#34;messages&#34;", "be brief"):
            assert part in page, part
        assert HOSTILE not in page and "<script>alert" not in page and "<img src=x" not in page


async def test_a_failure_shows_its_cause_and_advice(tmp_path: Path) -> None:
    async with place(tmp_path, record="failures") as there:
        made = await there.create(ANNA, model="no model", temperature=9)
        assert "error" in made
        operator = await there.user(TOKEN)
        _, listed = await operator.get("/console/requests?failed=1")
        (link,) = [one for one in links(listed) if one.startswith("/console/requests/")]
        _, page = await operator.get(link)
        assert "Why it failed" in page and "temperature" in page and "the client" in page


async def test_a_request_that_stored_nothing_has_nothing_to_delete(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, model="no model", temperature=9)
        anna = await there.user(ANNA)
        (link,) = [
            one for one in links((await anna.get("/console/requests"))[1]) if one.startswith("/console/requests/")
        ]
        answer = await anna.post(f"{link}/delete")
        assert answer.status == 404 and b"stored no response" in answer.body


async def test_owners_never_see_each_other(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        made = await there.create(ANNA, input="only for anna")
        bo, anna = await there.user(BO), await there.user(ANNA)
        mine = (await anna.get(f"/console/requests/{made['id']}"))[1]
        assert "only for anna" in mine
        for path in there.console.paths:
            for filled in {path.replace("{}", made["id"]), path.replace("{}", "resp_" + "0" * 48)}:
                for query in ("", "?owner=anonymous", "?text=only+for+anna", f"?thread={made['id']}"):
                    status, page = await bo.get(filled + query)
                    assert "only for anna" not in page.replace('value="only for anna"', ""), filled
                    if made["id"] in filled:
                        missing = await bo.get(filled.replace(made["id"], "resp_" + "0" * 48) + query)
                        assert (status, page.replace(made["id"], "resp_" + "0" * 48)) == missing, filled
        answer = await bo.post(f"/console/requests/{made['id']}/delete")
        assert answer.status == 404
        assert (await there.app.ask(f"/{made['id']}", token=ANNA))[0] == 200


async def test_operators_only_look_until_told_otherwise(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA)
        operator = await there.user(TOKEN)
        answer = await operator.post(f"/console/requests/{made['id']}/delete")
        assert answer.status == 403 and b"console.act" in answer.body
        assert (await there.app.ask(f"/{made['id']}", token=ANNA))[0] == 200
        anna = await there.user(ANNA)
        assert (await anna.post(f"/console/requests/{made['id']}/delete")).status == 303
        assert (await there.app.ask(f"/{made['id']}", token=ANNA))[0] == 404


async def test_an_operator_who_may_only_look_makes_no_keys(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        operator = await there.user(TOKEN)
        assert (await operator.post("/console/keys", owner="mallory")).status == 403
        assert "Create a key" not in (await operator.get("/console/keys"))[1]
        assert (await (await there.user(ANNA)).post("/console/keys", owner="mallory")).status == 404


@pytest.mark.parametrize(
    "headers",
    [{"origin": "null"}, {"origin": "http://[::bad"}, {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "none"}],
)
async def test_no_other_site_signs_a_user_in(tmp_path: Path, headers: dict[str, str]) -> None:
    async with place(tmp_path) as there:
        answer = await there.browser().send("POST", "/console/sign-in", {"token": BO}, **headers)
        assert answer.status == 403 and not header(answer, "set-cookie")


async def test_a_request_id_that_another_owner_chose_shows_nothing_of_the_other(tmp_path: Path) -> None:
    async with place(tmp_path, record="all") as there:
        for token, text in ((ANNA, "of anna"), (BO, "of bo")):
            for store in (True, False):
                await there.create(token, input=f"{text} {store}", store=store, request_id="job-9")
        for token, mine, other in ((ANNA, "of anna", "of bo"), (BO, "of bo", "of anna")):
            user = await there.user(token)
            _, listed = await user.get("/console/requests")
            found = [link for link in links(listed) if link.startswith("/console/requests/entry_")]
            assert len(found) == 2
            pages = [(await user.get(link))[1] for link in found]
            assert any(mine in page for page in pages) and not any(other in page for page in pages)
            assert all("job-9" in page for page in pages)


async def test_a_long_chain_with_branches_and_hostile_json_can_be_looked_at(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        last = await there.post(ANNA, input="root")
        for _ in range(60):
            last = await there.post(ANNA, input="on", previous_response_id=last["id"])
        await there.post(ANNA, input="branch", previous_response_id=last["id"])
        await there.post(ANNA, input="other", previous_response_id=last["id"])
        await there.journal_has(63)
        anna = await there.user(ANNA)
        assert (await anna.get(f"/console/threads/{last['id']}"))[0] == 200


async def test_a_change_needs_the_sessions_token_and_origin(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        operator, other = await there.user(TOKEN), await there.user(TOKEN)
        csrf, foreign = await operator.csrf(), await other.csrf()
        for form, headers in (
            ({}, {}),
            ({"csrf": foreign}, {}),
            ({"csrf": csrf}, {"origin": "https://evil.example"}),
            ({"csrf": csrf}, {"origin": "http://[::bad"}),
            ({"csrf": csrf}, {"sec_fetch_site": "cross-site"}),
        ):
            answer = await operator.send("POST", "/console/keys", {"owner": "mallory", **form}, **headers)
            assert answer.status == 403, (form, headers)
        answer = await operator.send("POST", "/console/keys", {"owner": "carla", "csrf": csrf}, origin=f"http://{HOST}")
        assert answer.status == 200 and b"ant_" in answer.body


async def test_operators_make_rotate_and_revoke_keys(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        operator = await there.user(TOKEN)
        page = (
            await operator.post("/console/keys", owner="carla", name="laptop", models="demo*", days="30")
        ).body.decode()
        token = page.partition('<code id="token">')[2].partition("<")[0]
        assert token.startswith("ant_")
        assert token not in (await operator.get("/console/keys"))[1]
        refused = await operator.post("/console/keys", owner="not a name")
        assert refused.status == 400 and b"owner" in refused.body
        (key,) = await there.app.app.stores.client_keys.list()
        page = (await operator.post(f"/console/keys/{key.id}/rotate")).body.decode()
        assert '<code id="token">ant_' in page
        assert (await operator.post(f"/console/keys/{key.id}/revoke")).status == 303
        audit = (await operator.get("/console/keys"))[1]
        assert "keys revoke" in audit and "console" in audit
        assert (await (await there.user(ANNA)).get("/console/keys"))[0] == 404


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/v1/models", "/console\\..", "/consolex"]
)
async def test_sign_in_leads_only_to_the_console(tmp_path: Path, target: str) -> None:
    async with place(tmp_path) as there:
        answer = await there.browser().send("POST", "/console/sign-in", {"token": TOKEN, "to": target})
        assert header(answer, "location") == "/console"


async def test_a_session_ends_with_sign_out_and_with_its_key(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        operator = await there.user(TOKEN)
        page = (await operator.post("/console/keys", owner="carla")).body.decode()
        token = page.partition('<code id="token">')[2].partition("<")[0]
        carla = there.browser()
        async with asyncio.timeout(30):
            while (await carla.send("POST", "/console/sign-in", {"token": token})).status != 303:
                await asyncio.sleep(0.05)
        assert (await carla.get("/console/requests"))[0] == 200
        (key,) = await there.app.app.stores.client_keys.list()
        await operator.post(f"/console/keys/{key.id}/revoke")
        async with asyncio.timeout(30):
            while (await carla.send("GET", "/console/requests")).status == 200:
                await asyncio.sleep(0.05)
        await operator.post("/console/sign-out")
        assert (await operator.send("GET", "/console/requests")).status == 303


async def test_every_answer_forbids_scripts_frames_and_caches(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        operator = await there.user(TOKEN)
        for path in ("/console/requests", "/console/sign-in", "/console/nowhere", "/console/live"):
            answer = await operator.send("GET", path)
            policy = header(answer, "content-security-policy")
            assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and header(answer, "x-frame-options") == "DENY"
            assert header(answer, "cache-control") == "no-store" or answer.status == 303
        assert (await operator.send("HEAD", "/console/requests")).body == b""
        for method, path, allowed in (
            ("PUT", "/console/requests", "GET, HEAD"),
            ("PUT", "/console/sign-in", "GET, POST, HEAD"),
            ("GET", "/console/requests/x/delete", "POST"),
        ):
            answer = await operator.send(method, path)
            assert (answer.status, header(answer, "allow")) == (405, allowed)


async def test_no_page_has_an_inline_script_or_style(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        made = await there.create(ANNA)
        operator = await there.user(TOKEN)
        for path in there.console.paths:
            _, page = await operator.get(path.replace("{}", made["id"]))
            assert "<script>" not in page and " style=" not in page and "<style" not in page, path
            assert " onclick=" not in page and "javascript:" not in page, path


async def test_text_is_searched_in_contents(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, input="the needle is here")
        await there.create(ANNA, input="only hay")
        anna = await there.user(ANNA)
        _, page = await anna.get("/console/requests?text=NEEDLE")
        assert "1\N{EN DASH}1 of 1" in page and "Antiphon searched the newest 2 requests" in page
        _, page = await anna.get("/console/requests?text=nothing+of+this")
        assert "No request matches" in page


async def test_the_settings_on_the_page_hold_no_secret(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        _, page = await (await there.user(TOKEN)).get("/console/system")
        assert "Effective settings" in page
        assert not any(secret in page for secret in (TOKEN, ANNA, BO))
        _, page = await (await there.user(ANNA)).get("/console/system")
        assert "Effective settings" not in page


async def test_a_thread_shows_its_branches(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        first = await there.create(ANNA, input="the root")
        second = await there.create(ANNA, input="one branch", previous_response_id=first["id"])
        third = await there.create(ANNA, input="other branch", previous_response_id=first["id"])
        anna = await there.user(ANNA)
        _, page = await anna.get(f"/console/threads/{second['id']}")
        assert "the root" in page and "one branch" in page and "other branch" not in page
        assert f"/console/threads/{third['id']}" in page and "What fills the context" in page


async def test_the_playground_takes_a_recorded_request(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA, input=f"again {HOSTILE}", instructions="be brief")
        anna = await there.user(ANNA)
        _, page = await anna.get(f"/console/playground?request={made['id']}")
        assert "again" in page and "be brief" in page and "This is the recorded request." in page
        assert HOSTILE not in page


async def test_the_playground_learns_when_a_request_has_its_entry(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA)
        for token, response_id, ended in ((ANNA, made["id"], True), (BO, made["id"], False), (ANNA, "resp_no", False)):
            status, told = await (await there.user(token)).get(f"/console/playground/ended/{response_id}")
            assert status == 200 and json.loads(told) == {"ended": ended}


async def test_the_playground_knows_the_calls_that_wait_for_an_output(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        there.chat.script(json_answer(completion("", tool_calls=[call])))
        made = await there.create(ANNA, tools=[tool])
        (called,) = [one for one in made["output"] if one["type"] == "function_call"]
        _, page = await (await there.user(ANNA)).get(f"/console/playground?previous={made['id']}")
        assert called["call_id"] in page and "data-calls='[{" in page
        _, page = await (await there.user(BO)).get(f"/console/playground?previous={made['id']}")
        assert called["call_id"] not in page and "data-calls='[]'" in page


async def test_numbers_and_times_of_the_query_are_checked(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        operator = await there.user(TOKEN)
        for query in ("from=x", "since=yesterday", "after=x", "begin=x", "until=yesterday"):
            status, page = await operator.get(f"/console/requests?{query}")
            assert status == 400 and "Traceback" not in page, query


async def test_requests_are_filtered_by_team_server_and_time(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA)
        entry = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries[0]
        operator = await there.user(TOKEN)
        for query, found in (
            (f"team={entry.team}&door={entry.door}&begin=2020-01-01T00:00", True),
            ("owner=n:anna", True),
            ("owner=n:bo", False),
            ("team=none", False),
            ("fault=client", False),
            ("until=2020-01-01T00:00", False),
        ):
            _, page = await operator.get(f"/console/requests?{query}")
            shown = any(entry.id in link for link in links(page) if link.startswith("/console/requests/"))
            assert shown is found, (query, made["id"])
            for name, _, value in (one.partition("=") for one in query.split("&")):
                assert re.search(rf'name="{name}"[^>]* value="{value}"|<option value="{value}" selected>', page), name
        _, page = await (await there.user(ANNA)).get("/console/requests")
        assert "More filters" in page and 'name="owner"' not in page


async def test_the_model_calls_are_exported_as_a_cassette(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA, input="for a bug report")
        anna, bo = await there.user(ANNA), await there.user(BO)
        answer = await anna.send("GET", f"/console/requests/{made['id']}/cassette")
        client, entry = read_entries(answer.body)
        assert client.path == "/v1/responses" and made["id"].encode() in client.body
        assert answer.status == 200 and b"for a bug report" in entry.request and entry.status == 200
        assert header(answer, "content-disposition") == f'attachment; filename="{made["id"]}.jsonl"'
        assert (await bo.send("GET", f"/console/requests/{made['id']}/cassette")).status == 404


async def test_the_prompt_cache_page_says_why_a_thread_missed(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        first = await there.create(ANNA, input="one", instructions="be brief")
        await there.create(ANNA, input="two", instructions="be long", previous_response_id=first["id"])
        _, page = await (await there.user(ANNA)).get("/console/prompt-cache")
        assert "input changed at messages[0]" in page


async def test_an_owner_sees_the_use_of_its_quotas(tmp_path: Path) -> None:
    async with place(tmp_path, quotas={"each_owner": {"requests_per_minute": 100}}) as there:
        await there.create(ANNA)
        _, page = await (await there.user(ANNA)).get("/console/system")
        assert "requests per minute" in page and "owner:n:anna" in page
        await there.create(BO)
        assert "owner:n:bo" not in (await (await there.user(ANNA)).get("/console/system"))[1]


CONTENTS = {
    "/console/requests/{}",
    "/console/requests/{}/cassette",
    "/console/background/{}/request",
    "/console/threads",
    "/console/threads/{}",
    "/console/playground",
    "/console/requests",
    "/console/files/{}",
    "/console/files/{}/content",
    "/console/prompts/{}",
    "/console/vector-stores/{}",
    "/console/vector-stores/{}/files/{}",
    "/console/vector-stores/{}/search",
    "/console/keys",
}
"""The pages whose reads the audit records. This file and `test_console_views.py` open each of them."""
FACTS = {
    f"/console/{name}"
    for name in (
        "live",
        "background",
        "prompts",
        "playground/ended/{}",
        "models",
        "models/checks",
        "models/list",
        "models/support",
        "models/upstreams",
        "prompt-cache/figures",
        "system/figures",
        "files",
        "vector-stores",
        "prompt-cache",
        "system",
        "system/processes",
    )
}
"""The pages that show only facts."""


async def test_the_audit_knows_which_requests_an_operator_read(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        changes = re.compile(r".*/(delete|cancel|rotate|revoke|default|attach|detach|attributes)")
        assert {one for one in there.console.paths if not changes.fullmatch(one)} == CONTENTS | FACTS
        made = await there.create(ANNA, input="a secret")
        failed = await there.create(ANNA, "req_failed", model="no model", temperature=9)
        assert "error" in failed
        entry = (await there.app.app.stores.journal.list(EntryFilter(failed=True), limit=1)).entries[0]
        audit, operator, anna = there.app.app.stores.audit, await there.user(TOKEN), await there.user(ANNA)

        async def rows(browser: ConsoleBrowser, path: str) -> set[tuple[str, str, str, str]]:
            await audit.sweep(None, most=0)
            assert (await browser.get(f"/console{path}"))[0] == 200, path
            return {(one.actor, one.action, one.object, one.owner) for one in await audit.list()}

        read = ("console", "read response", made["id"], "n:anna")
        for path in (
            f"/requests/{made['id']}",
            f"/requests/{made['id']}/cassette",
            f"/threads/{made['id']}",
            f"/playground?request={made['id']}",
            f"/background/{made['id']}/request",
        ):
            assert await rows(anna, path) == set(), path
            assert await rows(operator, path) == {read}, path
        assert await rows(operator, f"/requests/{entry.id}") == {("console", "read request", entry.id, "n:anna")}
        assert await rows(operator, "/requests?text=secret") == {("console", "read search", "", "")}
        assert await rows(operator, "/requests?text=secret&owner=n:anna") == {("console", "read search", "", "n:anna")}
        assert await rows(operator, "/requests") == await rows(operator, "/system") == set()
        assert await rows(operator, "/keys?owner=n:anna") == {("console", "read keys", "", "n:anna")}
        assert "read keys" not in (await operator.get("/console/keys"))[1]
        assert "read keys" in (await operator.get("/console/keys?reads=1"))[1]


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_audit_knows_what_a_command_showed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    needs_sqlite()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    async with place(tmp_path) as there:
        made = await there.create(ANNA, input="a secret")
        for more in ((), ("-v",), ("--json",)):
            assert await asyncio.to_thread(main, ["show", made["id"], "--data", str(tmp_path), *more]) == 0
        (found,) = await there.app.app.stores.audit.list()
    assert found.actor.startswith("cli:")
    assert (found.action, found.object, found.owner) == ("read response", made["id"], "n:anna")
    shown = capsys.readouterr()
    assert "a secret" in shown.out
    assert ("actor" in shown.err) is not terminal, "on a terminal, the answer has no log line"


async def test_a_text_that_cannot_be_an_owner_is_refused(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        browser = await there.user(TOKEN)
        headers = (("cookie", browser.cookie), ("x-csrf-token", await browser.csrf()), ("host", HOST))
        for owner in ("n:a\0nna", "n:" + "a" * 300):
            asked = ApiRequest("POST", "/console/run", (("owner", owner),), headers, request_id="req_1")
            with pytest.raises(ApiError) as error:
                await there.console.runs(asked)
            assert error.value.code == "wrong_owner"
            status, page = (await browser.get(f"/console/requests?owner={quote(owner)}"))[:2]
            assert status == 400 and "must be an id" in page
        assert await there.app.app.stores.audit.list() == []


async def test_the_audit_knows_in_whose_name_an_operator_ran_a_request(tmp_path: Path) -> None:
    async with place(tmp_path, act=True) as there:
        for token, owner in ((TOKEN, "n:anna"), (ANNA, "n:anna")):
            browser = await there.user(token)
            headers = (("cookie", browser.cookie), ("x-csrf-token", await browser.csrf()), ("host", HOST))
            asked = ApiRequest("POST", "/console/run", (("owner", owner),), headers, request_id="req_1")
            assert (await there.console.runs(asked)).owner == owner
        found = await there.app.app.stores.audit.list()
        assert [(one.actor, one.action, one.object, one.owner) for one in found] == [
            ("console", "request run", "req_1", "n:anna")
        ]
