"""What operators see of upstreams, processes and databases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from antiphon.engine.ports.journal import Detail, Entry
from tests.support.chat_server import ChatServer, never
from tests.support.console_app import open_console_app


async def test_an_upstream_has_its_profile_its_state_and_its_newest_failure(tmp_path: Path) -> None:
    upstreams = {
        "slow": {"url": "http://127.0.0.1:9/v1", "profile": "vllm", "api_key": "sk-secret-of-the-upstream"},
        "idle": {"url": "http://127.0.0.1:8/v1", "auth": "none"},
    }
    models = [{"match": "a*", "upstream": "slow"}, {"match": "b*", "upstream": "idle"}]
    async with open_console_app(tmp_path, settings={"upstreams": upstreams, "models": models}) as console:
        failed: dict[str, Any] = {
            "fault": "upstream",
            "code": "upstream_unreachable",
            "detail": Detail(cause="refused by the host"),
        }
        await console.app.stores.journal.add([
            Entry("entry_1", "n:anna", upstream="slow", age=50.0, **failed),
            Entry("entry_2", "n:anna", upstream="slow", outcome="completed", age=20.0),
            Entry("entry_3", "n:anna", upstream="default", age=50.0, **failed),
        ])  # fmt: skip
        page = await console.get("/models", "operator")
        words = page.words.partition("Newest failure")[2]
        assert "vllm from the settings ✓ answered" in words and "upstream_unreachable" in words
        assert "refused by the host (1 in all)" in words and "✕ failed" in words
        assert "generic assumed" in words and "no requests" in words
        assert "sk-secret" not in page.text and "http://127.0.0.1:9/v1" in page.words
        assert "from the settings" not in (await console.get("/models")).words, "owners see no addresses"


async def test_the_system_page_loads_its_processes_by_itself(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        page = await console.get("/system", "operator")
        assert "Load the page again" not in page.words and "/console/system/processes" in page.text
        process = console.app.context.console
        assert process is not None and "Warnings of the process process_" in page.words
        for link in ("/metrics", "/openapi.json"):
            assert link in page.words
        part = await console.get("/system/processes", "operator", fragment=True)
        assert "Databases" in part.words and "requests in the journal 0" in part.words and "KB" in part.words
        assert (await console.get("/system/processes")).status == 404


async def test_the_playground_does_not_wait_for_an_upstream_that_hangs(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = lambda request: never()
        settings = {"upstream": {"url": server.base_url, "auth": "none"}, "models": [{"match": "m1"}]}
        async with open_console_app(tmp_path, settings=settings) as console, asyncio.timeout(8):
            page = await console.get("/playground", "operator")
            assert page.status == 200 and "m1" in page.text
