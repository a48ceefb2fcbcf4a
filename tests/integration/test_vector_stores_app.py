"""Vector stores as a process builds them from its settings: what is there, what is switched off, files that expire."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.api.http import ApiRequest
from antiphon.app.build import App, build
from antiphon.config.settings import load_settings
from antiphon.engine.ports.files import FileFields
from antiphon.errors import ConfigError
from antiphon.ids import now
from tests.support.embeddings_server import open_embeddings_server
from tests.support.metrics import value_of

ALICE = "b:alice"


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[App]:
    app = await build(load_settings({"data": folder, **settings}), door="http")
    try:
        yield app
    finally:
        await app.aclose()


async def ask(app: App, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    answered = await app.context.router.handle(ApiRequest(method, path, (), (), data, ALICE))
    return answered.status, json.loads(answered.body)


async def upload(app: App, name: str, content: bytes, expires_at: float | None = None) -> str:
    file_id = "file-" + name.replace(".", "_")
    async with app.stores.files.uploading() as writing:
        await writing.write(content)
        await writing.keep(ALICE, FileFields(file_id, name, "assistants", "text/plain", now(), expires_at))
    return file_id


async def ingested(app: App, store_id: str) -> dict[str, int]:
    async with asyncio.timeout(60):
        while True:
            _, store = await ask(app, "GET", f"/v1/vector_stores/{store_id}")
            if not store["file_counts"]["in_progress"]:
                counts: dict[str, int] = store["file_counts"]
                return counts
            await asyncio.sleep(0.01)


async def test_a_file_from_the_disk_is_ingested_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as app:
        file_id = await upload(app, "birds.txt", b"Swifts fly for months.")
        _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": [file_id]})
        assert (await ingested(app, store["id"]))["completed"] == 1
        assert (
            'antiphon_files_ingested_total{outcome="completed"} 1.0' in app.context.telemetry.metrics.render().decode()
        )
    async with opened(tmp_path) as app:
        status, found = await ask(app, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": "swifts"})
        assert status == 200 and found["data"][0]["filename"] == "birds.txt"
        assert "file_search" in app.tools.types
        shown = app.context.telemetry.metrics.render().decode()
        assert 'antiphon_search_duration_seconds_count{by="words"} 1.0' in shown


async def test_a_process_may_leave_ingestion_to_others(tmp_path: Path) -> None:
    async with opened(tmp_path, vector_stores={"ingest": 0}) as app, opened(tmp_path) as other:
        file_id = await upload(app, "birds.txt", b"Swifts fly for months.")
        _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": [file_id]})
        assert other.vector_search is not None
        other.vector_search.ingester.wake()
        assert (await ingested(app, store["id"]))["completed"] == 1


@pytest.mark.parametrize("off", [{"vector_stores": {"enabled": False}}, {"files": {"enabled": False}}])
async def test_what_is_switched_off_does_not_exist(tmp_path: Path, off: dict[str, Any]) -> None:
    async with opened(tmp_path, **off) as app:
        for path in ("/v1/vector_stores", "/v1/vector-stores", "/v1/search"):
            status, answered = await ask(app, "POST", path, {})
            assert status == 404 and answered["error"]["code"] == "unknown_url"
        assert not (tmp_path / "vectors.db").exists()
        assert "file_search" not in app.tools.types


async def test_a_file_that_expires_leaves_the_stores(tmp_path: Path) -> None:
    async with opened(tmp_path) as app:
        file_id = await upload(app, "birds.txt", b"Swifts fly for months.", expires_at=now() + 0.5)
        kept = await upload(app, "planes.txt", b"Planes fly for hours.")
        _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": [file_id, kept]})
        await ingested(app, store["id"])
        async with asyncio.timeout(60):
            while not (await app.stores.files.sweep())[0]:
                await asyncio.sleep(0.05)
        assert (await ingested(app, store["id"]))["total"] == 1
        _, found = await ask(app, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": "fly"})
        assert [hit["filename"] for hit in found["data"]] == ["planes.txt"]


@pytest.mark.parametrize("broken", ["500", "dead"])
async def test_an_embeddings_server_that_fails_is_counted_and_named(tmp_path: Path, broken: str) -> None:
    """Answers go on without it, by words: nobody would see it but by its number and its line."""
    async with open_embeddings_server() as server:
        embeddings = {"url": server.url if broken == "500" else "http://127.0.0.1:9/v1", "model": "words-1"}
        async with opened(tmp_path, embeddings=embeddings) as app:
            server.status = 500
            _, store = await ask(app, "POST", "/v1/vector_stores", {})
            with capture_logs() as lines:
                status, _ = await ask(app, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": "x"})
            told = app.context.telemetry.metrics.render().decode()
    assert status == 200
    (line,) = [line for line in lines if line["event"] == "searching_without_vectors"]
    assert line["upstream"] == "embeddings" and line["cause"]
    as_status = "500" if broken == "500" else "unreachable"
    labels = {"upstream": "embeddings", "operation": "embeddings", "status": as_status}
    assert value_of(told, "antiphon_upstream_requests_total", **labels) == 1


async def test_an_embeddings_server_adds_meaning(tmp_path: Path) -> None:
    async with open_embeddings_server() as server:
        embeddings = {"url": server.url, "model": "words-1", "api_key": "sk-embed", "batch": 2}
        async with opened(tmp_path, embeddings=embeddings) as app:
            ids = [
                await upload(app, f"{name}.txt", text)
                for name, text in (("plane", b"The aircraft lands."), ("cat", b"A feline sleeps."), ("x", b"Else."))
            ]
            _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": ids})
            assert (await ingested(app, store["id"]))["completed"] == 3
            path = f"/v1/vector_stores/{store['id']}/search"
            _, found = await ask(app, "POST", path, {"query": "aeroplane", "max_num_results": 1})
            assert [hit["filename"] for hit in found["data"]] == ["plane.txt"]
            words_alone = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
            _, found = await ask(app, "POST", path, {"query": "aeroplane", "ranking_options": words_alone})
            assert found["data"] == []
            assert set(server.keys) == {"Bearer sk-embed"}
            assert {one["model"] for one in server.requests} == {"words-1"}
            server.status = 500
            _, found = await ask(app, "POST", path, {"query": "aircraft"})
            assert [hit["filename"] for hit in found["data"]] == ["plane.txt"]
            assert (
                'antiphon_search_duration_seconds_count{by="vectors"} 1.0'
                in app.context.telemetry.metrics.render().decode()
            )


async def test_vectors_need_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("antiphon.upstream.embeddings", "antiphon.single_threaded_numpy"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ConfigError, match=r"embeddings\.url needs the extra 'vector-stores'"):
        await build(load_settings({"data": tmp_path, "embeddings": {"url": "http://127.0.0.1:9/v1"}}), door="http")


async def test_an_embeddings_server_that_is_down_does_not_keep_words_from_being_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as app:
        file_id = await upload(app, "birds.txt", b"Swifts fly for months.")
        _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": [file_id]})
        await ingested(app, store["id"])
    async with opened(tmp_path, embeddings={"url": "http://127.0.0.1:9/v1"}) as app:
        status, found = await ask(app, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": "swifts"})
        assert status == 200 and len(found["data"]) == 1
