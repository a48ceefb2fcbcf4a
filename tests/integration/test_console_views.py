"""The console's views of files, vector stores, prompts and models, on a process with a real database."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from antiphon.api.http import ApiRequest
from antiphon.errors import StoreError
from antiphon.stores.sqlite.tables import SqliteTables
from tests.support.chat_server import ChatServer
from tests.support.console_app import ANNA, BO, ConsoleApp, open_console_app
from tests.support.embeddings_server import open_embeddings_server

HOSTILE = "<img src=x onerror=alert(1)>.txt"
NONE = "\N{EN DASH}"
MCP = {"connectors": {"wiki": {"url": "https://wiki.internal/x"}}}
VIEWS = ("/files", "/vector-stores", "/prompts")


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[ConsoleApp]:
    async with open_embeddings_server() as embeddings, ChatServer() as chat:
        settings = {
            "embeddings": {"url": embeddings.url, "model": "words"},
            "upstream": {"url": chat.base_url, "auth": "none"},
            "mcp": MCP,
        }
        async with open_console_app(tmp_path, settings=settings) as opened:
            assert opened.app.vector_search is not None
            opened.app.vector_search.start()
            yield opened


async def ask(console: ConsoleApp, method: str, path: str, body: Any = None, owner: str = ANNA) -> Any:
    data = b"" if body is None else json.dumps(body).encode()
    answered = await console.app.context.router.handle(ApiRequest(method, path, (), (), data, owner))
    assert answered.status == 200, answered.body
    return json.loads(answered.body)


async def file_of(console: ConsoleApp, name: str, text: str = "Some text.", user: Any = "anna") -> str:
    answered = await console.upload(name, text.encode(), user)
    assert answered.status == 200, answered.words
    files = await ask(console, "GET", "/v1/files", owner=f"n:{user}")
    return str(files["data"][0]["id"])


async def store_of(console: ConsoleApp, files: dict[str, tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, str]]:
    """A store with these files (a name, a text and attributes each), all ingested. Returns the ids of the store and of
    the files."""
    made = await ask(console, "POST", "/v1/vector_stores", {"name": "Handbook"})
    ids = {}
    for name, (text, attributes) in files.items():
        ids[name] = await file_of(console, name, text)
        body = {"file_id": ids[name], "attributes": attributes}
        await ask(console, "POST", f"/v1/vector_stores/{made['id']}/files", body)
    async with asyncio.timeout(60):
        while (await ask(console, "GET", f"/v1/vector_stores/{made['id']}"))["file_counts"]["in_progress"]:
            await asyncio.sleep(0.01)
    return made["id"], ids


async def test_the_list_of_files_says_how_many_there_are(console: ConsoleApp) -> None:
    for number in range(52):
        await file_of(console, f"note-{number:02}.txt")
    page = await console.get("/files")
    assert page.status == 200
    assert "1-50 of 52" in page.words and "note-51.txt" in page.words and "note-01.txt" not in page.words
    page = await console.get("/files?from=51")
    assert "51-52 of 52" in page.words and "note-01.txt" in page.words and "Next page" not in page.words
    page = await console.get("/files?name=NOTE-1&purpose=user_data")
    assert "1-10 of 10" in page.words
    page = await console.get("/files?purpose=batch")
    assert "No file matches" in page.words
    assert (await console.get("/files?from=x")).status == 400


async def test_an_upload_shows_the_new_list(console: ConsoleApp) -> None:
    page = await console.upload("birds.txt", b"Swifts fly." * 1000)
    assert page.status == 200 and "<html" not in page.text
    assert "Uploaded birds.txt , 11.0 KB" in page.words and "1-1 of 1" in page.words
    page = await console.upload("more.txt", b"x", htmx=False)
    assert page.status == 303 and page.header("location") == "/console/files"


async def test_a_refused_upload_says_why(console: ConsoleApp) -> None:
    page = await console.upload("birds.txt", b"no picture", purpose="vision")
    assert page.status == 200 and "must be a PNG" in page.words and "No files yet" in page.words
    page = await console.upload("birds.txt", b"no picture", purpose="vision", htmx=False)
    assert page.status == 400 and "must be a PNG" in page.words


async def test_an_upload_without_the_token_stores_nothing(console: ConsoleApp) -> None:
    assert (await console.upload("a.txt", b"x", csrf="wrong")).status == 403
    assert (await ask(console, "GET", "/v1/files"))["data"] == []


async def test_a_download_is_an_attachment_of_unknown_type(console: ConsoleApp) -> None:
    file_id = await file_of(console, "page.html", "<script>alert(1)</script>")
    page = await console.get(f"/files/{file_id}/content")
    assert page.status == 200 and page.body == b"<script>alert(1)</script>"
    assert page.header("content-type") == "application/octet-stream"
    assert page.header("content-disposition") == 'attachment; filename="page.html"'
    assert page.header("content-length") == str(len(page.body))
    assert page.header("x-content-type-options") == "nosniff" and "frame-ancestors" in page.header(
        "content-security-policy"
    )
    page = await console.get(f"/files/{file_id}/content", method="HEAD")
    assert page.status == 200 and page.body == b"" and page.header("content-length") == "25"


@pytest.mark.parametrize("name", [HOSTILE, "../../x", "a\u202egpj.txt", '"><script>alert(1)</script>', "x; filename=y"])
async def test_a_hostile_file_name_is_only_text(console: ConsoleApp, name: str) -> None:
    page = await console.upload(name, b"x")
    assert page.status == 200
    store_id, _ = await store_of(console, {})
    file = (await ask(console, "GET", "/v1/files"))["data"][0]
    await ask(console, "POST", f"/v1/vector_stores/{store_id}/files", {"file_id": file["id"]})
    paths = (
        "/files",
        f"/files/{file['id']}",
        f"/vector-stores/{store_id}",
        f"/vector-stores/{store_id}/files/{file['id']}",
    )
    for each in (page, *[await console.get(path) for path in paths]):
        assert each.status == 200
        assert "<img src=x" not in each.text and "<script>alert" not in each.text and "\u202e" not in each.text
    assert file["filename"] in (await console.get("/files")).words
    disposition = (await console.get(f"/files/{file['id']}/content")).header("content-disposition")
    assert disposition.startswith('attachment; filename="') and "/" not in disposition and disposition.count('"') == 2
    assert "<" not in disposition


async def test_a_file_names_the_stores_that_use_it(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    await ask(console, "POST", "/v1/vector_stores", {"name": "Other"})
    page = await console.get(f"/files/{ids['birds.txt']}")
    assert "Handbook completed" in page.words and "1 of 2 vector stores" in page.words and "Other" not in page.words
    assert f"/console/vector-stores/{store_id}/files/{ids['birds.txt']}" in page.text


async def test_a_deleted_file_leaves_its_stores(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    page = await console.post(f"/files/{ids['birds.txt']}/delete")
    assert page.status == 303 and page.header("location") == "/console/files"
    assert "This vector store has no files" in (await console.get(f"/vector-stores/{store_id}")).words
    assert (await console.get(f"/files/{ids['birds.txt']}")).status == 404


async def test_the_page_of_a_store_asks_again_only_while_a_file_is_in_progress(console: ConsoleApp) -> None:
    made = await console.post("/vector-stores", name="Handbook", days="7")
    assert made.status == 303
    where = made.header("location").removeprefix("/console")
    page = await console.get(where)
    assert "0 of 0 files ingested" in page.words and "after 7 days without use" in page.words
    assert 'hx-trigger="every' not in page.text
    file_id = await file_of(console, "birds.txt", "Swifts fly.")
    search = console.app.vector_search
    assert search is not None
    await search.ingester.aclose()
    answered = await console.post(
        f"{where}/attach", file_id=file_id, attributes='{"year": 2026}', size="200", overlap="50"
    )
    assert answered.status == 303
    page = await console.get(where, fragment=True)
    assert "<html" not in page.text and 'hx-trigger="every 2s"' in page.text
    assert "1 in progress" in page.words and "Antiphon reads the file" in page.words and "year: 2026" in page.words


async def test_a_file_whose_ingestion_failed_has_no_good_mark(
    console: ConsoleApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ids = await store_of(console, {"broken.bin": ("\x00\x01\x02" * 100, {}), "birds.txt": ("Swifts fly.", {})})
    await store_of(console, {})
    await file_of(console, "alone.txt")
    reads: list[str] = []
    fetch = SqliteTables.fetch

    async def noted(self: SqliteTables, sql: str, named: Mapping[str, object], **options: Any) -> Any:
        reads.append(sql)
        return await fetch(self, sql, named, **options)

    monkeypatch.setattr(SqliteTables, "fetch", noted)
    page = await console.get("/files")
    assert len([sql for sql in reads if "vector_files" in sql]) == 1
    marks = {name: row_of(page.text, name) for name in ("broken.bin", "birds.txt", "alone.txt")}
    assert "ingestion failed" in marks["broken.bin"] and "good" not in marks["broken.bin"]
    assert '"tag good">ingested' in marks["birds.txt"] and "in no vector store" in marks["alone.txt"]
    page = await console.get(f"/files/{ids['broken.bin']}")
    assert "tag good" not in page.text and "broken.bin ingestion failed" in page.words
    assert "failed Antiphon cannot read this format" in page.words
    page = await console.get("/vector-stores")
    assert "completed 1 failed" in page.words
    again = await ask(console, "POST", "/v1/vector_stores", {"name": "Again", "file_ids": [ids["broken.bin"]]})
    assert again["file_counts"]["total"] == 1
    assert "ingestion failed in " in (await console.get(f"/files/{ids['broken.bin']}")).words


def row_of(text: str, name: str) -> str:
    """Return the HTML of the row of the file with this name."""
    rows: list[str] = re.findall(r"<tr data-row.*?</tr>", text, re.S)
    return next(row for row in rows if f">{name}</a>" in row)


async def test_a_failed_file_says_why(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"broken.bin": ("\x00\x01\x02" * 100, {})})
    page = await console.get(f"/vector-stores/{store_id}?state=failed")
    assert "Antiphon cannot read this format" in page.words and "1-1 of 1" in page.words
    page = await console.get(f"/vector-stores/{store_id}/files/{ids['broken.bin']}")
    assert "This file has no chunks" in page.words and page.status == 200
    assert (await console.get(f"/vector-stores/{store_id}?state=wrong")).status == 400


async def test_wrong_attributes_and_sizes_are_refused(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {"a": 1})})
    path = f"/vector-stores/{store_id}/attach"
    for wrong in (
        {"attributes": "{"},
        {"attributes": "[1]"},
        {"size": "x"},
        {"size": "5"},
        {"file_id": "file-missing"},
    ):
        fields: dict[str, Any] = {"file_id": ids["birds.txt"]} | wrong
        answered = await console.post(path, **fields)
        assert answered.status in (400, 404), wrong
    answered = await console.post(
        f"/vector-stores/{store_id}/files/{ids['birds.txt']}/attributes", attributes='{"a": "b"}'
    )
    assert answered.status == 303
    assert "a: b" in (await console.get(f"/vector-stores/{store_id}")).words


async def test_the_chunks_of_a_file_come_in_pages(console: ConsoleApp) -> None:
    text = "".join(f"Sentence {number} about birds. " * 5 for number in range(1200))
    store_id, _ = await store_of(console, {})
    file_id = await file_of(console, "long.txt", text)
    await console.post(f"/vector-stores/{store_id}/attach", file_id=file_id, size="100", overlap="0")
    async with asyncio.timeout(60):
        while (await ask(console, "GET", f"/v1/vector_stores/{store_id}"))["file_counts"]["in_progress"]:
            await asyncio.sleep(0.01)
    page = await console.get(f"/vector-stores/{store_id}/files/{file_id}")
    assert "1-50 of " in page.words and "Sentence 0 about birds" in page.words and "Next page" in page.words
    page = await console.get(f"/vector-stores/{store_id}/files/{file_id}?from=51")
    assert "51-100 of " in page.words and "Sentence 0 about" not in page.words
    page = await console.post(f"/vector-stores/{store_id}/files/{file_id}/detach")
    assert page.status == 303
    assert (await console.get(f"/vector-stores/{store_id}/files/{file_id}")).status == 404


FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "oslo.md": ("The aeroplane landed in Oslo.", {"year": 2024, "kind": "report"}),
    "tools.txt": ("A plane is a tool for wood.", {"year": 2020, "kind": "note"}),
    "cats.txt": ("The feline sleeps.", {"year": 2024, "kind": "note"}),
}


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each result, by file name: both, words, meaning."""
    rows = {}
    for row in text.split("<tr data-row>")[1:]:
        cells = [re.sub(r"<[^>]*>", " ", cell.partition(">")[2]).split() for cell in row.split("<td")[1:]]
        rows[cells[3][0]] = [" ".join(cell).replace(NONE, "-") for cell in cells[:3]]
    return rows


