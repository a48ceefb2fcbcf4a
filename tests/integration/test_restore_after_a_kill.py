"""The server was killed, its folder is gone, and a backup that was made while it ran brings everything back."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.gateway import Gateway, start_gateway
from tests.support.state import needs_sqlite
from tests.support.strict_upstream import StrictUpstream


async def _admin(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", "admin", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def _ask(gateway: Gateway, method: str, path: str, **sent: Any) -> tuple[int, dict[str, Any]]:
    headers = {"authorization": "Bearer key-of-alice"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, gateway.base_url + path, headers=headers, **sent) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.slow
async def test_after_a_kill_a_restored_backup_is_read_and_continued(tmp_path: Path) -> None:
    needs_sqlite()
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    upstream = StrictUpstream()
    await upstream.start()
    gateway = await start_gateway(upstream.base_url, data, "--door", "http")
    try:
        status, first = await _ask(gateway, "POST", "/responses", json={"model": "m", "input": "the word is pear"})
        assert status == 200
        form = aiohttp.FormData()
        form.add_field("file", b"It rains.", filename="rain.txt", content_type="text/plain")
        form.add_field("purpose", "user_data")
        status, file = await _ask(gateway, "POST", "/files", data=form)
        assert status == 200
        await _admin("backup", "--data", str(data), "--to", str(archive))
        await _ask(gateway, "POST", "/responses", json={"model": "m", "input": "after the backup"})
        await gateway.stop(signal.SIGKILL)
        data.rename(tmp_path / "lost")

        await _admin("restore", "--from", str(archive), "--data", str(again))
        gateway = await start_gateway(upstream.base_url, again, "--door", "http")
        status, read = await _ask(gateway, "GET", f"/responses/{first['id']}")
        assert (status, read["output"]) == (200, first["output"])
        status, kept = await _ask(gateway, "GET", f"/files/{file['id']}")
        assert (status, kept) == (200, file)
        status, second = await _ask(
            gateway, "POST", "/responses", json={"model": "m", "input": "go on", "previous_response_id": first["id"]}
        )
        assert status == 200 and second["previous_response_id"] == first["id"]
    finally:
        await gateway.stop()
        await upstream.stop()
