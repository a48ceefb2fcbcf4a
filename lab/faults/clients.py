"""Simulates the clients of a run: their requests, how they disconnect, and the answer to each request.

Lives here: one request and its outcome, the kinds of clients, and the ledger of acknowledged turns. Not here: faults
and phases (`run.py`), gateways.

Invariant: every request has a timeout (`HUNG_AFTER`). A turn counts as acknowledged only if its client read that the
response is complete (or, in the background, queued).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from lab.faults.upstream import KINDS

HUNG_AFTER = 60.0
_CHECKS_AT_ONCE = 16
_OURS = ("The server had an error", "The request ended without a response", "The request could not be")


@dataclass
class Ledger:
    """What the clients saw: counts, acknowledged turns, and observations that are faults of the gateway."""

    done: Counter[str] = field(default_factory=Counter)
    hung: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    turns: dict[str, str] = field(default_factory=dict)
    """Ids of responses that were acknowledged as complete, with the word that each must contain."""
    jobs: dict[str, str] = field(default_factory=dict)
    conversations: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """For each conversation the acknowledged words, in order."""


@dataclass
class Outcome:
    """The outcome of a request. `how` is a status of the response, `error`, `cut` or `hung`."""

    how: str
    status: int = 0
    id: str = ""
    text: str = ""
    error: dict[str, Any] = field(default_factory=dict)


async def _lines(got: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The lines of a body, without a limit on their length."""
    while line := await got.content.readline(max_line_length=1 << 26):
        yield line