async def test_the_search_tester_shows_three_rankings_side_by_side(console: ConsoleApp) -> None:
    store_id, _ = await store_of(console, FILES)
    page = await console.get(f"/vector-stores/{store_id}/search?query=plane&results=2")
    assert page.status == 200
    rows = rows_of(page.text)
    assert rows["oslo.md"][1] == "-" and rows["oslo.md"][2] != "-", "a synonym is found by its meaning only"
    assert rows["tools.txt"][1].startswith("1."), "the word itself is found by both"
    assert rows["tools.txt"][0].startswith("1.")
    page = await console.get(f"/vector-stores/{store_id}/search?query=plane&threshold=0.9")
    assert "not returned" in page.words and "A client gets 1 of these chunks" in page.words


async def test_without_embeddings_the_search_tester_says_so(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        assert console.app.vector_search is not None
        console.app.vector_search.start()
        store_id, _ = await store_of(console, FILES)
        page = await console.get(f"/vector-stores/{store_id}/search?query=plane")
        assert "this search used no embeddings" in page.words


async def test_the_search_tester_says_why_a_filter_leaves_a_file_out(console: ConsoleApp) -> None:
    store_id, _ = await store_of(console, FILES)
    wanted = {
        "type": "and",
        "filters": [{"type": "eq", "key": "kind", "value": "report"}, {"type": "gte", "key": "year", "value": 2024}],
    }
    page = await console.get(f"/vector-stores/{store_id}/search?query=plane&filter={json.dumps(wanted)}")
    assert set(rows_of(page.text)) == {"oslo.md"}
    assert 'kind = "report" fails: \'kind\' is "note"' in page.words
    assert '(kind = "report" and year ≥ 2024)' in page.words


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("filter={", "not valid JSON"),
        ("filter=[]", "must be a JSON object"),
        ('filter={"type":"xx"}', "filter.type"),
        ("threshold=7", "from 0 to 1"),
        ("results=500", "whole number from 1 to 50"),
        ("words=0&meaning=0", "more than 0"),
        ("ranker=best", "ranker"),
    ],
)
async def test_wrong_options_of_a_search_are_explained_beside_the_form(
    console: ConsoleApp, options: str, problem: str
) -> None:
    store_id, _ = await store_of(console, {})
    page = await console.get(f"/vector-stores/{store_id}/search?query=plane&{options}")
    assert page.status == 200 and problem in page.words and 'name="query"' in page.text


