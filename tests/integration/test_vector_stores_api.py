"""Vector stores over the API without a server: every operation, every way to ask wrongly, and what a stranger gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.types.transport import Headers
from tests.support.schemas import OPENAI, valid
from tests.support.vector_stores import BOB, VectorStoreSetup, open_vector_store_setup

NOWHERE = "vs_" + "0" * 48
NO_FILE = "file-" + "0" * 48
NO_BATCH = "vsfb_" + "0" * 48


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[VectorStoreSetup]:
    async with open_vector_store_setup(tmp_path) as opened:
        yield opened


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[VectorStoreSetup]:
    """One whose worker does nothing: files stay in progress."""
    async with open_vector_store_setup(tmp_path, start=False) as opened:
        yield opened


def check(name: str, value: Any) -> None:
    assert valid(OPENAI, name, value) == []


# Stores


async def test_a_store_is_made_read_changed_and_deleted(setup: VectorStoreSetup) -> None:
    made = await setup.ask(
        "POST",
        "",
        {
            "name": "ü",
            "description": "d",
            "metadata": {"a": "b"},
            "expires_after": {"anchor": "last_active_at", "days": 7},
        },
    )
    check("VectorStoreObject", made)
    assert (made["name"], made["description"], made["metadata"]) == ("ü", "d", {"a": "b"})
    assert made["expires_at"] == made["last_active_at"] + 7 * 86_400
    assert (made["status"], made["usage_bytes"]) == ("completed", 0)
    assert made["file_counts"] == {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}
    path = "/" + made["id"]
    assert await setup.ask("GET", path) == made
    changed = await setup.ask("POST", path, {"name": "new", "expires_after": None})
    assert (changed["name"], changed["expires_at"], "expires_after" in changed) == ("new", None, False)
    assert changed["metadata"] == {"a": "b"}
    changed = await setup.ask("POST", path, {"metadata": None, "name": None})
    assert (changed["name"], changed["metadata"]) == ("new", {})
    assert await setup.ask("DELETE", path) == {"id": made["id"], "object": "vector_store.deleted", "deleted": True}
    assert (await setup.refused("GET", path))[0] == 404


async def test_a_store_may_have_nothing(setup: VectorStoreSetup) -> None:
    made = await setup.ask("POST", "")
    assert (made["name"], made["metadata"], made["expires_at"]) == (None, {}, None)


async def test_lists_of_stores(setup: VectorStoreSetup) -> None:
    empty = await setup.ask("GET", "")
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    ids = [(await setup.ask("POST", "", {"name": str(number)}))["id"] for number in range(3)]
    page = await setup.ask("GET", "", query=[("limit", "2")])
    check("ListVectorStoresResponse", page)
    assert [one["id"] for one in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    page = await setup.ask("GET", "", query=[("after", ids[1])])
    assert [one["id"] for one in page["data"]] == [ids[0]]
    assert (await setup.refused("GET", "", query=[("after", NOWHERE)]))[1]["param"] == "after"
    assert (await setup.ask("GET", "", owner=BOB))["data"] == []


async def test_the_other_spelling_is_the_same(setup: VectorStoreSetup) -> None:
    made = await setup.ask("POST", "", {"name": "x"}, prefix="/v1/vector-stores")
    assert await setup.ask("GET", f"/{made['id']}/files", prefix="/v1/vector-stores") == await setup.ask(
        "GET", f"/{made['id']}/files"
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": 5}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"expires_after": {"days": 5}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "days": 5}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "last_active_at"}}, "expires_after.days"),
        ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
        ({"file_ids": "file-1"}, "file_ids"),
        ({"file_ids": [NO_FILE]}, "file_ids"),
        ({"file_ids": ["../etc"]}, "file_ids"),
        ({"file_ids": [f"file-{number}" for number in range(501)]}, "file_ids"),
        ({"chunking_strategy": {"type": "auto"}}, "chunking_strategy"),
        ([], None),
        (b"{", None),
    ],
)
async def test_wrong_stores(setup: VectorStoreSetup, body: Any, param: str | None) -> None:
    status, error = await setup.refused("POST", "", body)
    unknown = error["code"] == "file_not_found"
    assert (status, error["param"]) == (404 if unknown else 400, param)
    assert unknown == (body in ({"file_ids": [NO_FILE]}, {"file_ids": ["../etc"]}))


async def test_what_means_nothing_is_named(setup: VectorStoreSetup) -> None:
    answer = await setup.send("POST", "", {"name": "x", "colour": "red", "bad,name": 1})
    assert dict(answer.headers)["antiphon-ignored"] == "colour"


# Files


async def test_a_file_becomes_findable(setup: VectorStoreSetup) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    file_id = await setup.file("birds.txt", "Birds have wings.\n\nPenguins do not fly.")
    added = await setup.ask("POST", f"/{store_id}/files", {"file_id": file_id, "attributes": {"a": 1, "b": "x"}})
    check("VectorStoreFileObject", added)
    assert (added["id"], added["vector_store_id"], added["last_error"]) == (file_id, store_id, None)
    assert added["chunking_strategy"] == {
        "type": "static",
        "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
    }
    store = await setup.ingested(store_id)
    assert store["file_counts"]["completed"] == 1 and store["usage_bytes"] > 0 and store["status"] == "completed"
    file = await setup.ask("GET", f"/{store_id}/files/{file_id}")
    check("VectorStoreFileObject", file)
    assert (file["status"], file["attributes"]) == ("completed", {"a": 1, "b": "x"})
    content = await setup.ask("GET", f"/{store_id}/files/{file_id}/content")
    check("VectorStoreFileContentResponse", content)
    assert content["data"] == [{"type": "text", "text": "Birds have wings.\n\nPenguins do not fly."}]
    found = await setup.ask("POST", f"/{store_id}/search", {"query": "flying penguins"})
    check("VectorStoreSearchResultsPage", found)
    (hit,) = found["data"]
    assert (hit["file_id"], hit["filename"], hit["attributes"]) == (file_id, "birds.txt", {"a": 1, "b": "x"})
    assert 0 < hit["score"] < 1 and found["search_query"] == ["flying penguins"]
    assert await setup.ask("DELETE", f"/{store_id}/files/{file_id}") == {
        "id": file_id,
        "object": "vector_store.file.deleted",
        "deleted": True,
    }
    assert await setup.names(store_id, "penguins") == []
    assert await setup.files.get("b:alice", file_id) is not None


async def test_a_deleted_file_leaves_all_stores(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(birds="Birds fly.", planes="Planes fly.")
    page = await setup.ask("GET", f"/{store_id}/files")
    (file_id,) = [one["id"] for one in page["data"] if (await setup.files.get("b:alice", one["id"])).name[0] == "b"]  # type: ignore[union-attr]
    await setup.ask("DELETE", f"/{file_id}", prefix="/v1/files")
    assert await setup.names(store_id, "fly") == ["planes"]
    assert (await setup.ask("GET", f"/{store_id}"))["file_counts"]["total"] == 1


async def test_attributes_are_replaced(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(birds="Birds fly.")
    (file,) = (await setup.ask("GET", f"/{store_id}/files"))["data"]
    path = f"/{store_id}/files/{file['id']}"
    changed = await setup.ask("POST", path, {"attributes": {"year": 1999, "ok": True}})
    assert changed["attributes"] == {"year": 1999, "ok": True}
    fits = {"type": "and", "filters": [{"type": "gte", "key": "year", "value": 1999}]}
    assert await setup.names(store_id, "birds", filters=fits) == ["birds"]
    assert (await setup.ask("POST", path, {"attributes": None}))["attributes"] == {}
    assert await setup.names(store_id, "birds", filters=fits) == []
    assert (await setup.refused("POST", path, {}))[1]["param"] == "attributes"


async def test_lists_of_files(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(one="Birds.", two="Planes.", three="Cats.")
    broken = await setup.file("x.pdf", "%PDF-1.4 nothing")
    await setup.ask("POST", f"/{store_id}/files", {"file_id": broken})
    await setup.ingested(store_id)
    page = await setup.ask("GET", f"/{store_id}/files", query=[("limit", "2")])
    check("ListVectorStoreFilesResponse", page)
    assert page["data"][0]["id"] == broken and page["has_more"] is True
    failed = await setup.ask("GET", f"/{store_id}/files", query=[("filter", "failed")])
    (file,) = failed["data"]
    assert file["last_error"] == {"code": "invalid_file", "message": "The PDF file is damaged."}
    assert (await setup.refused("GET", f"/{store_id}/files", query=[("filter", "odd")]))[1]["param"] == "filter"
    everything = await setup.ask("GET", f"/{store_id}/files", query=[("order", "asc"), ("filter", "completed")])
    assert len(everything["data"]) == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "file_id"),
        ({"file_id": NO_FILE}, "file_id"),
        ({"file_id": "FILE", "attributes": {"k" * 65: 1}}, "attributes"),
        ({"file_id": "FILE", "attributes": {"k": "v" * 513}}, "attributes.k"),
        ({"file_id": "FILE", "attributes": {"k": [1]}}, "attributes.k"),
        ({"file_id": "FILE", "attributes": {"k": None}}, "attributes.k"),
        ({"file_id": "FILE", "attributes": {str(number): 1 for number in range(17)}}, "attributes"),
        ({"file_id": "FILE", "chunking_strategy": {"type": "other"}}, "chunking_strategy.type"),
        ({"file_id": "FILE", "chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
        (
            {"file_id": "FILE", "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 99}}},
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
        (
            {
                "file_id": "FILE",
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 99, "chunk_overlap_tokens": 0},
                },
            },
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        (
            {
                "file_id": "FILE",
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 101},
                },
            },
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
    ],
)
async def test_wrong_files(idle: VectorStoreSetup, body: dict[str, Any], param: str) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    if body.get("file_id") == "FILE":
        body = body | {"file_id": await idle.file("a.txt", "x")}
    status, error = await idle.refused("POST", f"/{store_id}/files", body)
    assert (status, error["param"]) == (404 if error["code"] == "file_not_found" else 400, param)
    assert (await idle.ask("GET", f"/{store_id}"))["file_counts"]["total"] == 0


async def test_a_file_that_is_not_there_is_a_404(idle: VectorStoreSetup) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    for path, body in (
        (f"/{store_id}/files", {"file_id": NO_FILE}),
        (f"/{store_id}/file_batches", {"file_ids": [NO_FILE]}),
    ):
        status, error = await idle.refused("POST", path, body)
        assert (status, error["code"]) == (404, "file_not_found")


async def test_somebody_elses_file_is_no_file(setup: VectorStoreSetup) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    theirs = await setup.file("secret.txt", "secret", owner=BOB)
    answers = []
    for file_id in (theirs, NO_FILE):
        answer = await setup.send("POST", f"/{store_id}/files", {"file_id": file_id})
        answers.append((answer.status, answer.body.replace(file_id.encode(), b"ID")))
    assert answers[0] == answers[1]


async def test_static_chunks(setup: VectorStoreSetup) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    file_id = await setup.file("long.txt", " ".join(f"Sentence number {number} is here." for number in range(200)))
    static = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}
    added = await setup.ask("POST", f"/{store_id}/files", {"file_id": file_id, "chunking_strategy": static})
    assert added["chunking_strategy"] == static
    await setup.ingested(store_id)
    parts = (await setup.ask("GET", f"/{store_id}/files/{file_id}/content"))["data"]
    assert len(parts) > 10
    assert all(f"Sentence number {number} is here." in "".join(p["text"] for p in parts) for number in range(200))
    few: dict[str, Any] = {"query": "sentence 117", "max_num_results": 2}
    found = await setup.ask("POST", f"/{store_id}/search", few)
    assert found == await setup.ask("POST", f"/{store_id}/search", {**few, "top_k": 2})
    assert found == await setup.ask("POST", f"/{store_id}/search", {"query": "sentence 117", "top_k": 2})
    assert all("117" in hit["content"][0]["text"] for hit in found["data"])


# Batches


async def test_a_batch_from_beginning_to_end(setup: VectorStoreSetup) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    ids = [await setup.file(f"{name}.txt", f"{name} are here") for name in ("birds", "planes")]
    ids.append(await setup.file("odd.zip", b"PK\x03\x04 nothing"))
    made = await setup.ask("POST", f"/{store_id}/file_batches", {"file_ids": ids, "attributes": {"all": True}})
    check("VectorStoreFileBatchObject", made)
    assert (made["status"], made["file_counts"]["total"]) == ("in_progress", 3)
    await setup.ingested(store_id)
    path = f"/{store_id}/file_batches/{made['id']}"
    batch = await setup.ask("GET", path)
    assert batch["status"] == "completed"
    assert batch["file_counts"] == {"in_progress": 0, "completed": 2, "failed": 1, "cancelled": 0, "total": 3}
    page = await setup.ask("GET", path + "/files", query=[("filter", "failed")])
    assert page["data"][0]["last_error"]["code"] == "unsupported_file"
    assert all(one["attributes"] == {"all": True} for one in (await setup.ask("GET", path + "/files"))["data"])


async def test_each_file_of_a_batch_has_its_own(idle: VectorStoreSetup) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    first, second = await idle.file("a.txt", "a"), await idle.file("b.txt", "b")
    static = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20}}
    files = [{"file_id": first, "attributes": {"n": 1}, "chunking_strategy": static}, {"file_id": second}]
    made = await idle.ask("POST", f"/{store_id}/file_batches", {"files": files, "attributes": {"n": 2}})
    shown = (await idle.ask("GET", f"/{store_id}/file_batches/{made['id']}/files"))["data"]
    found = {one["id"]: (one["attributes"], one["chunking_strategy"]) for one in shown}
    assert found[first] == ({"n": 1}, static)
    assert found[second][0] == {"n": 2} and found[second][1]["static"]["max_chunk_size_tokens"] == 800


async def test_who_polls_is_told_when_to_ask_again(idle: VectorStoreSetup) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    file_id = await idle.file("a.txt", "a")
    batch = await idle.ask("POST", f"/{store_id}/file_batches", {"file_ids": [file_id]})
    paths = (f"/{store_id}/files/{file_id}", f"/{store_id}/file_batches/{batch['id']}")
    for path in paths:
        assert dict((await idle.send("GET", path)).headers)["openai-poll-after-ms"] == "200"
    idle.ingester.start()
    await idle.ingested(store_id)
    for path in paths:
        assert "openai-poll-after-ms" not in dict((await idle.send("GET", path)).headers)


async def test_a_batch_is_cancelled(idle: VectorStoreSetup) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    ids = [await idle.file("a.txt", "a"), await idle.file("b.txt", "b")]
    made = await idle.ask("POST", f"/{store_id}/file_batches", {"file_ids": ids})
    path = f"/{store_id}/file_batches/{made['id']}"
    cancelled = await idle.ask("POST", path + "/cancel")
    assert (cancelled["status"], cancelled["file_counts"]["cancelled"]) == ("cancelled", 2)
    assert await idle.ask("POST", path + "/cancel") == cancelled
    idle.ingester.start()
    assert (await idle.ingested(store_id))["file_counts"]["cancelled"] == 2
    # What was cancelled can be added again.
    await idle.ask("POST", f"/{store_id}/files", {"file_id": ids[0]})
    assert (await idle.ingested(store_id))["file_counts"] == {
        "in_progress": 0,
        "completed": 1,
        "failed": 0,
        "cancelled": 1,
        "total": 2,
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "file_ids"),
        ({"file_ids": [NO_FILE], "files": [{"file_id": NO_FILE}]}, "file_ids"),
        ({"file_ids": []}, "file_ids"),
        ({"files": []}, "files"),
        ({"files": [{}]}, "files[0].file_id"),
        ({"file_ids": [NO_FILE]}, "file_ids"),
        ({"files": [{"file_id": NO_FILE}]}, "files"),
        ({"files": [{"file_id": NO_FILE, "attributes": {"a": {}}}]}, "files[0].attributes.a"),
        ({"file_ids": [f"file-{number}" for number in range(2_001)]}, "file_ids"),
    ],
)
async def test_wrong_batches(idle: VectorStoreSetup, body: Any, param: str) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    status, error = await idle.refused("POST", f"/{store_id}/file_batches", body)
    assert (status, error["param"]) == (404 if error["code"] == "file_not_found" else 400, param)


async def test_one_unknown_file_spoils_the_batch(idle: VectorStoreSetup) -> None:
    store_id = (await idle.ask("POST", "", {}))["id"]
    file_id = await idle.file("a.txt", "a")
    await idle.refused("POST", f"/{store_id}/file_batches", {"file_ids": [file_id, NO_FILE]})
    assert (await idle.ask("GET", f"/{store_id}"))["file_counts"]["total"] == 0


# Search


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": []}, "query"),
        ({"query": 5}, "query"),
        ({"query": ["x"] * 17}, "query"),
        ({"query": "x" * 9_000}, "query"),
        ({"query": "x", "max_num_results": 0}, "max_num_results"),
        ({"query": "x", "max_num_results": 51}, "max_num_results"),
        ({"query": "x", "top_k": 51}, "top_k"),
        ({"query": "x", "top_k": 2, "max_num_results": 3}, "top_k"),
        ({"query": "x", "filters": []}, "filters"),
        ({"query": "x", "filters": {"type": "like", "key": "a", "value": "b"}}, "filters.type"),
        ({"query": "x", "filters": {"type": "eq", "key": "a"}}, "filters.value"),
        ({"query": "x", "filters": {"type": "eq", "key": "a", "value": None}}, "filters.value"),
        ({"query": "x", "filters": {"type": "gt", "key": "a", "value": True}}, "filters.value"),
        ({"query": "x", "filters": {"type": "in", "key": "a", "value": "b"}}, "filters.value"),
        ({"query": "x", "filters": {"type": "and", "filters": []}}, "filters.filters"),
        ({"query": "x", "ranking_options": {"ranker": "magic"}}, "ranking_options.ranker"),
        ({"query": "x", "ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ({"query": "x", "filter": {"type": "eq", "key": "a", "value": 1}}, "filter"),
        ({"query": "x", "where": {"a": 1}}, "where"),
    ],
)
async def test_wrong_searches(setup: VectorStoreSetup, body: Any, param: str) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    status, error = await setup.refused("POST", f"/{store_id}/search", body)
    assert (status, error["param"]) == (400, param)


async def test_filters_that_are_too_large(setup: VectorStoreSetup) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    leaf = {"type": "eq", "key": "a", "value": 1}
    deep: dict[str, Any] = leaf
    for _ in range(40):
        deep = {"type": "and", "filters": [deep]}
    wide = {"type": "or", "filters": [{"type": "or", "filters": [leaf] * 60}] * 60}
    for filters in (deep, wide):
        status, _ = await setup.refused("POST", f"/{store_id}/search", {"query": "x", "filters": filters})
        assert status == 400
    largest = {"type": "or", "filters": [{"type": "and", "filters": [leaf] * 50}] * 4}
    assert await setup.names(store_id, "x", filters=largest) == []
    assert await setup.names(store_id, "x", filters={"type": "eq", "key": "a", "value": 10**30}) == []


async def test_several_queries_and_limits(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(birds="Birds fly.", planes="Planes are made of metal.", cats="Cats sleep.")
    found = await setup.ask("POST", f"/{store_id}/search", {"query": ["metal", "sleeping"]})
    assert {hit["filename"] for hit in found["data"]} == {"planes.txt", "cats.txt"}
    assert found["search_query"] == ["metal", "sleeping"]
    found = await setup.ask("POST", f"/{store_id}/search", {"query": ["metal", "sleeping"], "max_num_results": 1})
    assert len(found["data"]) == 1
    assert await setup.names(store_id, "metal", ranking_options={"score_threshold": 0.99}) == []


async def test_one_search_over_several_stores(setup: VectorStoreSetup) -> None:
    first, second = await setup.store(birds="Birds fly."), await setup.store(planes="Planes fly.")
    body: dict[str, Any] = {"vector_store_ids": [first, second], "query": "fly"}
    found = await setup.ask("POST", "", body, prefix="/v1/search")
    assert {(hit["filename"], hit["vector_store_id"]) for hit in found["data"]} == {
        ("birds.txt", first),
        ("planes.txt", second),
    }
    found = await setup.ask("POST", "", {"vector_store_id": first, "query": "fly"}, prefix="/v1/search")
    assert len(found["data"]) == 1
    for body, param in (
        ({"query": "fly"}, "vector_store_ids"),
        ({"query": "fly", "vector_store_ids": [first, NOWHERE]}, "vector_store_ids"),
        ({"query": "fly", "vector_store_ids": [f"vs_{number}" for number in range(17)]}, "vector_store_ids"),
        ({"query": "fly", "vector_store_ids": [first], "filter": {}}, "filter"),
    ):
        status, error = await setup.refused("POST", "", body, prefix="/v1/search")
        assert (status, error["param"]) == (400, param)


class Shouting:
    """A rewriter that finds everything important."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def rewrite(self, query: str, headers: Headers) -> str:
        self.asked.append(query)
        return query.upper()


