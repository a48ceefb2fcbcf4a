"""Sends clients' requests to several replicas: a streamed turn, and a turn that is retried as SDKs retry.

Lives here: requests and the expected answers. Not here: the choice of requests, which each run makes.

Invariant: every request has a timeout (`HUNG_AFTER`).
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from tests.support.streams import TERMINAL, Cut, Failed, events, output_text

T = TypeVar("T")

HUNG_AFTER = 120.0
_ATTEMPT_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 4.0


@asynccontextmanager
async def sessions() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session without a limit of connections and without timeouts."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


def said(number: int, turn: int) -> str:
    """The user message of a turn. Each turn of a run has a different message."""
    return f"talk {number} turn {turn}"


def answer_to(text: str, turn: int) -> str:
    """The answer of the demo's chat server if it got all earlier messages of the conversation."""
    return f"You said: {text}" + (f" (I was sent {2 * turn + 1} messages.)" if turn else "")


@dataclass
class Turn:
    """A completed response: the time of its last event, and the task that reads the rest of the stream."""

    response: dict[str, Any]
    at: float
    rest: asyncio.Task[None] | None = None


async def streamed(session: aiohttp.ClientSession, url: str, body: dict[str, Any], **headers: str) -> Turn:
    """Request a streamed response and read it up to its terminal event. Raises `Failed` (whose text begins with the
    status) and `Cut`."""
    got = await session.post(f"{url}/v1/responses", json={**body, "stream": True}, headers=headers)
    try:
        if got.status != 200:
            raise Refused(got.status, await got.text(), got.headers.get("retry-after"))
        reading = events(got)
        async for event in reading:
            if event is not None and event["type"] in TERMINAL:
                turn = Turn(event["response"], time.monotonic())
                if event["type"] != "response.completed":
                    raise Failed(f"{event['type']}: {event['response'].get('error')}")
                turn.rest = asyncio.create_task(_rest(got, reading))
                return turn
        raise Cut("a stream ended before its response")
    except BaseException:
        got.close()
        raise


async def _rest(got: aiohttp.ClientResponse, reading: AsyncIterator[Any]) -> None:
    try:
        async for _ in reading:
            pass
        got.release()
    except Cut:
        got.close()


class Refused(Failed):
    """Raised for an answer with a status other than 200."""

    def __init__(self, status: int, text: str, retry_after: str | None) -> None:
        super().__init__(f"{status} {text[:300]}")
        self.status = status
        self.retry_after = float(retry_after) if retry_after else None

    @property
    def again(self) -> bool:
        """Whether an SDK retries a request with this answer."""
        return self.status in (408, 409, 429) or self.status >= 500


async def insisted(
    ask: Callable[[int], Awaitable[T]], chance: random.Random, within: float = HUNG_AFTER
) -> tuple[T, int]:
    """Call `ask` with the number of the attempt until it succeeds. Returns the result and the number of attempts.
    Retries the errors that SDKs retry, for `within` seconds. Raises `Failed`."""
    end, pause, last = time.monotonic() + within, _FIRST_PAUSE, "nothing"
    attempt = 0
    while time.monotonic() < end:
        wait = pause
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                return await ask(attempt), attempt + 1
        except Refused as refused:
            if not refused.again:
                raise
            last, wait = str(refused), min(refused.retry_after or pause, _LONGEST_PAUSE)
        except TimeoutError:
            last = f"no answer within {_ATTEMPT_SECONDS:g} s"
        except (Failed, Cut, aiohttp.ClientError, OSError) as failed:
            last = f"{type(failed).__name__}: {failed}"
        attempt += 1
        pause = min(2 * pause, _LONGEST_PAUSE)
        await asyncio.sleep(wait * (0.75 + chance.random() / 4))
    raise Failed(f"hung: {attempt} attempts, the last: {last[:300]}")


async def read(session: aiohttp.ClientSession, url: str, path: str) -> Any:
    """Send a GET. Returns the decoded JSON. Raises `Refused`."""
    async with session.get(f"{url}{path}") as got:
        if got.status != 200:
            raise Refused(got.status, await got.text(), got.headers.get("retry-after"))
        return await got.json()


async def at_once(work: Sequence[T], clients: int, do: Callable[[T], Awaitable[None]], what: str = "") -> None:
    """Process all of `work` with `clients` concurrent tasks. With `what`, print the progress at each tenth."""
    waiting, done = iter(work), 0

    async def client() -> None:
        nonlocal done
        for one in waiting:
            await do(one)
            done += 1
            if what and done * 10 // len(work) > (done - 1) * 10 // len(work):
                print(f"{time.strftime('%H:%M:%S')} {done} of {len(work)} {what}", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


def is_whole(response: dict[str, Any], expected: str) -> bool:
    """Whether this is the completed response with this text."""
    return response.get("status") == "completed" and output_text(response) == expected
