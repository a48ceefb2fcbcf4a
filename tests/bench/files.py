"""`scripts/bench files`: how fast files go in and out, what memory that takes, and what others notice of it.

Lives here: uploads and downloads from a process of their own through both doors, and small requests beside them. Not
here: the speed of responses (`run.py`), and that memory stays flat (`tests/e2e/test_uploads.py` asserts it).

Invariant: what was uploaded is what was read, by its checksum.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tests.bench import cpu
from tests.support.gateway import start_gateway
from tests.support.memory import forget_peak, peak

_PIECE = 1 << 20
_HEADERS = {"authorization": "Bearer bench"}
_AT_ONCE = 4
_DOORS: dict[str, tuple[str, ...]] = {"Envoy": ("--door", "envoy"), "HTTP door": ("--door", "http")}


def _parts(megabytes: int) -> Iterator[bytes]:
    piece = os.urandom(_PIECE)
    yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    for _ in range(megabytes):
        yield piece
    yield b"\r\n--b--\r\n"


def _transfer(url: str, megabytes: int, count: int) -> dict[str, Any]:
    """In a process of its own: upload, read back and delete, so many times; the seconds of each."""
    place = urlsplit(url)
    assert place.hostname is not None
    seconds: dict[str, list[float]] = {"up": [], "down": []}
    for _ in range(count):
        connection = http.client.HTTPConnection(place.hostname, place.port)
        sent = hashlib.sha256()
        body = list(_parts(megabytes))
        for piece in body[2:-1]:
            sent.update(piece)
        kind = {"content-type": "multipart/form-data; boundary=b", "content-length": str(sum(map(len, body)))}
        started = time.perf_counter()
        connection.request("POST", f"{place.path}/files", iter(body), {**_HEADERS, **kind})
        answer = connection.getresponse()
        made = json.loads(answer.read())
        assert answer.status == 200, made
        seconds["up"].append(time.perf_counter() - started)
        started = time.perf_counter()
        connection.request("GET", f"{place.path}/files/{made['id']}/content", headers=_HEADERS)
        answer = connection.getresponse()
        read = hashlib.sha256()
        while part := answer.read(_PIECE):
            read.update(part)
        seconds["down"].append(time.perf_counter() - started)
        assert read.digest() == sent.digest(), "another file came back"
        connection.request("DELETE", f"{place.path}/files/{made['id']}", headers=_HEADERS)
        assert connection.getresponse().read()
        connection.close()
    return seconds


async def _apart(url: str, megabytes: int, count: int) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.files", "--transfer", url, str(megabytes), str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert child.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


async def _small_requests(url: str, until: asyncio.Event) -> list[float]:
    """Milliseconds of small requests, one after another, until told to stop."""
    found = []
    async with aiohttp.ClientSession(headers=_HEADERS) as session:
        while not until.is_set():
            started = time.perf_counter()
            async with session.get(f"{url}/files?limit=1") as answer:
                await answer.read()
                assert answer.status == 200
            found.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.002)
    return found


async def _measure(door: str, megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as data:
        gateway = await start_gateway("http://127.0.0.1:9/v1", Path(data), *_DOORS[door])
        try:
            await _apart(gateway.base_url, 1, 2)
            pids = [gateway.process.pid, *cpu.children(gateway.process.pid)]
            before = {pid: forget_peak(pid) for pid in pids}
            worked = cpu.cpu_seconds(pids)
            seconds = await _apart(gateway.base_url, megabytes, 3)
            worked = (cpu.cpu_seconds(pids) - worked) / (6 * megabytes / 1024)
            grown = [(cpu.program(pid), (peak(pid) - before[pid]) / 1024) for pid in pids]
            up, down = (megabytes / statistics.median(seconds[way]) for way in ("up", "down"))
            print(f"{door}: {up:.0f} MiB/s up, {down:.0f} MiB/s down, {worked:.2f} s of CPU for a GiB")
            print("  memory at most: " + ", ".join(f"{name} +{size:.1f} MiB" for name, size in grown))
            for beside in (0, _AT_ONCE):
                over = asyncio.Event()
                small = asyncio.create_task(_small_requests(gateway.base_url, over))
                others = [_apart(gateway.base_url, max(1, megabytes // 8), 2) for _ in range(beside)]
                await (asyncio.gather(*others) if others else asyncio.sleep(3))
                over.set()
                found = sorted(await small)
                p99 = found[int(len(found) * 0.99)]
                print(f"  a small request beside {beside}: p50 {statistics.median(found):.1f} ms, p99 {p99:.1f} ms")
        finally:
            assert await gateway.stop() == 0


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--transfer"]:
        print(json.dumps(_transfer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return 0
    parser = argparse.ArgumentParser(prog="scripts/bench files", description="Files in and out, through both doors.")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the large file (default 500)")
    given = parser.parse_args()
    for door in _DOORS:
        asyncio.run(_measure(door, given.megabytes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