class Clients:
    """The clients of a gateway. `url` returns the gateway's current URL, or None while it is down."""

    def __init__(
        self,
        url: Callable[[], str | None],
        ledger: Ledger,
        seed: int,
        *,
        kinds: tuple[tuple[str, str, tuple[bool, ...]], ...] = KINDS,
        hung_after: float = HUNG_AFTER,
    ) -> None:
        """`kinds`: the models of broken upstreams. `hung_after`: seconds until a request counts as hung."""
        self._url = url
        self.kinds = kinds
        self._hung_after = hung_after
        self.ledger = ledger
        self._random = random.Random(seed)
        self._words = 0
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 20,
        )
        self.stopping = False

    async def aclose(self) -> None:
        await self._session.close()

    async def run(self, client: Callable[[random.Random], Any]) -> None:
        """Run one kind of client repeatedly until the run stops."""
        mine = random.Random(self._random.random())
        while not self.stopping:
            if self._url() is None:
                await asyncio.sleep(0.1)
                continue
            try:
                await client(mine)
            except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError):
                self.ledger.done["connection refused or broken"] += 1
                await asyncio.sleep(0.2)
            except TimeoutError:
                self.ledger.hung.append(client.__name__)
            except Exception as odd:
                # An unexpected error in a client counts as a fault, until a developer has examined it.
                self.ledger.wrong.append(f"{client.__name__}: {type(odd).__name__} {str(odd)[:200]}")
            await asyncio.sleep(0.02)

    # One request.

    async def ask(self, model: str, *, stream: bool, word: str, **fields: Any) -> Outcome:
        """Send a request and read its answer to the end. Returns the outcome."""
        body = {"model": model, "input": f"echo:{word}", "stream": stream, **fields}
        outcome = Outcome("cut")
        try:
            async with (
                asyncio.timeout(self._hung_after),
                self._session.post(f"{self._url()}/v1/responses", json=body) as got,
            ):
                outcome.status = got.status
                if got.content_type == "text/event-stream":
                    await self._read_stream(got, outcome, model)
                else:
                    self._read_whole(await got.read(), outcome, model)
        except TimeoutError:
            outcome.how = "hung"
            self.ledger.hung.append(f"{model} stream={stream} id={outcome.id}")
        except (aiohttp.ClientError, OSError):
            outcome.how = "cut"
        self._judge_error(model, outcome)
        return outcome

    async def _read_stream(self, got: aiohttp.ClientResponse, outcome: Outcome, model: str) -> None:
        number, last, done = -1, "", False
        async for line in _lines(got):
            if line == b"data: [DONE]\n":
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["sequence_number"] != number + 1:
                    self.ledger.wrong.append(f"{model}: event {event['sequence_number']} follows {number}")
                number, last = event["sequence_number"], event["type"]
                if isinstance(response := event.get("response"), dict):
                    outcome.id = response["id"]
                    self._take(response, outcome)
        if not done or last not in ("response.completed", "response.failed", "response.incomplete"):
            # A stream that breaks off raises, so this stream ended properly.
            self.ledger.wrong.append(f"{model}: a stream ends after {last or 'nothing'}, as if it were whole")
            outcome.how = "cut"

    def _read_whole(self, data: bytes, outcome: Outcome, model: str) -> None:
        try:
            value = json.loads(data)
        except ValueError:
            self.ledger.wrong.append(f"{model}: HTTP {outcome.status}, no JSON: {data[:100]!r}")
            return
        if outcome.status == 200:
            outcome.id = value["id"]
            self._take(value, outcome)
        else:
            outcome.how, outcome.error = "error", value.get("error") or {}
            if set(outcome.error) - {"request_id"} != {"message", "type", "param", "code"}:
                self.ledger.wrong.append(f"{model}: HTTP {outcome.status}, no error object: {data[:100]!r}")

    @staticmethod
    def _take(response: dict[str, Any], outcome: Outcome) -> None:
        outcome.how = response["status"]
        outcome.error = response.get("error") or {}
        outcome.text = "".join(
            part.get("text", "")
            for item in response.get("output") or []
            if item["type"] == "message"
            for part in item["content"]
        )

    def _judge_error(self, model: str, outcome: Outcome) -> None:
        message = str(outcome.error.get("message") or "")
        if message.startswith(_OURS) or outcome.error.get("code") == "storage_failed" or "Traceback" in message:
            self.ledger.own.append(f"{model}: HTTP {outcome.status} {outcome.error}"[:300])

    def word(self) -> str:
        """A new word that no other request uses."""
        self._words += 1
        return f"w{self._words}z"

    async def get(self, path: str) -> tuple[int, Any]:
        """Send a GET. Returns the status and the decoded JSON."""
        async with asyncio.timeout(self._hung_after), self._session.get(f"{self._url()}{path}") as got:
            return got.status, json.loads(await got.read())

    # Kinds of clients.

    async def broken_upstreams(self, mine: random.Random) -> None:
        """Call each kind of broken upstream, in this client's random order."""
        model, expected, streams = mine.choice(self.kinds)
        stream, word = mine.choice(streams), self.word()
        outcome = await self.ask(model, stream=stream, word=word, store=mine.random() < 0.7)
        self.ledger.done[f"upstream {expected}: {outcome.how}"] += 1
        complete = outcome.how == "completed"
        if complete and expected == "bad":
            self.ledger.wrong.append(f"{model} stream={stream}: completed")
        if complete and expected == "good" and word not in outcome.text:
            self.ledger.wrong.append(f"{model} stream={stream}: completed with {outcome.text[:60]!r}, not {word}")
        if expected == "good" and not complete and outcome.how != "cut":
            self.ledger.done[f"good upstream, no success: {outcome.status} {outcome.error.get('code')}"] += 1

    async def leaves(self, mine: random.Random) -> None:
        """Disconnect at random moments, also in the middle of a conversation."""
        fields: dict[str, Any] = {}
        if mine.random() < 0.3:
            async with self._session.post(f"{self._url()}/v1/conversations", json={}) as got:
                if got.status == 200:
                    fields["conversation"] = (await got.json())["id"]
        if mine.random() < 0.2:
            fields["background"] = True
        model = mine.choice(("ok", "x:slow:1.5", "x:delay:1", "x:silent", "x:burst", "x:never"))
        body = {"model": model, "input": "echo:left", "stream": mine.random() < 0.7, **fields}
        asking = asyncio.ensure_future(self._drain(body))
        await asyncio.wait({asking}, timeout=mine.random() ** 2 * 1.5)
        asking.cancel()
        await asyncio.wait({asking})
        self.ledger.done["left"] += 1

    async def _drain(self, body: dict[str, Any]) -> None:
        try:
            async with self._session.post(f"{self._url()}/v1/responses", json=body) as got:
                await got.read()
        except (aiohttp.ClientError, OSError):
            pass

    async def reads_slowly(self, mine: random.Random) -> None:
        """Read a large answer in small reads, and then stop reading."""
        place = urlsplit(str(self._url()))
        body = json.dumps({"model": mine.choice(("x:burst", "x:text-for-ever")), "input": "echo:slow", "stream": True})
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 12)
        try:
            head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            for _ in range(mine.randrange(5, 30)):
                async with asyncio.timeout(10):
                    if not await reader.read(512):
                        break
                await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()
        self.ledger.done["read slowly"] += 1

    async def floods(self, mine: random.Random) -> None:
        """Send many small requests concurrently. Some of their answers never end."""
        models = ["ok"] * 36 + ["x:comments-for-ever", "x:empty-for-ever", "x:reset-at-once", "x:burst"]
        asked = (self.ask(model, stream=mine.random() < 0.5, word=self.word(), store=False) for model in models)
        for outcome in await asyncio.gather(*asked):
            self.ledger.done[f"flood: {outcome.how}"] += 1
        await asyncio.sleep(3)

    async def takes_turns(self, mine: random.Random) -> None:
        """Run a few turns of a chain or of a conversation. Each acknowledged turn must exist at the end of the run."""
        conversation = previous = None
        if mine.random() < 0.5:
            async with (
                asyncio.timeout(self._hung_after),
                self._session.post(f"{self._url()}/v1/conversations", json={}) as got,
            ):
                if got.status != 200:
                    return
                conversation = (await got.json())["id"]
        for _ in range(5):
            word = self.word()
            more = {"conversation": conversation} if conversation else {"previous_response_id": previous}
            outcome = await self.ask("ok", stream=mine.random() < 0.5, word=word, **more)
            self.ledger.done[f"turn: {outcome.how}"] += 1
            if outcome.how != "completed":
                await asyncio.sleep(0.2)
                continue
            if word not in outcome.text:
                self.ledger.wrong.append(f"turn {outcome.id}: {outcome.text[:60]!r}, not {word}")
            self.ledger.turns[outcome.id] = word
            previous = outcome.id
            if conversation:
                self.ledger.conversations[conversation].append(word)

    async def works_in_the_background(self, mine: random.Random) -> None:
        """Queue a background response, follow it, disconnect and reconnect. The response must be complete at the end of
        the run."""
        word = self.word()
        body = {"model": mine.choice(("ok", "x:slow:1.5")), "input": f"echo:{word}", "background": True}
        stream = mine.random() < 0.6
        seen: list[int] = []
        response_id = ""
        try:
            async with (
                asyncio.timeout(self._hung_after),
                self._session.post(f"{self._url()}/v1/responses", json={**body, "stream": stream}) as got,
            ):
                if got.status != 200:
                    self.ledger.done[f"background: HTTP {got.status}"] += 1
                    return
                if not stream:
                    response_id = (await got.json())["id"]
                async for line in _lines(got):
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        seen.append(event["sequence_number"])
                        response_id = response_id or event["response"]["id"]
                        self.ledger.jobs[response_id] = word
                        if mine.random() < 0.3:
                            break
            if response_id:
                self.ledger.jobs[response_id] = word
            self.ledger.done["background: queued"] += 1
            if stream and seen:
                await self._resume(response_id, seen)
        except TimeoutError:
            self.ledger.hung.append(f"background id={response_id}")

    async def _resume(self, response_id: str, seen: list[int]) -> None:
        query = f"?stream=true&starting_after={seen[-1]}"
        async with (
            asyncio.timeout(self._hung_after),
            self._session.get(f"{self._url()}/v1/responses/{response_id}{query}") as got,
        ):
            if got.status != 200:
                return
            async for line in _lines(got):
                if line.startswith(b"data: {"):
                    number = json.loads(line[6:])["sequence_number"]
                    if number <= seen[-1]:
                        self.ledger.wrong.append(f"background {response_id}: event {number} after {seen[-1]}")
                    seen.append(number)
        self.ledger.done["background: resumed"] += 1

    # At the end of the run.

    async def check(self) -> None:
        """Check that every acknowledged response and conversation turn exists."""
        ledger = self.ledger
        checks = [
            *(self._check_turn(*each) for each in ledger.turns.items()),
            *(self._check_job(*each) for each in ledger.jobs.items()),
            *(self._check_conversation(*each) for each in ledger.conversations.items()),
        ]
        places = asyncio.Semaphore(_CHECKS_AT_ONCE)

        async def one(check: Coroutine[Any, Any, None]) -> None:
            async with places:
                await check

        await asyncio.gather(*map(one, checks))

    async def _check_turn(self, response_id: str, word: str) -> None:
        status, value = await self.get(f"/v1/responses/{response_id}")
        if status != 200 or value["status"] != "completed" or word not in json.dumps(value["output"]):
            self.ledger.lost.append(f"turn {response_id}: HTTP {status} {value.get('status')}")

    async def _check_job(self, response_id: str, word: str) -> None:
        value = await self._ended(response_id)
        if value.get("status") != "completed" or word not in json.dumps(value["output"]):
            self.ledger.lost.append(f"background {response_id}: {value.get('status')} {value.get('error')}")

    async def _check_conversation(self, conversation: str, words: list[str]) -> None:
        status, value = await self.get(f"/v1/conversations/{conversation}/items?order=asc&limit=100")
        texts = [json.dumps(item.get("content")) for item in value.get("data", ())]
        there = [text for text in texts if "echo:" in text]
        places = [next((at for at, text in enumerate(there) if f"echo:{word}" in text), -1) for word in words]
        if status != 200 or -1 in places or places != sorted(places):
            self.ledger.lost.append(f"conversation {conversation}: HTTP {status}, places {places}")
        if len(set(there)) != len(there):
            self.ledger.wrong.append(f"conversation {conversation}: a question stands in it twice")

    async def _ended(self, response_id: str) -> dict[str, Any]:
        async with asyncio.timeout(self._hung_after):
            while True:
                status, value = await self.get(f"/v1/responses/{response_id}")
                if status != 200 or value["status"] not in ("queued", "in_progress"):
                    found: dict[str, Any] = value
                    return found
                await asyncio.sleep(0.2)
