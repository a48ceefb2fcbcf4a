"""Simulates the clients of a rollout: their requests, the expected answers, and a ledger of the failures.

Lives here: the kinds of clients. Not here: streams (`tests/support/streams.py`), replicas (`replicas.py`), the restarts
(`course.py`).

No client retries, so each refusal is a failure. Clients react to a draining process as the API specifies. A follower
whose stream ends without `[DONE]` continues with `starting_after`. A client that gets 1001 on a WebSocket between two
responses opens a new connection.

Invariant: every request has a timeout (`patience`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.streams import Cut, Failed, events, output_text

_UPLOAD_PARTS, _UPLOAD_PART, _UPLOAD_PAUSE = 10, 16 * 1024, 0.2
_BOUNDARY = "rollout-boundary"


@dataclass
class Seen:
    """The observations of the clients of one kind. `gaps`: seconds from the end of one process's answer to the first
    word from another process."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass
class Clients:
    """All clients of the service at `url`. `words`: the number of words of an answer, which decides its duration.
    `long_words`: the same for an answer that takes longer than a drain. `patience`: seconds after which a request
    counts as hung."""

    url: str
    words: int
    long_words: int
    session: aiohttp.ClientSession
    patience: float = 120.0
    stopping: bool = False
    seen: dict[str, Seen] = field(default_factory=dict)
    stored: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=200))
    """Ids and texts of responses that the service acknowledged."""

    async def run(self, kind: str, client: Callable[[Seen], Awaitable[None]]) -> None:
        """Run one client repeatedly until the run is over."""
        seen = self.seen.setdefault(kind, Seen())
        while not self.stopping:
            seen.asked += 1
            try:
                async with asyncio.timeout(self.patience):
                    await client(seen)
            except Cut as cut:
                seen.cut.append(str(cut))
            except TimeoutError:
                seen.failed.append(f"hung for {self.patience:g} s")
            except (Failed, KeyError, ValueError, aiohttp.ClientError, OSError) as failed:
                seen.failed.append(f"{type(failed).__name__}: {failed}"[:300])

    # Kinds of clients.

    async def stream(self, seen: Seen) -> None:
        """Request a streamed response, and then a second one that continues it on any replica."""
        first = await self._streamed(self.words)
        await self._streamed(self.words, previous_response_id=first)
        # The client sends two requests, and its caller already counted one.
        seen.asked += 1

    async def crud(self, seen: Seen) -> None:
        """Create, change and delete a conversation and its items, and read a response that another process stored."""
        made = await self._json("POST", "/v1/conversations", {"metadata": {"a": "b"}})
        where = f"/v1/conversations/{made['id']}"
        item = {"type": "message", "role": "user", "content": "kept"}
        await self._json("POST", f"{where}/items", {"items": [item]})
        items = await self._json("GET", f"{where}/items")
        if [one["content"][0]["text"] for one in items["data"]] != ["kept"]:
            raise Failed(f"a conversation holds {items}")
        await self._json("POST", where, {"metadata": {"a": "c"}})
        await self._json("DELETE", where)
        seen.asked += 4
        if self.stored:
            response_id, text = self.stored[0]
            self.stored.rotate(1)
            read = await self._json("GET", f"/v1/responses/{response_id}")
            seen.asked += 1
            if output_text(read) != text:
                raise Failed(f"{response_id} was {text!r} and is {output_text(read)!r}")
        await asyncio.sleep(0.05)

    async def upload(self, seen: Seen) -> None:
        """Upload a file slowly, read it and delete it."""
        content = bytes(_UPLOAD_PART) * _UPLOAD_PARTS
        headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
        async with self.session.post(f"{self.url}/v1/files", data=_multipart(content), headers=headers) as got:
            made = await _ok(got)
        where = f"/v1/files/{made['id']}"
        async with self.session.get(f"{self.url}{where}/content") as got:
            if got.status != 200 or await got.read() != content:
                raise Failed(f"a file's content: {got.status}")
        await self._json("DELETE", where)
        seen.asked += 2

    async def follow(self, seen: Seen) -> None:
        """Start a background response and follow it to its end, over several processes if needed."""
        await self._follow(seen, self.words)

    async def follow_long(self, seen: Seen) -> None:
        """Follow a background response that takes longer than any drain. The draining process returns the response to
        the queue, and another process reruns it."""
        await self._follow(seen, self.long_words)

    async def websocket(self, seen: Seen) -> None:
        """Request responses on one WebSocket connection, with pauses, until the server closes the connection."""
        ended = 0.0
        async with self.session.ws_connect(f"{self.url}/v1/responses", max_msg_size=0) as socket:
            while not self.stopping:
                asking = {"type": "response.create", "model": "demo", "input": f"count to {self.words // 2}"}
                seen.asked += 1
                # The server may have closed the connection during the pause. The code below reads the close frame.
                with contextlib.suppress(aiohttp.ClientConnectionResetError):
                    await socket.send_json(asking)
                if not await self._turn(socket):
                    ended = time.monotonic()
                    break
                await asyncio.sleep(0.1)
        if ended and not self.stopping:
            async with self.session.ws_connect(f"{self.url}/v1/responses"):
                seen.gaps.append(time.monotonic() - ended)

    # Helpers.

    async def _streamed(self, words: int, **fields: Any) -> str:
        asking = {"model": "demo", "input": f"count to {words}", "stream": True, **fields}
        async with self.session.post(f"{self.url}/v1/responses", json=asking) as got:
            if got.status != 200:
                raise Failed(f"{got.status} {await got.text()}")
            told, done = [], False
            async for event in events(got):
                done = event is None
                if event is not None:
                    told.append(event)
        last = told[-1] if told else {}
        if not done:
            raise Cut(f"a stream ended after {last.get('type')}")
        response = _completed(last, words)
        self.stored.append((response["id"], output_text(response)))
        return str(response["id"])

    async def _follow(self, seen: Seen, words: int) -> None:
        asking = {"model": "demo", "input": f"count to {words}", "stream": True, "background": True}
        last, response_id, done, ended = {}, "", False, 0.0
        after = -1
        while not done:
            if response_id:
                where = f"{self.url}/v1/responses/{response_id}?stream=true&starting_after={after}"
                request = self.session.get(where)
                seen.asked += 1
            else:
                request = self.session.post(f"{self.url}/v1/responses", json=asking)
            async with request as got:
                if got.status != 200:
                    raise Failed(f"{got.status} {await got.text()}")
                async for event in events(got):
                    if event is None:
                        done = True
                        break
                    if ended:
                        seen.gaps.append(time.monotonic() - ended)
                        ended = 0.0
                    if event["sequence_number"] <= after:
                        raise Failed(f"event {event['sequence_number']} came after {after}")
                    after, last = event["sequence_number"], event
                    response_id = response_id or event["response"]["id"]
            ended = ended or time.monotonic()
            if not response_id:
                raise Cut("a followed stream ended before its first event")
        _completed(last, words)

    async def _turn(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        """Read one response to its end. Returns False if the server closed the connection before the response began."""
        begun = False
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                # Use the code of the received close frame. aiohttp's own code differs if it could not answer that
                # frame.
                code = message.data if message.type is aiohttp.WSMsgType.CLOSE else socket.close_code
                if begun or code != aiohttp.WSCloseCode.GOING_AWAY:
                    raise Cut(f"a WebSocket ended with {code}, in a response: {begun}")
                return False
            begun, event = True, json.loads(message.data)
            if event["type"] == "error":
                raise Failed(str(event["error"]))
            if event["type"] in ("response.completed", "response.failed", "response.incomplete"):
                _completed(event, self.words // 2)
                return True

    async def _json(self, method: str, path: str, body: Any = None) -> Any:
        async with self.session.request(method, f"{self.url}{path}", json=body) as got:
            return await _ok(got)


async def _ok(got: aiohttp.ClientResponse) -> Any:
    if got.status != 200:
        raise Failed(f"{got.method} {got.url.path}: {got.status} {await got.text()}")
    return await got.json()


def _completed(event: dict[str, Any], words: int) -> dict[str, Any]:
    """The response of the last event, which must have all words."""
    expected = " ".join(str(number) for number in range(1, words + 1))
    if event.get("type") != "response.completed" or output_text(event["response"]) != expected:
        raise Failed(f"the last event is {json.dumps(event)[:300]}")
    response: dict[str, Any] = event["response"]
    return response


async def _multipart(content: bytes) -> AsyncIterator[bytes]:
    yield (
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="f.bin"\r\n'
        "content-type: application/octet-stream\r\n\r\n"
    ).encode()
    for number in range(_UPLOAD_PARTS):
        yield content[number * _UPLOAD_PART : (number + 1) * _UPLOAD_PART]
        await asyncio.sleep(_UPLOAD_PAUSE)
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()