async def prompt_of(console: ConsoleApp) -> str:
    made = await ask(console, "POST", "/v1/prompts", {"name": HOSTILE, "instructions": "Be {{mood}}.\nBye."})
    await ask(console, "POST", f"/v1/prompts/{made['id']}", {"instructions": "Be {{mood}} to {{who}}.\nBye.\n<b>!</b>"})
    return str(made["id"])


async def test_versions_of_a_prompt_side_by_side(console: ConsoleApp) -> None:
    prompt_id = await prompt_of(console)
    page = await console.get("/prompts")
    assert "1-1 of 1" in page.words and HOSTILE in page.words and "<img src=x" not in page.text
    page = await console.get(f"/prompts/{prompt_id}")
    assert "Version 1 → 2" in page.words and "+2 -1 lines" in page.words
    assert "removed: Be {{mood}}." in page.words and "added: Be {{mood}} to {{who}}." in page.words
    assert "<b>!</b>" not in page.text and "<img src=x" not in page.text
    assert f"/console/playground?prompt={prompt_id}&amp;version=2" in page.text
    page = await console.get(f"/prompts/{prompt_id}?a=2&b=1")
    assert "Version 2 → 1" in page.words
    assert "added:" not in (await console.get(f"/prompts/{prompt_id}?a=1&b=1")).words
    for wrong in ("a=9", "b=x", "b=-1"):
        assert (await console.get(f"/prompts/{prompt_id}?{wrong}")).status == 404


