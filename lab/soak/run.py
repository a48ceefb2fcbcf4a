"""`scripts/lab soak`: runs all kinds of requests together for a while, and then checks for wrong answers and for leaks.

Lives here: the mixed load and the checks of each job. Also the checks at the end: memory, open files, requests in
flight, logs, exit status. Not here: speed (`scripts/bench`).

Invariant: a run ends by itself. Every problem is a line of its report and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.sqlite.backend import SESSIONS_FILE
from antiphon.supervisor.children import ParentPipe
from lab.bench import cpu
from lab.bench.variants import Process

_MIB = 1 << 20
_SETTLE_SECONDS = 10.0
_JOB_SECONDS = 60.0
# The leases of a killed process last half a minute. After this time another process continues its work.
_AFTER_RESTARTS = 60.0
# The permitted growth of a process's memory from the middle of a run to its end: caches fill up, and allocators keep
# reserves.
_GROWTH, _SLACK = 1.10, 6 * _MIB

Job = Callable[["Load", int], Awaitable[None]]


class Wrong(Exception):
    """Raised by a job that got a wrong result."""


@dataclass
class Load:
    """The gateway, the HTTP session and the owner that jobs use, and the results of all jobs."""

    url: str
    session: aiohttp.ClientSession
    owner: str
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stored: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=500))
    """Pairs of owner and response id for responses that the gateway stored."""

    async def stream(self, **request: Any) -> list[dict[str, Any]]:
        """Send a streamed request. Returns all events, after checking their numbering and the final `[DONE]`."""
        async with self._post(stream=True, **request) as answer:
            if answer.status != 200:
                raise Wrong(f"HTTP {answer.status}: {(await answer.text())[:200]}")
            body = await answer.read()
        return _events(body)

    async def json(self, **request: Any) -> tuple[int, dict[str, Any]]:
        """Send a request without `stream`. Returns the status and the decoded body."""
        async with self._post(**request) as answer:
            return answer.status, await answer.json()

    def _post(self, **request: Any) -> Any:
        return self.session.post(f"{self.url}/responses", json={"model": "demo", **request})

    @contextlib.asynccontextmanager
    async def open_stream(self, **request: Any) -> Any:
        async with self._post(stream=True, **request) as answer:
            yield answer


def _events(body: bytes) -> list[dict[str, Any]]:
    blocks = [block for block in body.split(b"\n\n") if block and not block.startswith(b":")]
    if not blocks or blocks[-1] != b"data: [DONE]":
        raise Wrong(f"the stream does not end with [DONE]: …{body[-120:]!r}")
    events = [json.loads(block.partition(b"\ndata: ")[2]) for block in blocks[:-1]]
    if [event["sequence_number"] for event in events] != list(range(len(events))):
        raise Wrong("sequence numbers have gaps")
    return events


def _completed(events: list[dict[str, Any]]) -> dict[str, Any]:
    if events[-1]["type"] != "response.completed":
        raise Wrong(f"ended with {events[-1]['type']}")
    response: dict[str, Any] = events[-1]["response"]
    return response


def _text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


async def _count(load: Load, seed: int) -> None:
    limit = 20 + seed % 180
    response = _completed(await load.stream(input=f"count to {limit}", store=False))
    if str(limit) not in _text(response):
        raise Wrong("the count is not complete")


async def _plain(load: Load, seed: int) -> None:
    status, response = await load.json(input=f"number {seed}", store=False)
    if status != 200 or str(seed) not in _text(response):
        raise Wrong(f"HTTP {status}")


async def _chain(load: Load, seed: int) -> None:
    first = _completed(await load.stream(input=f"the word is w{seed}"))
    load.stored.append((load.owner, first["id"]))
    status, second = await load.json(input="what did I say before?", previous_response_id=first["id"])
    if status != 200 or f"w{seed}" not in _text(second):
        raise Wrong("the second turn does not know the first")


async def _stranger(load: Load, seed: int) -> None:
    """Check that one owner cannot read, continue or delete another owner's responses."""
    others = [response_id for owner, response_id in load.stored if owner != load.owner]
    if not others:
        return
    response_id = others[seed % len(others)]
    for method in ("get", "delete"):
        async with load.session.request(method, f"{load.url}/responses/{response_id}") as answer:
            if answer.status != 404:
                raise Wrong(f"{method} of another owner's response: HTTP {answer.status}")
    status, answered = await load.json(input="what did I say before?", previous_response_id=response_id)
    if (status, answered["error"]["code"]) != (400, "previous_response_not_found"):
        raise Wrong(f"continuing another owner's response: HTTP {status}: {answered}")


