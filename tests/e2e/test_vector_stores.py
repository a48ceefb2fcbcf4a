"""Vector stores through Envoy and through the HTTP door, by the official client's own ways to use them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from tests.e2e.conftest import Setup, Setups
from tests.support.chat_server import answer, chunk, event, text_stream

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

STATIC: dict[str, Any] = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}


@pytest_asyncio.fixture(params=("relay", "http"), loop_scope="session")
async def way(request: pytest.FixtureRequest, setups: Setups) -> Setup:
    """The two ways to the API: Envoy's own route, and the HTTP door."""
    return await setups.get(request.param)


async def test_the_official_client(way: Setup) -> None:
    async with openai.AsyncOpenAI(base_url=way.gateway.base_url, api_key="alice", max_retries=0) as client:
        stores = client.vector_stores
        store = await stores.create(name="notes", expires_after={"anchor": "last_active_at", "days": 7})
        assert store.status == "completed" and store.expires_at == store.last_active_at + 7 * 86_400  # type: ignore[operator]
        file = await stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=("birds.md", b"# Birds\n\nPenguins do not fly. Swifts fly for months.\n"),
            attributes={"kind": "birds", "year": 2024},
            chunking_strategy=STATIC,  # type: ignore[arg-type]
            poll_interval_ms=50,
        )
        assert file.status == "completed" and file.attributes == {"kind": "birds", "year": 2024}
        assert file.chunking_strategy.static.max_chunk_size_tokens == 100  # type: ignore[union-attr]
        batch = await stores.file_batches.upload_and_poll(
            store.id,
            files=[("planes.txt", b"Planes fly by their engines."), ("broken.pdf", b"%PDF-1.4 broken")],
            poll_interval_ms=50,
        )
        assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 1)
        failed = [
            one async for one in stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
        ]
        assert failed[0].last_error is not None and failed[0].last_error.code == "invalid_file"
        assert len([one async for one in stores.files.list(store.id, limit=1)]) == 3

        found = await stores.search(store.id, query="what can fly", max_num_results=5)
        assert {hit.filename for hit in found.data} == {"birds.md", "planes.txt"}
        assert all(0 < hit.score <= 1 for hit in found.data)
        found = await stores.search(
            store.id,
            query=["what can fly"],
            filters={"type": "and", "filters": [{"type": "gte", "key": "year", "value": 2024}]},
            ranking_options={"score_threshold": 0.01},
        )
        assert [hit.filename for hit in found.data] == ["birds.md"]
        assert "Swifts" in found.data[0].content[0].text
        content = await stores.files.content(file.id, vector_store_id=store.id)
        assert content.data[0].text == "# Birds\n\nPenguins do not fly. Swifts fly for months."
        changed = await stores.files.update(file.id, vector_store_id=store.id, attributes={"kind": "seen"})
        assert changed.attributes == {"kind": "seen"}

        stranger = client.with_options(api_key="bob")
        with pytest.raises(openai.NotFoundError):
            await stranger.vector_stores.search(store.id, query="fly")
        with pytest.raises(openai.NotFoundError):
            await stranger.vector_stores.retrieve(store.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await stores.files.create(store.id, file_id="file-" + "0" * 48)

        renamed = await stores.update(store.id, name="renamed", metadata={"a": "b"})
        assert (renamed.name, renamed.metadata) == ("renamed", {"a": "b"})
        assert store.id in [one.id async for one in stores.list(limit=2)]
        assert (await client.files.delete(file.id)).deleted
        assert (await stores.retrieve(store.id)).file_counts.total == 2
        assert (await stores.delete(store.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await stores.retrieve(store.id)


async def test_the_other_paths(way: Setup) -> None:
    headers = {"authorization": "Bearer alice", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def post(path: str, body: Any) -> tuple[int, Any]:
            async with session.post(way.gateway.base_url + path, data=json.dumps(body)) as answer:
                return answer.status, await answer.json()

        status, store = await post("/vector-stores", {"name": "x"})
        assert status == 200
        status, found = await post("/search", {"vector_store_id": store["id"], "query": "x"})
        assert (status, found["data"]) == (200, [])
        status, refused = await post("/search", {"vector_store_ids": ["vs_none"], "query": "x"})
        assert (status, refused["error"]["param"]) == (400, "vector_store_ids")
        status, refused = await post("/vector_stores/vs_none/search", {"query": "x"})
        assert status == 404 and "vs_none" in refused["error"]["message"]
        status, _ = await post("/vector_stores/a/b/c/d/e", {})
        assert status == 404


async def test_many_files_at_the_same_time(way: Setup) -> None:
    """Counts are right while files come from several clients."""
    async with openai.AsyncOpenAI(base_url=way.gateway.base_url, api_key="carol", max_retries=0) as client:
        store = await client.vector_stores.create(name="many")

        async def add(number: int) -> None:
            made = await client.files.create(file=(f"{number}.txt", f"Note {number}".encode()), purpose="assistants")
            await client.vector_stores.files.create(store.id, file_id=made.id)

        await asyncio.gather(*(add(number) for number in range(20)))
        async with asyncio.timeout(30):
            while (counts := (await client.vector_stores.retrieve(store.id)).file_counts).in_progress:
                assert counts.total == 20
                await asyncio.sleep(0.05)
        assert (counts.completed, counts.total) == (20, 20)
        found = await client.vector_stores.search(store.id, query="note 17", max_num_results=1)
        assert found.data[0].filename == "17.txt"


def call(name: str, arguments: dict[str, Any]) -> list[bytes]:
    """The model's turn that calls a function."""
    made = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
    return [event(chunk({"tool_calls": [made]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]


async def test_the_model_searches_a_store(setup: Setup) -> None:
    """Upload, ingest, ask: the model's search finds the passage, and its citation names the file."""
    async with openai.AsyncOpenAI(base_url=setup.gateway.base_url, api_key="dora", max_retries=0) as client:
        store = await client.vector_stores.create(name="notes")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=("swifts.md", b"# Swifts\n\nSwifts stay in the air for ten months."),
            attributes={"kind": "birds"},
            poll_interval_ms=50,
        )
        other = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("planes.md", b"Planes stay in the air for hours."), poll_interval_ms=50
        )
        assert file.status == other.status == "completed"
        setup.server.script(
            answer(parts=call("file_search", {"queries": ["how long in the air"]})),
            answer(parts=text_stream("Ten months", "\u30101\u3011", ".")),
        )
        tool: Any = {
            "type": "file_search",
            "vector_store_ids": [store.id],
            "filters": {"type": "eq", "key": "kind", "value": "birds"},
            "max_num_results": 3,
        }
        stream = await client.responses.create(
            model="demo-model", input="How long?", tools=[tool], include=["file_search_call.results"], stream=True
        )
        events: list[Any] = [one async for one in stream]
        kinds = [one.type for one in events]
        assert kinds.index("response.file_search_call.searching") < kinds.index("response.file_search_call.completed")
        final = events[-1].response
        search, message = final.output
        assert (search.type, search.status, search.queries) == (
            "file_search_call",
            "completed",
            ["how long in the air"],
        )
        (result,) = search.results
        assert (result.file_id, result.filename, result.attributes) == (file.id, "swifts.md", {"kind": "birds"})
        assert "ten months" in result.text and 0 < result.score <= 1
        (cited,) = message.content[0].annotations
        assert (cited.type, cited.file_id, cited.filename, cited.index) == (
            "file_citation",
            file.id,
            "swifts.md",
            len("Ten months"),
        )
        assert final.output_text == "Ten months."
        told = setup.server.requests[-1].json["messages"][-1]
        assert told["role"] == "tool" and "ten months" in told["content"] and "Planes" not in told["content"]

        stranger = client.with_options(api_key="bob")
        with pytest.raises(openai.BadRequestError, match="not found"):
            await stranger.responses.create(model="demo-model", input="How long?", tools=[tool])