async def test_a_query_is_rewritten_when_asked(tmp_path: Path) -> None:
    rewriter = Shouting()
    async with open_vector_store_setup(tmp_path, rewriter=rewriter.rewrite) as setup:
        store_id = await setup.store(birds="Birds fly.")
        found = await setup.ask("POST", f"/{store_id}/search", {"query": "birds", "rewrite_query": True})
        assert found["search_query"] == ["BIRDS"] and len(found["data"]) == 1
        await setup.ask("POST", f"/{store_id}/search", {"query": "birds", "rewrite_query": False})
        await setup.refused("POST", f"/{NOWHERE}/search", {"query": "birds", "rewrite_query": True})
        assert rewriter.asked == ["birds"]


async def test_without_a_model_a_query_stays_and_that_is_said(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(birds="Birds fly.")
    answer = await setup.send("POST", f"/{store_id}/search", {"query": "birds", "rewrite_query": True})
    assert dict(answer.headers)["antiphon-ignored"] == "rewrite_query"
    assert json.loads(answer.body)["search_query"] == ["birds"]


# Strangers, and what is not there


async def test_a_stranger_gets_what_everybody_gets_for_nothing(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(birds="Birds fly.")
    (file,) = (await setup.ask("GET", f"/{store_id}/files"))["data"]
    batch = await setup.ask("POST", f"/{store_id}/file_batches", {"file_ids": [file["id"]]})
    await setup.ingested(store_id)
    theirs = await setup.file("b.txt", "b", owner=BOB)
    body: Any
    asked = []
    for path, methods in (
        ("", ("GET", "POST", "DELETE")),
        ("/search", ("POST",)),
        ("/files", ("GET", "POST")),
        (f"/files/{file['id']}", ("GET", "POST", "DELETE")),
        (f"/files/{file['id']}/content", ("GET",)),
        ("/file_batches", ("POST",)),
        (f"/file_batches/{batch['id']}", ("GET",)),
        (f"/file_batches/{batch['id']}/cancel", ("POST",)),
        (f"/file_batches/{batch['id']}/files", ("GET",)),
    ):
        for method in methods:
            body = None if method != "POST" else {"query": "x"} if path == "/search" else {"file_id": theirs}
            if path == "/file_batches":
                body = {"file_ids": [theirs]}
            if path.startswith("/files/") and method == "POST":
                body = {"attributes": {}}
            missing = await setup.send(method, f"/{NOWHERE}{path}", body, owner=BOB)
            strange = await setup.send(method, f"/{store_id}{path}", body, owner=BOB)
            assert missing.status == strange.status == 404, (method, path, missing.body, strange.body)
            assert missing.body == strange.body.replace(store_id.encode(), NOWHERE.encode()), (method, path)
            asked.append((method, path))
    assert len(asked) == 14
    assert (await setup.ask("GET", f"/{store_id}"))["file_counts"]["completed"] == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/files/{NO_FILE}"),
        ("POST", f"/files/{NO_FILE}"),
        ("DELETE", f"/files/{NO_FILE}"),
        ("GET", f"/files/{NO_FILE}/content"),
        ("GET", f"/file_batches/{NO_BATCH}"),
        ("GET", f"/file_batches/{NO_BATCH}/files"),
        ("POST", f"/file_batches/{NO_BATCH}/cancel"),
        ("GET", "/files/..%2f"),
        ("GET", "/file_batches/x"),
    ],
)
async def test_what_is_not_in_the_store(setup: VectorStoreSetup, method: str, path: str) -> None:
    store_id = (await setup.ask("POST", "", {}))["id"]
    body: Any = {"attributes": {}} if method == "POST" else None
    status, error = await setup.refused(method, f"/{store_id}{path}", body)
    assert status == 404 and "vector store" in error["message"]


async def test_an_expired_store_is_shown_but_not_used(tmp_path: Path) -> None:
    at = [1_700_000_000.0]
    async with open_vector_store_setup(tmp_path, clock=lambda: at[0]) as setup:
        made = await setup.ask("POST", "", {"expires_after": {"anchor": "last_active_at", "days": 1}})
        store_id = made["id"]
        file_id = await setup.file("a.txt", "Birds.")
        await setup.ask("POST", f"/{store_id}/files", {"file_id": file_id})
        await setup.ingested(store_id)
        at[0] += 86_401
        assert (await setup.ask("GET", f"/{store_id}"))["status"] == "expired"
        for path, body in (("/search", {"query": "birds"}), ("/files", {"file_id": file_id})):
            status, error = await setup.refused("POST", f"/{store_id}{path}", body)
            assert (status, error["code"]) == (400, "vector_store_expired")
        await setup.ask("DELETE", f"/{store_id}")
