"""What a whole process shows at a scrape: every metric has somebody who feeds it, and what they say is so."""

from __future__ import annotations

import asyncio
import platform
import re
import threading
from pathlib import Path

import aiohttp
import pytest

from antiphon import __version__, compiled
from antiphon.engine.waiting import SEARCH
from antiphon.errors import StoreError
from antiphon.observability.metrics import Metrics
from tests.support.background_app import BackgroundApp, processes
from tests.support.chat_server import Wait, answer, event, text_stream
from tests.support.metrics import value_of
from tests.support.state import on_postgres
from tests.support.waiting import until

SOURCE = Path(__file__).parents[2] / "src" / "antiphon"


async def scraped(app: BackgroundApp) -> str:
    return (await app.app.context.telemetry.metrics.scraped()).decode()


async def test_there_is_no_metric_that_nobody_feeds(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        metrics = (await made.start()).app.context.telemetry.metrics
        assert metrics.unfed() == frozenset()
    # The others are counted where something happens: each verb has somebody who says it.
    files = [file.read_text() for file in SOURCE.rglob("*.py") if file.name != "metrics.py"]
    said = set(re.findall(r"\.(\w+)", "\n".join(line for file in files for line in file.splitlines())))
    themselves = {"collect", "describe", "render", "unfed"}
    verbs = {name for name in (*vars(Metrics), *vars(metrics)) if not name.startswith("_")} - themselves
    assert verbs - said == set()


async def test_what_runs_and_waits_in_the_background_is_seen(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with processes(tmp_path / "data") as made:
        idle = await made.start(workers=0)
        queued = [await idle.create(stream=False) for _ in range(3)]
        made.sql("UPDATE jobs SET created_at = created_at - 60000 WHERE response_id = ?", queued[0]["id"])
        text = await scraped(idle)
        assert value_of(text, "antiphon_background_queued") == 3
        assert 60 <= value_of(text, "antiphon_background_oldest_queued_seconds") < 600
        for _ in range(3):
            made.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        busy = await made.start(workers=2)
        await until(lambda: len(busy.app.workers.running) == 2)
        text = await scraped(busy)
        assert (value_of(text, "antiphon_background_queued"), value_of(text, "antiphon_background_running")) == (1, 2)
        assert value_of(text, "antiphon_background_followers") == 0
        streamed = await idle.create(stream=False)
        gate.set()
        assert (await idle.ended(streamed["id"]))["status"] == "completed"


async def test_what_workers_ask_of_the_store_is_counted(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with processes(tmp_path / "data") as made:
        app = await made.start(lease=1.0)
        made.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        async with app.stream() as one:
            response_id = await one.response_id()
            text = app.app.context.telemetry.metrics.render
            await until(lambda: value_of(text().decode(), "storage_operations_total", operation="renew") >= 1)
            gate.set()
            await one.whole()
        await app.ended(response_id)
        made.chat.script(answer(parts=[event("a"), Wait(asyncio.Event())]))
        cancelled = await app.create()
        await app.reaches(cancelled["id"], "in_progress")
        assert (await app.ask(f"/{cancelled['id']}/cancel", "POST"))[0] == 200
        made.chat.script(answer(parts=[event("a"), Wait(asyncio.Event())]))
        await app.reaches((await app.create())["id"], "in_progress")
        await app.app.give_back()
        for operation in ("enqueue", "claim", "append", "finish", "end", "release", "renew"):
            labels = {"operation": operation, "result": "ok"}
            assert value_of(text().decode(), "storage_operations_total", **labels) >= 1, operation


async def test_who_follows_a_response_is_counted(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        made.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        async with app.stream() as one:
            response_id = await one.response_id()
            assert value_of(await scraped(app), "antiphon_background_followers") == 1
            async with app.stream(response_id) as other:
                await other.until(b"response.created")
                assert value_of(await scraped(app), "antiphon_background_followers") == 2
                gate.set()
                await other.whole()
            await one.whole()
        await until(lambda: app.app.workers.running == frozenset())
        assert value_of(await scraped(app), "antiphon_background_followers") == 0


async def test_what_a_process_says_of_its_databases_and_its_disk(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        await app.ended((await app.create(stream=False))["id"])
        form = aiohttp.FormData({"purpose": "user_data"})
        form.add_field("file", b"x" * 1234, filename="a.txt")
        async with app.session.post(f"{app.url}/files", data=form) as got:
            assert got.status == 200
        text = await scraped(app)
        assert value_of(text, "antiphon_blobs_bytes") == 1234
        databases = ("postgresql",) if on_postgres() else ("sessions", "vectors")
        for name in databases:
            files = [tmp_path / "data" / f"{name}.db{suffix}" for suffix in ("", "-wal", "-shm")]
            size = 1 << 20 if on_postgres() else sum(file.stat().st_size for file in files)
            assert value_of(text, "antiphon_database_bytes", database=name) >= size
            assert value_of(text, "antiphon_storage_writer_queue", database=name) == 0
            assert value_of(text, "antiphon_storage_readers_busy", database=name) == 0
        if on_postgres():
            assert value_of(text, "antiphon_database_table_bytes", database="postgresql", table="responses") > 0
            used = value_of(text, "antiphon_database_connections", database="postgresql", state="active")
            assert 0 < used < value_of(text, "antiphon_database_connections_max", database="postgresql")
            assert value_of(text, "antiphon_database_oldest_xmin_age", database="postgresql") >= 0
        else:
            assert not any(line.startswith("antiphon_database_connections") for line in text.splitlines())
        assert value_of(text, "antiphon_disk_free_bytes") > 0
        groups = value_of(text, "antiphon_storage_writer_group_count", database=databases[0])
        assert 0 < groups <= value_of(text, "antiphon_storage_writer_group_sum", database=databases[0])
        # Each transaction counts once, however often somebody looks.
        assert value_of(await scraped(app), "antiphon_storage_writer_group_count", database=databases[0]) == groups
        assert value_of(text, "antiphon_settings_loaded_timestamp_seconds") > 1.7e9
        said = {"version": __version__, "python": platform.python_version(), "transport": "", "sandbox": ""}
        said["code"] = "compiled" if compiled() else "sources"
        assert value_of(text, "antiphon_build_info", **said) == 1
        await until(
            lambda: app.app.context.telemetry.metrics.render().count(
                b'antiphon_event_loop_lag_seconds_bucket{le="+Inf"}'
            )
        )


async def test_a_thread_that_works_is_seen_and_what_waits_for_one(tmp_path: Path) -> None:
    gate = threading.Event()
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        work = [asyncio.ensure_future(SEARCH.run(gate.wait, 60)) for _ in range(3)]
        try:
            await until(lambda: SEARCH.waiting == 1)
            text = await scraped(app)
        finally:
            gate.set()
            await asyncio.gather(*work)
        assert value_of(text, "antiphon_threads_busy", pool="search") == 2
        assert value_of(text, "antiphon_threads_waiting", pool="search") == 1


async def test_a_store_that_does_not_answer_takes_nothing_else_from_a_scrape(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        await app.sqlite.tables.readers.aclose()
        with pytest.raises(StoreError):
            await app.sqlite.tables.fetch("SELECT 1", {})
        text = await scraped(app)
        assert value_of(text, "antiphon_disk_free_bytes") > 0 and value_of(text, "antiphon_build_info") == 1