_TOOLS = [{"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}]


async def _tool(load: Load, seed: int) -> None:
    response = _completed(await load.stream(input="weather in Paris and Rome", tools=_TOOLS, store=False))
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    if len(calls) != 2:
        raise Wrong(f"{len(calls)} calls")


async def _think(load: Load, seed: int) -> None:
    response = _completed(await load.stream(input="think", reasoning={"summary": "auto"}, store=False))
    if response["output"][0]["type"] != "reasoning":
        raise Wrong("no reasoning")


async def _large(load: Load, seed: int) -> None:
    status, _ = await load.json(input="x" * (200_000 + seed % 100_000), store=False)
    if status != 200:
        raise Wrong(f"HTTP {status}")


async def _fail(load: Load, seed: int) -> None:
    status, body = await load.json(input="error 500", store=False)
    if status != 500 or set(body["error"]) - {"request_id"} != {"message", "type", "param", "code"}:
        raise Wrong(f"HTTP {status}: {body}")


async def _bad(load: Load, seed: int) -> None:
    status, body = await load.json(input="x", temperature="hot")
    if status != 400 or body["error"]["param"] != "temperature":
        raise Wrong(f"HTTP {status}: {body}")


async def _break(load: Load, seed: int) -> None:
    """Send a request whose upstream breaks off. The client must get a broken stream or `response.failed`, never a
    success."""
    try:
        events = await load.stream(input="break", store=bool(seed % 2))
    except aiohttp.ClientPayloadError:
        return
    if events[-1]["type"] != "response.failed":
        raise Wrong(f"a broken answer ended with {events[-1]['type']}")


async def _leave(load: Load, seed: int) -> None:
    async with load.open_stream(input="count to 5000", store=bool(seed % 2)) as answer:
        await answer.content.readany()


async def _over(load: Load, response_id: str) -> dict[str, Any]:
    """Poll a background response until it has a final status. Returns the response."""
    while True:
        async with load.session.get(f"{load.url}/responses/{response_id}") as answer:
            response: dict[str, Any] = await answer.json()
        if answer.status != 200 or response["id"] != response_id:
            raise Wrong(f"HTTP {answer.status}: {response}")
        if response["status"] not in ("queued", "in_progress"):
            return response
        await asyncio.sleep(0.05)


async def _background(load: Load, seed: int) -> None:
    status, queued = await load.json(input=f"number {seed}", background=True)
    if status != 200 or queued["status"] != "queued":
        raise Wrong(f"HTTP {status}: {queued}")
    response = await _over(load, queued["id"])
    if response["status"] != "completed" or str(seed) not in _text(response):
        raise Wrong(f"ended as {response['status']}")


async def _resume(load: Load, seed: int) -> None:
    """Disconnect from a background stream in its middle, read the remaining events, and then read the whole stream
    again."""
    begin = b""
    async with load.open_stream(input=f"count to {20 + seed % 180}", background=True) as answer:
        while begin.count(b"\n\n") < 2 + seed % 7:
            begin += await answer.content.readany()
    begin = begin[: begin.rindex(b"\n\n") + 2]
    known = [json.loads(block.partition(b"\ndata: ")[2]) for block in begin.split(b"\n\n")[:-1] if block[:1] == b"e"]
    response_id, last = known[0]["response"]["id"], known[-1]["sequence_number"]

    async def read(query: str) -> bytes:
        async with load.session.get(f"{load.url}/responses/{response_id}?stream=true{query}") as answer:
            body = await answer.read()
        if answer.status != 200:
            raise Wrong(f"HTTP {answer.status}: {body[:200]!r}")
        return b"".join(part + b"\n\n" for part in body.split(b"\n\n")[:-1] if part[:1] != b":")

    rest, whole = await read(f"&starting_after={last}"), await read("")
    response = _completed(_events(whole))
    if not whole.endswith(rest) or len(_events(whole)) != len(known) + rest.count(b"\n\n") - 1:
        raise Wrong("what was resumed is not the rest")
    if await _over(load, response_id) != response:
        raise Wrong("the stored response is another one")


async def _cancel(load: Load, seed: int) -> None:
    """Cancel a background response at a random moment between its begin and its end."""
    async with load.open_stream(input="count to 2000", background=True) as answer:
        body = await answer.content.readuntil(b"\n\n")
        response_id = json.loads(body.partition(b"\ndata: ")[2])["response"]["id"]
        await asyncio.sleep(seed % 100 / 1000)
        async with load.session.post(f"{load.url}/responses/{response_id}/cancel") as told:
            cancelled = await told.json()
        rest = await answer.read()
    last = _events(body + rest)[-1]
    if cancelled.get("status") not in ("cancelled", "completed") or last["response"] != cancelled:
        raise Wrong(f"the stream ended with {last['type']}, the answer was {cancelled.get('status')}")
    if await _over(load, response_id) != cancelled:
        raise Wrong("it went on after it was cancelled")


async def _turn(socket: aiohttp.ClientWebSocketResponse, **request: Any) -> list[dict[str, Any]]:
    """Send one response request over a WebSocket. Returns its events."""
    await socket.send_json({"type": "response.create", "model": "demo", **request})
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in ("response.completed", "response.failed", "error"):
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Wrong(f"the socket ended: {message}")
        events.append(json.loads(message.data))
    if "sequence_number" in events[-1] and [one["sequence_number"] for one in events] != list(range(len(events))):
        raise Wrong("sequence numbers have gaps")
    return events


async def _socket(load: Load, seed: int) -> None:
    """Run a chain of unstored responses on one WebSocket connection. An error in one turn must not affect the
    others."""
    async with load.session.ws_connect(f"{load.url}/responses", compress=15 * (seed % 2)) as socket:
        first = _completed(await _turn(socket, input=f"the word is w{seed}", store=False))
        if (await _turn(socket, input="x", temperature="hot"))[-1]["type"] != "error":
            raise Wrong("a bad request was served")
        again = {"previous_response_id": first["id"], "store": False}
        second = _completed(await _turn(socket, input="what did I say before?", **again))
        if f"w{seed}" not in _text(second):
            raise Wrong("the second turn does not know the first")


async def _leave_socket(load: Load, seed: int) -> None:
    async with load.session.ws_connect(f"{load.url}/responses") as socket:
        request = {"model": "demo", "input": "count to 5000", "store": bool(seed % 2)}
        await socket.send_json({"type": "response.create", **request})
        for _ in range(seed % 5):
            await socket.receive()


async def _chat(load: Load, seed: int) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": f"number {seed}"}], "stream": bool(seed % 2)}
    async with load.session.post(f"{load.url}/chat/completions", json=body) as answer:
        text = await answer.text()
    if answer.status != 200 or str(seed) not in text:
        raise Wrong(f"HTTP {answer.status}: {text[:200]}")


async def _converse(load: Load, seed: int) -> None:
    """Run turns of a conversation, and abort one of them at random. The conversation must then contain nothing of that
    turn."""
    async with load.session.post(f"{load.url}/conversations", json={}) as answer:
        conversation = (await answer.json())["id"]
    _completed(await load.stream(input=f"the word is w{seed}", conversation=conversation))
    if seed % 3 == 0:
        async with load.open_stream(input="count to 5000", conversation=conversation) as answer:
            await answer.content.readany()
            if seed % 2 and (await load.json(input="x", conversation=conversation))[0] != 409:
                raise Wrong("two turns at once")
    while True:
        status, second = await load.json(input="what did I say before?", conversation=conversation)
        if status != 409:
            break
        await asyncio.sleep(0.02)
    if status != 200 or f"w{seed}" not in _text(second):
        raise Wrong(f"HTTP {status}: the second turn does not know the first")
    async with load.session.get(f"{load.url}/conversations/{conversation}/items") as answer:
        kinds = [item["role"] for item in (await answer.json())["data"]]
    if kinds != ["assistant", "user"] * 2:
        raise Wrong(f"the conversation holds {kinds}")
    if seed % 2:
        async with load.session.delete(f"{load.url}/conversations/{conversation}") as answer:
            if answer.status != 200:
                raise Wrong(f"HTTP {answer.status}: {await answer.text()}")


async def _prompt(load: Load, seed: int) -> None:
    template = {"instructions": "Be brief.", "input": "number {{number}}"}
    async with load.session.post(f"{load.url}/prompts", json=template) as answer:
        prompt = (await answer.json())["id"]
    reference = {"id": prompt, "variables": {"number": str(seed)}}
    status, response = await load.json(prompt=reference, store=False)
    if status != 200 or str(seed) not in _text(response):
        raise Wrong(f"HTTP {status}: {response}")
    async with load.session.delete(f"{load.url}/prompts/{prompt}") as answer:
        if answer.status != 200:
            raise Wrong(f"HTTP {answer.status}")


async def _file(load: Load, seed: int) -> None:
    """Upload a file, list it, read a range of it, send it to the model, and delete it."""
    data = b"%08d" % seed * (1 << (seed % 17))
    form = aiohttp.FormData()
    form.add_field("file", data, filename=f"{seed}.txt", content_type="text/plain")
    form.add_field("purpose", "user_data")
    async with load.session.post(f"{load.url}/files", data=form) as answer:
        made = await answer.json()
        if answer.status != 200 or made["bytes"] != len(data):
            raise Wrong(f"HTTP {answer.status}: {made}")
    one = f"{load.url}/files/{made['id']}"
    start = seed % len(data)
    async with load.session.get(f"{one}/content", headers={"range": f"bytes={start}-"}) as answer:
        if await answer.read() != data[start:]:
            raise Wrong("the file is another one")
    if len(data) < 4096:
        parts = [{"type": "input_file", "file_id": made["id"]}, {"type": "input_text", "text": "and?"}]
        status, response = await load.json(input=[{"role": "user", "content": parts}], store=False)
        if status != 200:
            raise Wrong(f"HTTP {status}: {response}")
    async with load.session.delete(one) as answer:
        if answer.status != 200:
            raise Wrong(f"HTTP {answer.status}: {await answer.text()}")


async def _leave_upload(load: Load, seed: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(seed % 8):
            yield b"x" * 65_536
        raise aiohttp.ClientPayloadError("the client has enough")

    kind = {"content-type": "multipart/form-data; boundary=b"}
    with contextlib.suppress(aiohttp.ClientError):
        async with load.session.post(f"{load.url}/files", data=body(), headers=kind):
            raise Wrong("half an upload was answered")


JOBS: tuple[tuple[str, Job, int], ...] = (
    ("count", _count, 8),
    ("json", _plain, 8),
    ("chain", _chain, 4),
    ("stranger", _stranger, 1),
    ("tools", _tool, 3),
    ("reasoning", _think, 3),
    ("large", _large, 1),
    ("upstream error", _fail, 1),
    ("bad request", _bad, 1),
    ("upstream breaks off", _break, 1),
    ("client leaves", _leave, 2),
    ("background", _background, 2),
    ("background, resumed", _resume, 2),
    ("background, cancelled", _cancel, 1),
    ("conversation", _converse, 3),
    ("prompt", _prompt, 1),
    ("socket", _socket, 3),
    ("client leaves socket", _leave_socket, 1),
    ("file", _file, 3),
    ("client leaves upload", _leave_upload, 1),
    ("chat", _chat, 1),
)


@dataclass
class _Gateway:
    """A gateway under load: its process, and the number of its restarts."""

    command: tuple[str, ...]
    log: Path
    pipe: ParentPipe
    process: Process
    stops: int = 0
    up: bool = True

    @classmethod
    async def start(cls, command: tuple[str, ...], log: Path, pipe: ParentPipe) -> _Gateway:
        process = await Process.start(log, *command, "--listen", "127.0.0.1:0", pipe=pipe)
        return cls(command, log, pipe, process)

    @property
    def url(self) -> str:
        """The gateway's base URL, which stays the same after a restart."""
        return self.process.ready

    async def restart(self) -> None:
        """Restart the gateway. Every other restart kills the process with SIGKILL, and the others send SIGTERM."""
        self.up, self.stops = False, self.stops + 1
        if self.stops % 2:
            self.process.handle.kill()
            await self.process.handle.wait()
        else:
            await self.process.stop()
        log = self.log.with_suffix(f".{self.stops}")
        self.process = await Process.start(log, *self.command, "--listen", urlsplit(self.url).netloc, pipe=self.pipe)
        self.up = True


async def _restarts(gateway: _Gateway, every: float, until: float) -> None:
    """Restart the gateway at intervals. Stop early enough that interrupted work can be resumed before the end of the
    run."""
    while time.monotonic() + every + _AFTER_RESTARTS < until:
        await asyncio.sleep(every)
        await gateway.restart()


async def _work(shared: Load, gateways: list[_Gateway], until: float, dice: random.Random) -> None:
    names = [job for job in JOBS for _ in range(job[2])]
    while time.monotonic() < until and len(shared.wrong) < 20:
        name, job, _ = dice.choice(names)
        seed = dice.randrange(1_000_000)
        gateway = dice.choice([one for one in gateways if one.up])
        stops, all_stops = gateway.stops, sum(one.stops for one in gateways)
        try:
            async with asyncio.timeout(_JOB_SECONDS):
                await job(replace(shared, url=gateway.url), seed)
        except (Wrong, aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError) as error:
            # Any process may run a background response, and reruns it from its beginning when the first process was
            # killed.
            anywhere = name.startswith("background") and sum(one.stops for one in gateways) != all_stops
            if gateway.stops != stops or anywhere:
                name = "cut off by a restart"
            else:
                shared.wrong.append(f"{name} ({seed}): {type(error).__name__}: {error}")
        shared.done[name] += 1


@dataclass
class _Watched:
    """A process under load, with its memory and open files at several times."""

    name: str
    pid: int
    memory: list[int] = field(default_factory=list)
    files_before: int = 0

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


async def _run(given: argparse.Namespace, folder: Path) -> int:
    with contextlib.closing(ParentPipe()) as pipe:
        upstream = await Process.start(
            folder / "upstream.log", sys.executable, "-m", "antiphon", "demo-upstream", "--listen", "127.0.0.1:0",
            pipe=pipe,
        )  # fmt: skip
        try:
            return await _run_against(given, folder, upstream.ready, pipe)
        finally:
            await upstream.stop()


async def _run_against(given: argparse.Namespace, folder: Path, upstream: str, pipe: ParentPipe) -> int:
    door = ("--door", "http") if given.mode == "http" else ("--mode", given.mode, "--transport", given.transport)
    settings = folder / "settings.yaml"
    # Each client has a separate key, so each has its own responses. Antiphon sends none of these keys to the upstream.
    settings.write_text(f"upstream: {{url: {json.dumps(upstream)}, auth: none}}\n")
    command = (
        *(sys.executable, "-m", "antiphon", "up", "--config", str(settings)),
        *("--data", str(folder / "data"), "--log-level", "warning", "--log-format", "json"),
        *("--workers", str(given.workers), *door),
    )
    gateways = [await _Gateway.start(command, folder / "log", pipe)]
    try:
        if given.restarts:
            gateways.append(await _Gateway.start(command, folder / "restarted.log", pipe))
        watched = [
            _Watched(cpu.program(pid) if cpu.program(pid).startswith("envoy") else "sidecar", pid)
            for pid in cpu.children(gateways[0].process.pid)
            if cpu.program(pid).startswith("envoy") or {"extproc", "serve"} & set(cpu.command_line(pid)[1:4])
        ]
        load = await _load(given, gateways, watched)
        problems = [
            *load.wrong,
            *await _left_behind(watched, given.streams),
            *await _unfinished(folder / "data"),
            *_uploads(folder / "data"),
        ]
    finally:
        for gateway in gateways:
            await gateway.process.stop()
    for gateway in gateways:
        if gateway.process.handle.returncode != 0:
            problems.append(f"antiphon ended with status {gateway.process.handle.returncode}")
    for log in (folder / "log", *folder.glob("restarted.*")):
        problems += _complaints(log)
    _report(given, load, gateways, watched, problems)
    return 1 if problems else 0


async def _load(given: argparse.Namespace, gateways: list[_Gateway], watched: list[_Watched]) -> Load:
    async with contextlib.AsyncExitStack() as open_sessions:
        connector = await open_sessions.enter_async_context(aiohttp.TCPConnector(limit=0))

        async def client(name: str) -> aiohttp.ClientSession:
            session = aiohttp.ClientSession(
                connector=connector, connector_owner=False, headers={"authorization": f"Bearer key-of-{name}"}
            )
            return await open_sessions.enter_async_context(session)

        load = Load(gateways[0].url, await client("all"), "all")
        await _count(load, 1)
        for process in watched:
            process.files_before = process.files()
        until = time.monotonic() + given.seconds
        owners = [replace(load, session=await client(name), owner=name) for name in map(str, range(given.streams))]
        workers = [
            asyncio.ensure_future(_work(owner, gateways, until, random.Random(f"{given.seed}-{owner.owner}")))
            for owner in owners
        ]
        if given.restarts:
            workers.append(asyncio.ensure_future(_restarts(gateways[1], given.restarts, until)))
        while not all(worker.done() for worker in workers):
            for process in watched:
                process.memory.append(cpu.rss_bytes([process.pid]))
            await asyncio.wait(workers, timeout=max(0.25, given.seconds / 200))
        for worker in workers:
            worker.result()
    return load


async def _left_behind(watched: list[_Watched], streams: int) -> list[str]:
    """Compare each process with its earlier state. Returns a line for each leak of open files or memory."""
    problems = []
    until = time.monotonic() + _SETTLE_SECONDS
    # The pool keeps connections to the upstream for the next request. A leak would grow with the number of jobs, not
    # with the number of streams.
    allowed = 40 + 2 * streams
    for process in watched:
        while process.files() > process.files_before + allowed and time.monotonic() < until:
            await asyncio.sleep(0.1)
        if process.files() > process.files_before + allowed:
            problems.append(f"{process.name}: {process.files_before} open files became {process.files()}")
        middle = process.memory[len(process.memory) // 3 : len(process.memory) // 2]
        last = process.memory[-max(1, len(process.memory) // 6) :]
        if middle and statistics.median(last) > statistics.median(middle) * _GROWTH + _SLACK:
            problems.append(
                f"{process.name}: memory grew from {statistics.median(middle) / _MIB:.0f} "
                f"to {statistics.median(last) / _MIB:.0f} MiB"
            )
    return problems


async def _unfinished(data: Path) -> list[str]:
    """Lines for background responses that never ended, and for conversations that are still locked."""
    left = (
        "SELECT (SELECT count(*) FROM jobs), "
        "(SELECT count(*) FROM responses WHERE status IN ('queued', 'in_progress')), "
        "(SELECT count(*) FROM conversations WHERE locked_by IS NOT NULL AND locked_until > 1000 * unixepoch())"
    )
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        with contextlib.closing(sqlite3.connect(data / SESSIONS_FILE, timeout=10)) as database:
            jobs, responses, locked = database.execute(left).fetchone()
        if not jobs and not responses and not locked:
            return []
        if time.monotonic() > until:
            return [f"{jobs} jobs and {responses} responses are not over, {locked} conversations are locked"]
        await asyncio.sleep(0.1)


def _uploads(data: Path) -> list[str]:
    """Lines for remains of interrupted uploads and for contents that were not deleted, after all clients have
    disconnected."""
    with contextlib.closing(sqlite3.connect(data / SESSIONS_FILE, timeout=10)) as database:
        (kept,) = database.execute("SELECT count(*) FROM files").fetchone()
    found = [path for path in (data / FILES_FOLDER).rglob("*") if path.is_file()]
    return [] if len(found) == kept else [f"{len(found)} contents for {kept} files"]


def _complaints(log: Path) -> list[str]:
    """The errors in the log, each kind once; of a traceback the last lines."""
    kinds: dict[str, str] = {}
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if "Traceback" in line:
            end = next((at for at in range(number + 1, len(lines)) if not lines[at].startswith(" ")), number)
            kinds.setdefault(lines[end][:80], " | ".join(lines[max(number, end - 8) : end + 1]))
        elif '"level": "error"' in line or '"level":"error"' in line:
            kinds.setdefault(line[:80], line[:400])
    return [f"log: {line}" for line in kinds.values()]


def _report(
    given: argparse.Namespace, load: Load, gateways: list[_Gateway], watched: list[_Watched], problems: list[str]
) -> None:
    total = sum(load.done.values())
    print(f"{total} jobs in {given.seconds:g} s, {given.streams} at once, {given.mode}, {given.transport}:")
    for name, count in sorted(load.done.items()):
        print(f"  {count:7} {name}")
    if given.restarts:
        print(f"  {gateways[1].stops} restarts of one of two gateways, every other by kill -9")
    for process in watched:
        memory = [size / _MIB for size in process.memory]
        print(f"  {process.name}: {memory[0]:.0f} MiB at first, {max(memory):.0f} at most, {memory[-1]:.0f} at the end")
    for problem in problems[:30]:
        print(f"  WRONG {problem}")
    print("soak: all good" if not problems else f"soak: {len(problems)} problems")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if the run found no problem."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab soak", description="Mixed load for a while; nothing may be left."
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--streams", type=int, default=24, help="jobs at once (default 24)")
    parser.add_argument("--mode", default="auto", choices=("auto", "relay", "drive", "http"))
    parser.add_argument("--transport", default="http2", choices=("http2", "grpcio"))
    parser.add_argument("--workers", type=int, default=1, help="sidecar processes (default 1)")
    parser.add_argument(
        "--restarts", type=float, default=0.0, metavar="SECONDS",
        help="a second gateway on the same data, which goes down and up again so often",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="which jobs come in which order")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="antiphon-soak-") as folder:
        return asyncio.run(_run(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