async def test_the_playground_knows_the_variables_of_a_prompt(console: ConsoleApp) -> None:
    prompt_id = await prompt_of(console)
    for version, names in ((1, ["mood"]), (2, ["mood", "who"])):
        page = await console.get(f"/playground?prompt={prompt_id}&version={version}")
        assert f"data-names='{json.dumps(names)}'" in page.text
    page = await console.get(f"/playground?prompt={prompt_id}", "bo")
    assert "data-names='[]'" in page.text and "Antiphon cannot read the prompt" in page.words


async def test_a_prompt_can_be_changed_and_deleted(console: ConsoleApp) -> None:
    prompt_id = await prompt_of(console)
    assert (await console.post(f"/prompts/{prompt_id}/default", version="1")).status == 303
    assert (await ask(console, "GET", f"/v1/prompts/{prompt_id}"))["version"] == "1"
    assert (await console.post(f"/prompts/{prompt_id}/delete")).status == 303
    assert (await console.get(f"/prompts/{prompt_id}")).status == 404
    assert "No prompts yet" in (await console.get("/prompts")).words


async def test_threads_and_their_items_come_in_pages(console: ConsoleApp) -> None:
    message = {"type": "message", "role": "user", "content": ""}
    items = [message | {"content": f"text {number}"} for number in range(3)]
    made = [(await ask(console, "POST", "/v1/conversations", {"items": items}))["id"] for _ in range(3)]
    for path, shown in (("/threads", made), (f"/threads?after={made[1]}", made[:1])):
        page = await console.get(path)
        assert page.status == 200 and [one for one in made if f"/threads/{one}" in page.text] == shown
    listed = await ask(console, "GET", f"/v1/conversations/{made[0]}/items")
    second = listed["data"][1]["id"]
    for query, texts in (("", {"text 0", "text 1", "text 2"}), (f"?after={second}", {"text 0"})):
        page = await console.get(f"/threads/{made[0]}{query}")
        assert page.status == 200 and set(re.findall(r"text \d", page.words)) == texts


