"""Whether a model call broke off because our own Envoy went away, or stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from antiphon.upstream.door_watch import watch_door
from antiphon.upstream.http import UpstreamTarget


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
