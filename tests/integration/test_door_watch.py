"""Whether a model call broke off because our own Envoy went away, or stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.routing import watch_door


@asynccontextmanager
async def _envoy(path: Path, *, answers: bool) -> AsyncIterator[asyncio.Server]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) and answers:
            writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve, path) as server:
        yield server


@pytest.mark.parametrize("answers", [True, False])
async def test_one_that_stands_still_is_as_good_as_gone(folder: Path, answers: bool) -> None:
    path, patience = folder / "door.sock", 30.0 if answers else 0.1
    async with (
        _envoy(path, answers=answers),
        watch_door(UpstreamTarget("http://door/v1", unix_path=str(path)), grace=0.05, answer=patience) as watch,
    ):
        assert await watch.gone(asyncio.get_running_loop().time()) is not answers


async def test_one_that_is_not_there_is_gone(folder: Path) -> None:
    target = UpstreamTarget("http://door/v1", unix_path=str(folder / "none.sock"))
    async with watch_door(target, grace=0.05) as watch:
        assert await watch.gone(asyncio.get_running_loop().time())


@pytest.mark.parametrize("over_tcp", [True, False])
async def test_one_whose_connections_end_is_gone_and_is_not_asked(folder: Path, over_tcp: bool) -> None:
    end, asked, served = asyncio.Event(), asyncio.Event(), set[asyncio.Task[Any]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        reading, ending = asyncio.create_task(reader.read(1)), asyncio.create_task(end.wait())
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done() and reading.result():
            asked.set()
            writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        reading.cancel()
        ending.cancel()
        writer.close()
        await writer.wait_closed()

    if over_tcp:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = UpstreamTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    else:
        server = await asyncio.start_unix_server(serve, folder / "door.sock")
        target = UpstreamTarget("http://door/v1", unix_path=str(folder / "door.sock"))
    clock = asyncio.get_running_loop().time
    async with server:
        async with watch_door(target, grace=30.0, answer=30.0) as watch:
            gone = asyncio.create_task(watch.gone(clock()))
            await asyncio.wait({gone}, timeout=0.01)
            assert not gone.done()
            end.set()
            assert await asyncio.wait_for(gone, 20) and not asked.is_set()
            # What ended a moment before counts, too.
            assert await watch.gone(clock() + 5.0) and not asked.is_set()
        end.clear()
        async with watch_door(target, grace=0.05, answer=30.0) as watch:
            # Nothing ended, and it answers.
            assert not await watch.gone(clock()) and asked.is_set()
    await asyncio.wait(served)
