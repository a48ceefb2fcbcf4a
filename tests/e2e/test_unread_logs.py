"""Standard error that nobody reads: requests are served all the same, and what was said is there afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from pathlib import Path

import aiohttp
import pytest

pytestmark = pytest.mark.slow

SECONDS = 60.0
REQUESTS = 100


@pytest.mark.parametrize("command", [("serve",), ("up", "--door", "http")], ids=["serve", "up"])
async def test_a_collector_that_stands_still(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Of `up` parent and worker have a pipe each: neither stops the other."""
    reading, writing = os.pipe()
    # Room for about twenty lines.
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", *command, "--upstream", "http://127.0.0.1:9/v1", "--listen"),
        *("127.0.0.1:0", "--data", str(tmp_path), "--log-format", "json", "--log-level", "info"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=writing,
        env=plain,
    )
    os.close(writing)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            url = (await process.stdout.readline()).decode().removeprefix("ready: ").strip()
            async with aiohttp.ClientSession() as session:
                for number in range(REQUESTS):
                    headers = {"x-request-id": f"number-{number}"}
                    async with session.get(f"{url}/conversations/conv_x", headers=headers) as got:
                        assert got.status == 404
                async with session.get(url.removesuffix("/v1") + "/health") as got:
                    assert got.status == 200
            process.terminate()
            said = await asyncio.to_thread(_read_all, reading)
            await process.wait()
    finally:
        os.close(reading)
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [json.loads(line) for line in said.splitlines()]
    asked = [line["request_id"] for line in lines if line["message"] == "request" and "conv_x" in line["path"]]
    assert asked == [f"number-{number}" for number in range(REQUESTS)]


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)
