"""Runs conversations of several turns on the replicas: clients retry each turn until it is acknowledged, and the run
reads all turns at the end.

Lives here: the conversations (talks), the clients' observations, and the final checks. Not here: the faults of replicas
and state (the runs), single requests (`clients.py`).

Half of the talks use a conversation object, and the others `previous_response_id`. Each turn has an `Idempotency-Key`.
A client retries a turn at any replica until it read `response.completed`, which is the acknowledgement.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab.scale.clients import Refused, Turn, answer_to, at_once, insisted, is_whole, read, said, sessions, streamed
from lab.scale.replicas import Replicas
from tests.support.streams import Failed


@dataclass
class Talk:
    """One talk with its acknowledged turns: their texts, and the ids of the responses."""

    number: int
    conversation: str = ""
    acknowledged: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Seen:
    """The observations of all clients. `at`: the begin and the acknowledgement of each turn (by `time.monotonic`).
    `attempts`: all requests. `lost`: evidence of lost turns, possibly several per turn. `gone`: acknowledged responses
    that do not exist."""

    attempts: int = 0
    lasted: list[float] = field(default_factory=list)
    at: list[tuple[float, float]] = field(default_factory=list)
    hung: int = 0
    lost: int = 0
    gone: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Talks:
    """All talks of a run. `length`: the turns of one talk. `stopping`: when true, no further turn begins. `what`: the
    label of the progress output, or empty for none."""

    replicas: Replicas
    turns: int
    length: int
    clients: int
    chance: random.Random
    seen: Seen = field(default_factory=Seen)
    stopping: bool = False
    what: str = "talks"

    def __post_init__(self) -> None:
        self.talks = [Talk(number) for number in range(max(1, self.turns // self.length))]

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged turns so far."""
        return sum(len(talk.acknowledged) for talk in self.talks)

    async def all(self) -> None:
        """Run all talks."""
        async with sessions() as session:
            await at_once(self.talks, self.clients, lambda talk: _talk(session, self, talk), self.what)

    async def check(self) -> None:
        """Read every acknowledged response and conversation."""
        async with sessions() as session:
            await at_once(self.talks, self.clients, lambda talk: _check(session, self, talk))


async def _talk(session: aiohttp.ClientSession, run: Talks, talk: Talk) -> None:
    rests: list[asyncio.Task[None]] = []
    try:
        if talk.number % 2 and not run.stopping:
            talk.conversation = await _conversation(session, run, talk)
        for turn in range(run.length):
            if run.stopping:
                break
            text, began = said(talk.number, turn), time.monotonic()
            body: dict[str, Any] = {"model": "demo", "input": text}
            if talk.conversation:
                body["conversation"] = talk.conversation
            elif talk.acknowledged:
                body["previous_response_id"] = talk.acknowledged[-1][1]

            async def ask(attempt: int, body: dict[str, Any] = body, text: str = text, turn: int = turn) -> Turn:
                place = run.replicas.url(talk.number + turn + attempt)
                return await streamed(session, place, body, **{"idempotency-key": f"key of {text}"})

            done, attempts = await insisted(ask, run.chance)
            run.seen.attempts += attempts
            run.seen.lasted.append(time.monotonic() - began)
            talk.acknowledged.append((text, done.response["id"]))
            run.seen.at.append((began, time.monotonic()))
            if not is_whole(done.response, answer_to(text, turn)):
                run.seen.wrong.append(f"{text} was answered: {done.response}"[:500])
            assert done.rest is not None
            rests.append(done.rest)
    except Failed as failed:
        run.seen.hung += str(failed).startswith("hung")
        run.seen.lost += str(failed).startswith("404")
        run.seen.wrong.append(f"{said(talk.number, len(talk.acknowledged))}: {failed}"[:500])
    await asyncio.gather(*rests)


async def _conversation(session: aiohttp.ClientSession, run: Talks, talk: Talk) -> str:
    async def ask(attempt: int) -> str:
        url, key = run.replicas.url(talk.number + attempt), {"idempotency-key": f"conversation {talk.number}"}
        async with session.post(f"{url}/v1/conversations", json={}, headers=key) as got:
            if got.status != 200:
                raise Refused(got.status, await got.text(), got.headers.get("retry-after"))
            return str((await got.json())["id"])

    return (await insisted(ask, run.chance))[0]


async def _check(session: aiohttp.ClientSession, run: Talks, talk: Talk) -> None:
    """Read everything that was acknowledged in one talk, on any replica."""
    for turn, (text, response_id) in enumerate(talk.acknowledged):
        try:
            found = await read(session, run.replicas.url(talk.number + turn + 1), f"/v1/responses/{response_id}")
        except Failed as failed:
            run.seen.lost += 1
            run.seen.gone += 1
            run.seen.wrong.append(f"{text} was acknowledged as {response_id}, and reading it says {failed}"[:500])
            continue
        if not is_whole(found, answer_to(text, turn)):
            run.seen.lost += 1
            run.seen.wrong.append(f"{text} was acknowledged, and is {found}"[:500])
    if not talk.conversation:
        return
    expected = [one for turn, (text, _) in enumerate(talk.acknowledged) for one in (text, answer_to(text, turn))]
    path = f"/v1/conversations/{talk.conversation}/items?limit=100&order=asc"
    try:
        page = await read(session, run.replicas.url(talk.number), path)
    except Failed as failed:
        run.seen.lost += 1
        run.seen.wrong.append(f"{talk.conversation} should hold {expected}, and reading it says {failed}"[:1500])
        return
    held = [item["content"][0]["text"] for item in page["data"]]
    if held != expected:
        counted = Counter(held)
        run.seen.doubled += sum(number - 1 for number in counted.values())
        run.seen.lost += sum(text not in counted for text in expected)
        run.seen.wrong.append(f"{talk.conversation} should hold {expected} and holds {held}"[:1500])
