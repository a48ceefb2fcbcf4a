"""Runs the load generator as a process: `python -m lab.bench.load`. The process reads one JSON job per line and writes
one JSON result per line.

Lives here: a closed loop of keep-alive connections, each of which sends its next request after the complete response,
and the client's measurements. Not here: CPU and memory (`cpu.py`), comparison (`run.py`).

The generator counts chunks by a marker that occurs once in every event with text. The generator does not decode HTTP
chunks, because that would cost more than everything else. The running count misses a marker that the HTTP framing
splits, and the generator corrects the count at the stream's end. A stream that lost more than a tenth of its chunks
counts as an error.

Invariants: a job ends at the latest `grace` seconds after its window. Bytes after the window count in the totals (which
belong to the CPU time), not in the rates.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, TypedDict, cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_STAMP = re.compile(rb"@(\d{6,20})@")
_LAST = b"\r\n0\r\n\r\n"
_TAIL = 32


class Job(TypedDict):
    """One job. `chunks` is the expected number of chunks of a stream (0: the answers are JSON). `stamps`: the texts
    have the form `@NANOSECONDS@`."""

    port: int
    path: str
    body: str
    connections: int
    seconds: float
    grace: float
    chunks: int
    marker: str
    stamps: bool
    stagger: float


class _Totals:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.marker = job["marker"].encode()
        body = job["body"].encode()
        self.request = (
            f"POST {job['path']} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer bench\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.finish_at = 0
        self.running = 0
        self.idle = asyncio.Event()
        self.requests = self.requests_in_window = self.chunks = self.chunks_in_window = self.errors = 0
        self.complaint = ""
        self.first_event: list[int] = []
        self.first_text: list[int] = []
        self.gaps: list[int] = []
        self.under_way: list[int] = []
        self.whole: list[int] = []

    def fail(self, why: str) -> None:
        self.errors += 1
        self.complaint = self.complaint or why


class _Client(asyncio.Protocol):
    def __init__(self, totals: _Totals) -> None:
        self._totals = totals
        self._chunks = totals.job["chunks"]
        self._stamps = totals.job["stamps"]
        self._busy = False
        self._reset()

    def _reset(self) -> None:
        self._head = b""
        self._in_body = False
        self._left = -1
        self._tail = b""
        self._seen = 0
        self._newest = 0
        self._read_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._busy:
            self._totals.fail("the connection was cut")
            self._done()

    def send(self) -> None:
        """Send the next request, unless the measuring window is over."""
        if time.monotonic_ns() >= self._totals.finish_at:
            if self._busy:
                self._done()
            return
        if self._transport.is_closing():
            self._totals.fail("the connection was closed")
            if self._busy:
                self._done()
            return
        self._reset()
        if not self._busy:
            self._busy = True
            self._totals.running += 1
        self._sent_at = time.monotonic_ns()
        self._transport.write(self._totals.request)

    def abort(self) -> None:
        """Disconnect immediately, even during an answer."""
        self._busy = False
        self._transport.abort()

    def _done(self) -> None:
        self._busy = False
        self._totals.running -= 1
        if not self._totals.running:
            self._totals.idle.set()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        totals = self._totals
        if not self._in_body:
            self._head += data
            head, separator, data = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._in_body = True
            if not head.startswith(b"HTTP/1.1 200"):
                totals.fail(f"{head[:40]!r} {data[:200]!r}")
                self.abort()
                self._done()
                return
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length else -1
            # Treat an empty chunked body like any other body at its end.
            self._tail = b"\r\n"
            if not data:
                return
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(now)
            return
        text = self._tail + data
        if self._chunks:
            self._look(text, now)
        if text.endswith(_LAST):
            self._finish(now)
        else:
            self._tail = text[-_TAIL:]

    def _look(self, text: bytes, now: int) -> None:
        """Count the markers in `text`. Skips the tail of the previous data, whose markers are already counted."""
        totals = self._totals
        if not self._read_at:
            if b"data: " not in text:
                return
            totals.first_event.append(now - self._sent_at)
        elif self._stamps:
            totals.gaps.append(now - self._read_at)
        self._read_at = now
        marker = totals.marker
        # A marker within the tail is already counted.
        count = text.count(marker) - self._tail.count(marker)
        if count:
            if not self._seen:
                totals.first_text.append(now - self._sent_at)
            self._seen += count
            totals.chunks += count
            if now < totals.finish_at:
                totals.chunks_in_window += count
        if self._stamps:
            for stamp in _STAMP.findall(text):
                # The events at a stream's end repeat its whole text.
                if (number := int(stamp)) > self._newest:
                    self._newest = number
                    totals.under_way.append(now - number)

    def _finish(self, now: int) -> None:
        totals = self._totals
        totals.requests += 1
        if now < totals.finish_at:
            totals.requests_in_window += 1
        totals.whole.append(now - self._sent_at)
        if self._chunks:
            missed = self._chunks - self._seen
            if abs(missed) > max(1, self._chunks // 10):
                totals.fail(f"{self._seen} of {self._chunks} chunks; the end: {self._tail!r}")
            else:
                totals.chunks += missed
                if now < totals.finish_at:
                    totals.chunks_in_window += missed
        if now < totals.finish_at:
            self.send()
        else:
            self._done()


def _quantiles(samples: list[int]) -> dict[str, float]:
    """Median, 99th and 99.9th percentile and the maximum in microseconds, and the number of samples."""
    if not samples:
        return {"n": 0}
    samples.sort()
    last = len(samples) - 1
    return {
        "n": len(samples),
        "p50": samples[round(last * 0.5)] / 1000,
        "p99": samples[round(last * 0.99)] / 1000,
        "p999": samples[round(last * 0.999)] / 1000,
        "max": samples[-1] / 1000,
    }


async def _run(job: Job) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    totals = _Totals(job)
    clients = []
    for _ in range(job["connections"]):
        _, client = await loop.create_connection(lambda: _Client(totals), "127.0.0.1", job["port"])
        clients.append(client)
    started = time.monotonic_ns()
    totals.finish_at = started + int(job["seconds"] * 1e9)
    for number, client in enumerate(clients):
        loop.call_later(job["stagger"] * number, client.send)
    try:
        async with asyncio.timeout(job["seconds"] + job["grace"]):
            await asyncio.sleep(job["seconds"])
            if totals.running:
                totals.idle.clear()
                await totals.idle.wait()
    except TimeoutError:
        pass
    unfinished = totals.running
    for client in clients:
        client.abort()
    # Give the server time to notice the disconnections before the next job.
    await asyncio.sleep(0.05)
    return {
        "requests": totals.requests,
        "requests_per_second": totals.requests_in_window / job["seconds"],
        "chunks": totals.chunks,
        "chunks_per_second": totals.chunks_in_window / job["seconds"],
        "errors": totals.errors,
        "complaint": totals.complaint,
        "unfinished": unfinished,
        "first_event_us": _quantiles(totals.first_event),
        "first_text_us": _quantiles(totals.first_text),
        "gap_us": _quantiles(totals.gaps),
        "under_way_us": _quantiles(totals.under_way),
        "whole_us": _quantiles(totals.whole),
    }


def main() -> None:
    """Run the jobs from standard input until it ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(_run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
