"""The page of one request over a real gateway: the contents of both sides, and what the page says about a failure."""

from __future__ import annotations

import asyncio
import html
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from antiphon.engine.ports.journal import Detail, Entry, EntryFilter, JournalSpan, Part, Recording
from antiphon.entry import main
from antiphon.ids import new_id
from antiphon.recordings.format import read_entries
from antiphon.types.transport import LOCAL_REPLY
from tests.integration.test_console import ANNA, TOKEN, Place, place
from tests.support.chat_server import json_answer, never
from tests.support.console_app import ConsoleApp, open_console_app
from tests.support.state import needs_sqlite

RECORDS = {"console": {"enabled": True, "record": "all"}}


async def page_of_the_newest(there: Place) -> str:
    """The text of the page of the newest request, in one line and without tags."""
    (entry, *_) = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries
    status, page = await (await there.user(ANNA)).get(f"/console/requests/{entry.id}")
    assert status == 200, page
    main = page.partition("<main")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", main)))


async def test_both_sides_have_method_path_and_headers(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, request_id="req_of_anna")
        page = await page_of_the_newest(there)
        client, _, server = page.partition("Antiphon ⇄ model server")
        assert "POST /v1/responses" in client and "x-request-id req_of_anna" in client
        assert "POST /chat/completions" in server and "content-type application/json" in server
        assert ANNA not in page and "authorization" not in page


