"""What operators see of upstreams, processes and databases."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from antiphon.console import formats
from antiphon.console.views import models
from antiphon.engine.ports.journal import Detail, Entry
from antiphon.stores import journal as stored_journal
from tests.support.chat_server import ChatServer, never
from tests.support.console_app import open_console_app


async def test_an_upstream_has_its_profile_its_state_and_its_newest_failure(tmp_path: Path) -> None:
    upstreams = {
        "slow": {"url": "http://127.0.0.1:9/v1", "profile": "vllm", "api_key": "sk-secret-of-the-upstream"},
        "idle": {"url": "http://127.0.0.1:8/v1", "auth": "none"},
    }
    rules = [{"match": "a*", "upstream": "slow"}, {"match": "b*", "upstream": "idle"}]
    async with open_console_app(tmp_path, settings={"upstreams": upstreams, "models": rules}) as console:
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


async def test_an_upstream_that_sent_nothing_has_not_answered(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        add = console.app.stores.journal.add
        await add([Entry("entry_1", "n:anna", upstream="default", outcome="completed", first=0.1, age=30.0)])
        assert "✓ answered" in (await console.get("/models", "operator")).words
        gone: dict[str, Any] = {"outcome": "cancelled", "fault": "cancelled", "code": "client_gone"}
        await add([Entry("entry_2", "n:anna", upstream="default", age=20.0, **gone)])
        words = (await console.get("/models", "operator")).words
        assert "○ no answer before the client disconnected" in words and "✓ answered" not in words
        await add([Entry("entry_3", "n:anna", upstream="default", age=10.0, first=0.2, **gone)])
        assert "✓ answered" in (await console.get("/models", "operator")).words


async def test_an_upstream_that_hangs_hides_no_models_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_SECONDS", 1.0)
    async with ChatServer() as hangs, ChatServer() as works:
        hangs.default = lambda request: never()
        upstreams = {name: {"url": one.base_url, "auth": "none"} for name, one in (("h", hangs), ("w", works))}
        settings = {
            "upstreams": upstreams,
            "models": [{"match": "named", "upstream": "h"}, {"match": "*", "upstream": "w"}],
        }
        async with open_console_app(tmp_path, settings=settings) as console:
            await console.get("/models")
            began = time.monotonic()
            early = await console.get("/models", follow=False)
            assert time.monotonic() - began < 0.9 and "demo-model" not in early.words
            page = await console.get("/models")
            assert "demo-model" in page.words and "named" in page.words and "file_search" in page.words
            assert "h : The upstream did not list its models in time." in page.words
            assert 'href="/console/models?model=demo-model"' in page.text
            assert "demo-model" in (await console.get("/playground")).text


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


SLOW = {
    "/system": ("sums", "First token"),
    "/prompt-cache": ("sums", "Hit rate"),
    "/models": ("list", "Newest failure"),
    "/threads": ("sums", "Tokens"),
}
PARTS = {"/models": "/models/upstreams", "/threads": "/threads"}


@pytest.mark.parametrize("path", SLOW)
async def test_a_page_does_not_wait_for_slow_figures_and_then_shows_all(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, shown = SLOW[path]
    async with open_console_app(tmp_path) as console, asyncio.timeout(30):
        journal = console.app.stores.journal
        rows = [Entry(f"entry_{one}", "n:anna", model="m1", input_tokens=1000, age=9.0) for one in range(3)]
        await journal.add(rows)
        await console.get(path, "operator")
        original, goes_on, calls = getattr(journal, method), asyncio.Event(), 0

        async def slow(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            await goes_on.wait()
            return await original(*given, **named)

        monkeypatch.setattr(journal, method, slow)
        page = await console.get(path, "operator", follow=False)
        assert page.status == 200 and shown not in page.words, "no figure before the whole figure is known"
        part = f"/console{PARTS.get(path, path + '/figures')}"
        assert f'hx-get="{part}" hx-trigger="load"' in page.text and f'href="/console{path}?whole=1"' in page.text
        while not calls:
            await asyncio.sleep(0.01)
        called = calls
        loading = asyncio.ensure_future(console.get(part.removeprefix("/console"), "operator", fragment=True))
        whole = asyncio.ensure_future(console.get(f"{path}?whole=1", "operator"))
        await asyncio.sleep(0.3)
        assert not loading.done() and not whole.done() and calls == called, "the part waits for the same computation"
        goes_on.set()
        for one in (await loading, await whole):
            assert one.status == 200 and shown in one.words
        if path not in PARTS:
            assert "m1" in (await loading).words
            await journal.add([Entry("entry_new", "n:anna", model="m2", input_tokens=1000, age=1.0)])
            assert "m2" in (await console.get(path, "operator")).words, "a loaded page has no old figures"


async def test_a_part_of_an_owner_has_no_figures_of_others(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        rows = [Entry(f"entry_{one}", f"n:{one}", model=f"of-{one}", input_tokens=9, age=9.0) for one in ("anna", "bo")]
        await console.app.stores.journal.add(rows)
        for path in ("/system/figures", "/prompt-cache/figures"):
            every = (await console.get(path, "operator", fragment=True)).words
            own = (await console.get(f"{path}?owner=n:bo", "anna", fragment=True)).words
            assert "of-anna" in every and "of-bo" in every and "of-anna" in own and "of-bo" not in own
        assert (await console.get("/models/upstreams")).status == 404


async def test_a_capped_count_is_shown_as_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_COUNTED", 2)
    monkeypatch.setattr(stored_journal, "MOST_COUNTED", 2)
    async with open_console_app(tmp_path) as console:
        rows = [Entry(f"entry_{one}", "n:anna", door="background", age=9.0) for one in range(5)]
        await console.app.stores.journal.add(rows)
        assert "of 2 or more" in (await console.get("/background", "operator")).words