async def test_models_and_tools(console: ConsoleApp) -> None:
    page = await console.get("/models")
    assert page.status == 200
    assert "demo-model" in page.words and "other/model:7b" in page.words and "1-2 of 2" in page.words
    assert "file_search ✓ runs here" in page.words and "web_search does not run here" in page.words
    assert "connector wiki set up by the operator" in page.words and "wiki.internal" not in page.text
    assert "This server runs no code" in page.words
    page = await console.get("/models?model=OTHER")
    assert "1-1 of 1" in page.words and "demo-model" not in page.words
    page = await console.get("/models", "operator")
    assert page.status == 200 and "wiki.internal" in page.words and "Choose an owner to see containers" in page.words


async def test_the_pages_of_an_owner_allow_what_its_key_allows(tmp_path: Path) -> None:
    limits = {"teams": {"lab": {"file_bytes": 4096}}}
    async with ChatServer() as chat:
        settings = {"upstream": {"url": chat.base_url, "auth": "none"}, "quotas": limits}
        anna = {"models": ["demo-*"], "tools": ["web_search"], "team": "lab"}
        async with open_console_app(tmp_path, anna=anna, settings=settings) as console:
            page = await console.get("/models")
            assert page.status == 200 and "demo-model" in page.words and "other/model:7b" not in page.words
            made = await ask(console, "POST", "/v1/vector_stores", {})
            page = await console.get(f"/vector-stores/{made['id']}/search?query=x")
            assert "does not allow tools of type 'file_search'" in page.words
            await file_of(console, "small.txt", "a file counts 4,096 bytes or more")
            page = await console.upload("more.txt", b"x")
            assert page.status == 200 and "Uploaded" not in page.words and "Delete some" in page.words