async def test_contents_in_memory_say_until_when(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, store=False)
        page = await page_of_the_newest(there)
        assert re.search(r"only in the memory of this process, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page)
        await there.create(ANNA)
        assert "memory of this process" not in await page_of_the_newest(there)


async def test_contents_that_the_process_dropped_early_are_not_announced(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, store=False)
        journal = there.app.app.stores.journal
        (held,) = (await journal.list(EntryFilter())).entries
        await journal.add([Entry("entry_1", held.owner, recorded=True, detail=Detail(held_by=held.detail.held_by))])
        _, page = await (await there.user(ANNA)).get("/console/requests/entry_1")
        assert "has deleted its contents early" in page and "until that process answers" not in page


async def test_an_export_names_the_process_that_has_the_contents(tmp_path: Path) -> None:
    async with place(tmp_path) as there, place(tmp_path) as other:
        await there.create(ANNA, store=False)
        (entry,) = (await there.app.app.stores.journal.list(EntryFilter())).entries
        path = f"/console/requests/{entry.id}/cassette"
        assert (await (await there.user(ANNA)).send("GET", path)).status == 200
        answer = await (await other.user(ANNA)).send("GET", path)
        assert answer.status == 404 and f"memory of the process {entry.detail.held_by}".encode() in answer.body


async def test_the_page_names_the_setting_that_stores_nothing_of_an_owner(tmp_path: Path) -> None:
    async with place(tmp_path, store_never=("n:anna",)) as there:
        await there.create(ANNA)
        page = await page_of_the_newest(there)
        assert page.count("setting owner.store_never covers") == 2
        assert "console.record_unstored" not in page and "set store: false" not in page


async def test_the_upstream_refuses_a_forwarded_request(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(json_answer({"error": {"message": "temperature is odd"}}, status=400))
        sent = {"model": "demo-model", "messages": []}
        url = f"{there.app.url}/chat/completions"
        async with there.app.session.post(url, json=sent, headers={"authorization": f"Bearer {ANNA}"}) as got:
            assert got.status == 400
        await there.journal_has(1)
        page = await page_of_the_newest(there)
        assert "The upstream refused the request because of its content" in page
        assert "forwards requests to this path unchanged" in page and "Antiphon refused" not in page


@pytest.mark.parametrize("act", [False, True])
async def test_only_an_operator_who_may_act_is_offered_another_run(tmp_path: Path, act: bool) -> None:
    async with place(tmp_path, act=act) as there:
        made = await there.create(ANNA)
        _, page = await (await there.user(TOKEN)).get(f"/console/requests/{made['id']}")
        assert ("Edit and run again" in page) is act
        _, page = await (await there.user(ANNA)).get(f"/console/requests/{made['id']}")
        assert "Edit and run again" in page


async def test_an_upstream_that_never_answers_is_named(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(never())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await there.create(ANNA)
        await there.journal_has(1)
        page = await page_of_the_newest(there)
        assert "Until then the upstream 'default' had sent nothing. Check the upstream first" in page


async def test_a_forwarded_request_without_an_upstream_s_answer(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.chat.stop()
        url = f"{there.app.url}/chat/completions"
        sent = {"model": "demo-model", "messages": []}
        async with there.app.session.post(url, json=sent, headers={"authorization": f"Bearer {ANNA}"}) as got:
            assert got.status == 502
        await there.journal_has(1)
        page = await page_of_the_newest(there)
        assert "No upstream has answered this request." in page and "has received the upstream's answer" not in page
        assert "✕ upstream_unreachable" in page and "answer=none" in page and "status=" not in page


async def test_only_an_operator_sees_that_the_key_does_not_allow_the_model(tmp_path: Path) -> None:
    keys = {"anna": {"keys": [ANNA], "models": ["small*"]}}
    async with place(tmp_path, owner_keys=keys) as there:
        made = await there.create(ANNA, model="large")
        assert "small" not in str(made)
        url, sent = f"{there.app.url}/chat/completions", {"model": "large", "messages": []}
        async with there.app.session.post(url, json=sent, headers={"authorization": f"Bearer {ANNA}"}) as got:
            assert got.status == 404
        await there.journal_has(2)
        chosen = EntryFilter(model="large")
        entries = (await there.app.app.stores.journal.list(chosen)).entries
        assert len(entries) == 2 and all(entry.refused_early for entry in entries)
        for entry in entries:
            path = f"/console/requests/{entry.id}"
            status, page = await (await there.user(TOKEN)).get(path)
            assert status == 200 and "the client&#39;s key may use only: small*" in page
            status, page = await (await there.user(ANNA)).get(path)
            assert status == 200 and "does not exist or you do not have access" in page and "small" not in page
            assert ("Antiphon answered with an error before it began" in page) is (entry.door == "pass_through")
            export = await (await there.user(ANNA)).send("GET", f"{path}/cassette")
            assert b"small" not in export.body and export.status == (404 if entry.door == "pass_through" else 200)


async def test_only_an_operator_sees_which_setting_disables_a_model(tmp_path: Path) -> None:
    models = [{"match": "demo-model"}, {"match": "old-*", "mode": "disabled"}]
    async with place(tmp_path, models=models) as there:
        made = await there.create(ANNA, model="old-model")
        assert made["error"]["code"] == "model_not_found" and "models[1]" not in str(made)
        url, sent = f"{there.app.url}/chat/completions", {"model": "old-model", "messages": []}
        async with there.app.session.post(url, json=sent, headers={"authorization": f"Bearer {ANNA}"}) as got:
            assert got.status == 404 and "models[1]" not in await got.text()
        await there.journal_has(2)
        for entry in (await there.app.app.stores.journal.list(EntryFilter(model="old-model"))).entries:
            path = f"/console/requests/{entry.id}"
            status, page = await (await there.user(TOKEN)).get(path)
            assert status == 200 and "disabled by models[1] (match: old-*)" in page
            assert "a setting of this server" in page
            status, page = await (await there.user(ANNA)).get(path)
            assert status == 200 and "models[1]" not in page and "does not serve the model" in page


async def test_the_page_marks_the_model_call_that_failed(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA)
        assert "✕" not in await page_of_the_newest(there)
        await there.chat.stop()
        await there.create(ANNA)
        await there.journal_has(2)
        page = await page_of_the_newest(there)
        assert "1. call default ✕ upstream_unreachable" in page and "answer=none" in page and "status=0" not in page
        (entry, *_) = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries
        _, page = await (await there.user(TOKEN)).get(f"/console/requests/{entry.id}")
        assert f'<dt>upstream</dt><dd>default <span class="mono">{there.chat.base_url}' in page


async def _shown(console: ConsoleApp, entry: Entry, *parts: Part) -> str:
    """The page of a request with this entry and these recorded parts."""
    journal = console.app.journal
    assert journal is not None
    journal.recorder.note(entry, Recording(parts) if parts else None)
    await journal.recorder.aclose()
    page = await console.get(f"/requests/{entry.id}", "operator")
    assert page.status == 200
    return page.words


async def test_the_page_shows_where_a_stream_broke_off(tmp_path: Path) -> None:
    entry = Entry(
        new_id("entry"), "n:anna", response_id="resp_1", outcome="failed", fault="upstream", code="upstream_cut",
        status=200, stored=True, seconds=0.193, calls=1, detail=Detail(cause="cut: the upstream left"),
    )  # fmt: skip
    parts = (
        Part(0.0, "request", b"{}", {"method": "POST", "path": "/v1/responses"}),
        Part(0.1, "call", b"{}"),
        Part(0.12, "head", b"", {"status": 200}),
        Part(0.13, "data", b'data: {"choices":[]}\n\n'),
        Part(0.14, "event_head", b"", {"status": 200}),
        Part(0.15, "event", b"event: response.created\ndata: {}\n\n"),
    )
    async with open_console_app(tmp_path, settings=RECORDS) as console:
        page = await _shown(console, entry, *parts)
    assert "Why it failed The upstream broke off its answer. code upstream_cut" in page
    assert "✕ The stream broke off at 0.193 s. The client got no final event." in page
    assert "✕ broke off" in page and "✕ The answer broke off at 0.193 s." in page


async def test_the_page_names_envoy_as_the_writer_of_its_own_answer(tmp_path: Path) -> None:
    entry = Entry(
        new_id("entry"), "n:anna", response_id="resp_1", outcome="error", fault="upstream", code="upstream_cut",
        status=502, stored=True, seconds=0.2, calls=1,
    )  # fmt: skip
    parts = (
        Part(0.1, "call", b"{}"),
        Part(0.12, "head", b"", {"status": 502, "headers": [[LOCAL_REPLY, "unreachable:x"]]}),
        Part(0.13, "data", b'{"error": {}}'),
        Part(0.14, "end"),
    )
    async with open_console_app(tmp_path, settings=RECORDS) as console:
        page = await _shown(console, entry, *parts)
    assert "no answer" in page and "The model server did not answer. Envoy wrote the answer below" in page


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"response_id": "resp_1", "stored": False}, "the request set store: false"),
        ({"response_id": "resp_1", "stored": True}, "the response was deleted or has expired"),
        ({"response_id": "resp_1", "stored": True, "fault": "upstream", "calls": 1}, "failed before Antiphon saved"),
        ({"fault": "upstream", "calls": 1}, "the request failed before its response began"),
        ({"fault": "client"}, "Antiphon refused the request"),
        ({"door": "pass_through"}, "Antiphon only forwarded the request"),
    ],
)
async def test_one_reason_for_a_response_that_is_not_stored(tmp_path: Path, changes: Any, why: str) -> None:
    async with open_console_app(tmp_path) as console:
        page = await _shown(console, Entry(new_id("entry"), "n:anna", **changes))
    assert f"stored no: {why}" in page or f"stored no: the request {why}" in page