async def test_models_of_an_upstream_that_is_away(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        page = await console.get("/models")
        assert (
            page.status == 200
            and "default : The upstream cannot be reached." in page.words
            and "any other model" in page.words
        )


async def test_a_disabled_model_names_its_setting_to_operators(tmp_path: Path) -> None:
    async with ChatServer() as chat:
        models = [{"match": "demo-model"}, {"match": "old-model", "mode": "disabled"}]
        settings = {"upstream": {"url": chat.base_url, "auth": "none"}, "models": models}
        async with open_console_app(tmp_path, settings=settings) as console:
            page = await console.get("/models", "operator")
            assert "old-model disabled by models[1] (match: old-model)" in page.words
            page = await console.get("/models")
            assert page.status == 200 and "old-model" not in page.words


async def test_disabled_parts_are_explained(tmp_path: Path) -> None:
    async with open_console_app(tmp_path, settings={"files": {"enabled": False}}) as console:
        page = await console.get("/files")
        assert page.status == 404 and "'files.enabled'" in page.words
        page = await console.get("/vector-stores")
        assert page.status == 404 and "'vector_stores.enabled'" in page.words


async def test_another_owners_objects_are_missing(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    prompt_id, file_id = await prompt_of(console), ids["birds.txt"]
    own = await file_of(console, "own.txt", user="bo")
    mine = await ask(console, "POST", "/v1/vector_stores", {}, owner=BO)
    pages = (
        ("/files/{}", file_id),
        ("/files/{}/content", file_id),
        ("/vector-stores/{}", store_id),
        ("/vector-stores/{}/search?query=x", store_id),
        (f"/vector-stores/{mine['id']}/files/{{}}", file_id),
        ("/prompts/{}", prompt_id),
    )
    for pattern, one in pages:
        assert (await console.get(pattern.format(one))).status in (200, 404)
        found, missing = await console.get(pattern.format(one), "bo"), one[:-4] + "0000"
        other = await console.get(pattern.format(missing), "bo")
        assert found.status == other.status == 404, pattern
        assert found.words.replace(one, "ID") == other.words.replace(missing, "ID"), pattern
    changes: tuple[tuple[str, dict[str, str]], ...] = (
        (f"/files/{file_id}/delete", {}),
        (f"/vector-stores/{store_id}/delete", {}),
        (f"/vector-stores/{store_id}/attach", {"file_id": own}),
        (f"/vector-stores/{mine['id']}/attach", {"file_id": file_id}),
        (f"/vector-stores/{store_id}/files/{file_id}/detach", {}),
        (f"/vector-stores/{store_id}/files/{file_id}/attributes", {"attributes": "{}"}),
        (f"/prompts/{prompt_id}/default", {"version": "1"}),
        (f"/prompts/{prompt_id}/delete", {}),
    )
    for path, fields in changes:
        assert (await console.post(path, "bo", **fields)).status == 404, path
    # An owner cannot choose whose data it sees.
    for view in VIEWS:
        page = await console.get(f"{view}?owner={ANNA}", "bo")
        assert page.status == 200 and "Handbook" not in page.text and "birds.txt" not in page.text
    assert "Handbook" in (await console.get("/vector-stores")).words


async def test_an_operator_chooses_an_owner(console: ConsoleApp) -> None:
    await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    await prompt_of(console)
    for view in VIEWS:
        page = await console.get(view, "operator")
        assert page.status == 200 and "Choose the owner" in page.words and "birds.txt" not in page.words
    assert "birds.txt" in (await console.get(f"/files?owner={ANNA}", "operator")).words
    assert "birds.txt" not in (await console.get(f"/files?owner={BO}", "operator")).words
    refused = await console.upload("x.txt", b"x", "operator", htmx=False)
    assert refused.status == 400 and "Choose an owner" in refused.words
    page = await console.upload("x.txt", b"x", "operator", path=f"/files?owner={ANNA}")
    assert page.status == 200 and f"owner={ANNA.replace(':', '%3A')}" in page.text
    assert "x.txt" in (await console.get("/files")).words


async def test_the_choice_of_an_owner_counts_objects_and_takes_a_name(console: ConsoleApp) -> None:
    await store_of(console, {"a.txt": ("a", {}), "b.txt": ("b", {})})
    await file_of(console, "c.txt", user="bo")
    await ask(console, "POST", "/v1/conversations", {})
    await prompt_of(console)
    counts = {"/files": "anna 2 0 0", "/vector-stores": "anna 1 0 0", "/prompts": "anna 1 0", "/threads": "anna 1 0"}
    for view, row in counts.items():
        words = (await console.get(view, "operator")).words
        assert row in words, "an owner without requests is in the list"
        assert ("bo 1 0 0" in words) is (view == "/files")
    for who, owner in (("anna", ANNA), (ANNA, ANNA), ("new", "n:new"), ("h:x", "h:x")):
        page = await console.get(f"/files?who={who}", "operator")
        assert page.status == 303
        assert page.header("location") == f"/console/files?owner={owner.replace(':', '%3A')}"


async def test_an_operator_who_may_only_look_gets_no_buttons(tmp_path: Path) -> None:
    async with open_console_app(tmp_path, acts=False) as console:
        file_id = await file_of(console, "birds.txt")
        made = await ask(console, "POST", "/v1/vector_stores", {"name": "Handbook", "file_ids": [file_id]})
        prompt_id = await prompt_of(console)
        places = ("/files", f"/files/{file_id}", "/vector-stores", f"/vector-stores/{made['id']}")
        for path in (*places, f"/vector-stores/{made['id']}/files/{file_id}", "/prompts", f"/prompts/{prompt_id}"):
            page = await console.get(f"{path}?owner={ANNA}", "operator")
            assert page.status == 200
            forms = page.text.count('method="post"') + page.text.count("hx-post")
            assert forms == 1, "only the form that signs out"
        assert (await console.post(f"/files/{file_id}/delete?owner={ANNA}", "operator")).status == 403
        assert (await console.upload("x.txt", b"x", "operator", path=f"/files?owner={ANNA}")).status == 403


async def audited(console: ConsoleApp) -> set[tuple[str, str, str, str]]:
    """The rows of the audit."""
    found = await console.app.stores.audit.list(limit=1000)
    return {(one.actor, one.action, one.object, one.owner) for one in found}


async def test_an_operator_who_opens_an_object_leaves_a_row(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    prompt_id, file_id = await prompt_of(console), ids["birds.txt"]
    thread = (await ask(console, "POST", "/v1/conversations", {}))["id"]
    opened = {
        f"/files/{file_id}": ("read file", file_id),
        f"/files/{file_id}/content": ("read file", file_id),
        f"/vector-stores/{store_id}": ("read vector-store", store_id),
        f"/vector-stores/{store_id}/search?query=swifts": ("read vector-store", store_id),
        f"/vector-stores/{store_id}/files/{file_id}": ("read file", file_id),
        f"/prompts/{prompt_id}": ("read prompt", prompt_id),
        f"/playground?prompt={prompt_id}": ("read prompt", prompt_id),
        "/threads": ("read conversation", ""),
        f"/threads/{thread}": ("read conversation", thread),
    }
    for path, (action, object_id) in opened.items():
        await console.app.stores.audit.sweep(None, most=0)
        assert (await console.get(path)).status == 200, path
        assert await audited(console) == set(), "owners leave no rows"
        query = f"{'&' if '?' in path else '?'}owner={ANNA}"
        assert (await console.get(path + query, "operator")).status == 200, path
        assert await audited(console) == {("console", action, object_id, ANNA)}, path
    await console.app.stores.audit.sweep(None, most=0)
    for path in (*VIEWS, "/requests", "/live", "/background", "/models", "/playground", "/prompt-cache"):
        assert (await console.get(f"{path}?owner={ANNA}", "operator")).status == 200, path
    assert await audited(console) == set(), "lists of facts leave no rows"
    assert (await console.get(f"/files/file%00%0A?owner={ANNA}", "operator")).status == 404
    assert await audited(console) == {("console", "read file", "file??", ANNA)}


async def test_an_operator_who_changes_data_leaves_a_row(console: ConsoleApp) -> None:
    store_id, ids = await store_of(console, {"birds.txt": ("Swifts fly.", {})})
    prompt_id, file_id = await prompt_of(console), ids["birds.txt"]
    assert (await console.upload("x.txt", b"x", "operator", path=f"/files?owner={ANNA}")).status == 200
    own = (await ask(console, "GET", "/v1/files"))["data"][0]["id"]
    changes: tuple[tuple[str, dict[str, str]], ...] = (
        (f"/vector-stores/{store_id}/attach", {"file_id": own}),
        (f"/vector-stores/{store_id}/files/{file_id}/attributes", {"attributes": "{}"}),
        (f"/vector-stores/{store_id}/files/{file_id}/detach", {}),
        (f"/vector-stores/{store_id}/delete", {}),
        ("/vector-stores", {"name": "Notes"}),
        (f"/files/{file_id}/delete", {}),
        (f"/prompts/{prompt_id}/default", {"version": "1"}),
        (f"/prompts/{prompt_id}/delete", {}),
    )
    for path, fields in changes:
        assert (await console.post(f"{path}?owner={ANNA}", "operator", **fields)).status == 303, path
    made_id = (await ask(console, "GET", "/v1/vector_stores"))["data"][0]["id"]
    assert await audited(console) == {
        ("console", action, object_id, ANNA)
        for action, object_id in (
            ("file upload", ""),
            ("file upload", own),
            ("vector-store attach", f"{store_id}/{own}"),
            ("vector-store change", f"{store_id}/{file_id}"),
            ("vector-store detach", f"{store_id}/{file_id}"),
            ("vector-store delete", store_id),
            ("vector-store create", ""),
            ("vector-store create", made_id),
            ("file delete", file_id),
            ("prompt set-default", prompt_id),
            ("prompt delete", prompt_id),
        )
    }


async def test_nothing_is_shown_or_changed_that_the_audit_cannot_record(
    console: ConsoleApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await file_of(console, "birds.txt", "Swifts fly.")

    async def fails(*_: object) -> bool:
        raise StoreError("the disk is full", reason="full")

    for name in ("note", "note_read"):
        monkeypatch.setattr(console.app.stores.audit, name, fails)
    for path in (f"/files/{file_id}", f"/files/{file_id}/content"):
        page = await console.get(f"{path}?owner={ANNA}", "operator")
        assert page.status == 507 and "birds.txt" not in page.text and b"Swifts" not in page.body
    assert (await console.post(f"/files/{file_id}/delete?owner={ANNA}", "operator")).status == 507
    assert (await console.get(f"/files/{file_id}")).status == 200