async def test_a_disconnected_client_has_a_sentence_in_red(tmp_path: Path) -> None:
    detail = Detail(cause="The client left before the response was complete.")
    gone = Entry(new_id("entry"), "n:anna", outcome="cancelled", fault="cancelled", code="client_gone", detail=detail)
    async with open_console_app(tmp_path) as console:
        page = await _shown(console, gone)
    assert "Why it failed The client left before the response was complete. code client_gone" in page
    assert "caused by the client, which disconnected" in page and page.count("client left") == 1


async def test_a_server_error_of_the_upstream_has_advice(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(json_answer({"error": {"message": "boom", "code": "invented"}}, status=500))
        await there.create(ANNA)
        page = await page_of_the_newest(there)
        assert "boom" in page and "read its log at the time of this request" in page


async def test_a_request_without_an_answer_has_no_first_token_and_can_be_exported(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.chat.stop()
        await there.create(ANNA)
        page = await page_of_the_newest(there)
        assert "first token" not in page and "prompt cache" not in page and "1 model call " in page
        assert "no answer" in page and "Export cassette" in page
        assert "stored no: the request failed before Antiphon saved a response" in page
        (entry,) = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries
        answer = await (await there.user(ANNA)).send("GET", f"/console/requests/{entry.id}/cassette")
        client, call = read_entries(answer.body)
        assert (client.path, client.status, call.status) == ("/v1/responses", 502, 0)


async def test_the_error_of_an_upstream_is_no_first_token(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(json_answer({"error": {"message": "boom"}}, status=500))
        await there.create(ANNA)
        (entry,) = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries
        assert entry.first is None and [span.kind for span in entry.detail.spans].count("first_token") == 0


async def test_each_ignored_part_has_its_own_reason(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        tools = [{"type": "web_search"}, {"type": "computer"}]
        await there.create(ANNA, tools=tools, moderation={"model": "x"}, foo=1, metadata={"a": "b"})
        page = await page_of_the_newest(there)
        assert "tools.web_search the operator has not enabled the tool ('web_search.provider')" in page
        assert "tools.computer this server does not implement the tool" in page
        assert "moderation the model server does not support this part" in page
        assert "foo Antiphon does not know this name; with the setting field_allow Antiphon sends the field" in page
        assert "metadata Antiphon stores and returns the metadata" in page
        assert "neither the model server nor Antiphon supports" not in page


async def test_steps_have_the_numbers_of_their_calls(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA)
        page = await page_of_the_newest(there)
        assert "1. call default" in page and re.search(r" head=\d+ ms", page)


async def test_the_command_knows_that_contents_are_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_sqlite()
    async with place(tmp_path) as there:
        await there.create(ANNA, store=False)
        (entry,) = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries
        assert await asyncio.to_thread(main, ["show", entry.id, "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "load the request's page in the console again" in shown and "not recorded" not in shown


async def test_the_page_names_a_connector_that_failed(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/mcp"
    settings = RECORDS | {"mcp": {"connectors": {"buses": {"url": url}, "bus": {"url": "http://127.0.0.1:8/mcp"}}}}
    entry = Entry(
        new_id("entry"), "n:anna", outcome="error", fault="ours", code="mcp_server_failed", status=424,
        detail=Detail(message="Error retrieving tool list", cause="the MCP server 'buses' (mcp.connectors): timed out"),
    )  # fmt: skip
    async with open_console_app(tmp_path, settings=settings) as console:
        page = await _shown(console, entry)
        assert "caused by the MCP server 'buses' (mcp.connectors)" in page
        assert f"URL {url}" in page and "Check that the MCP server runs" in page
        page = (await console.get(f"/requests/{entry.id}", "anna")).words
        assert "caused by the MCP server 'buses'" in page and url not in page


async def test_a_failed_tool_has_a_badge_and_a_reason(tmp_path: Path) -> None:
    span = JournalSpan("tool", "trains.tickets", 0.1, 0.2, {"error": "failed"})
    entry = Entry(
        new_id("entry"), "n:anna", response_id="resp_1", outcome="completed", stored=True, seconds=0.3, calls=1,
        status=200, detail=Detail(spans=(span,)),
    )  # fmt: skip
    parts = (
        Part(0.0, "request", b"{}", {"method": "POST", "path": "/v1/responses"}),
        Part(0.05, "call", b"{}"),
        Part(0.2, "tool", b"The call failed: no such city", {"name": "trains.tickets", "failed": True}),
    )
    async with open_console_app(tmp_path, settings=RECORDS) as console:
        page = await _shown(console, entry)
        assert "The tool trains.tickets failed. The reason was not recorded." in page
        assert "tool trains.tickets ✕ failed" in page
        assert "completed tool failed" in (await console.get("/requests", "operator")).words
        # The contents of a completed response are only shown while the response exists.
        failed = replace(entry, id=new_id("entry"), response_id="resp_2", outcome="failed", fault="ours")
        page = await _shown(console, failed, *parts)
        assert "The tool trains.tickets failed. The model got: The call failed: no such city" in page


async def test_a_retried_model_call_has_its_attempts(tmp_path: Path) -> None:
    facts = {"status": 0, "attempts": 11, "retry_cause": "connection refused"}
    span = JournalSpan("call", "night", 0.0, 26.3, facts)
    entry = Entry(
        new_id("entry"), "n:anna", door="background", response_id="resp_1", outcome="failed", fault="upstream",
        code="upstream_unreachable", status=200, stored=True, seconds=26.3, calls=1, detail=Detail(spans=(span,)),
    )  # fmt: skip
    async with open_console_app(tmp_path, settings=RECORDS) as console:
        page = await _shown(console, entry)
    assert "11 attempts to reach the upstream night. The last retry followed this failure: connection refused." in page
    assert "attempts=11" in page and "HTTP 200" not in page


async def test_a_used_up_quota_leads_operators_to_the_limits(tmp_path: Path) -> None:
    entry = Entry(
        new_id("entry"), "n:anna", outcome="error", fault="client", code="insufficient_quota", status=429,
        input_tokens=9, detail=Detail(message="Rate limit reached for the owner"),
    )  # fmt: skip
    async with open_console_app(tmp_path, settings=RECORDS) as console:
        page = await _shown(console, entry)
        assert "limits and their use" in page and "- 0 from the prompt cache" in page
        assert "limits and their use" not in (await console.get(f"/requests/{entry.id}", "anna")).words


async def test_headers_are_folded(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        made = await there.create(ANNA)
        _, page = await (await there.user(ANNA)).get(f"/console/requests/{made['id']}")
        assert re.search(r'<details class="headers"><summary>\d+ headers?</summary>', page)


async def test_a_rate_limit_is_not_shown_as_a_failed_upstream(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(json_answer({"error": {"message": "slow down"}}, status=429))
        await there.create(ANNA)
        _, page = await (await there.user(TOKEN)).get("/console/models/upstreams")
        assert "○ rate limit reached" in page and "✕ failed" not in page


async def test_the_log_line_about_a_shown_request_follows_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_sqlite()
    async with place(tmp_path) as there:
        made = await there.create(ANNA)
        capsys.readouterr()
        monkeypatch.setattr("sys.stderr", sys.stdout)
        assert await asyncio.to_thread(main, ["show", made["id"], "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert 0 < shown.index("The journal has") < shown.index("actor")
