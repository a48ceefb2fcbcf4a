"""Talks while replicas and the state's server are killed: what was acknowledged is there, once, and nobody hangs.

Lives here: the run and its judgement. Not here: the killing (`chaos.py`), single requests (`clients.py`).

Half of the talks run in conversations, the others by `previous_response_id`. Each turn has an `Idempotency-Key` and is
tried again, anywhere, until its `response.completed` was read: that is the acknowledgement. When the killing is over,
every acknowledged response is read, and every conversation is held against what was acknowledged in it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.scale.chaos import chaos
from tests.scale.clients import Refused, Turn, answer_to, at_once, insisted, is_whole, read, said, sessions, streamed
from tests.scale.replicas import Replicas
from tests.scale.report import Report, milliseconds
from tests.scale.states import State
from tests.support.streams import Failed


@dataclass
class _Talk:
    """A talk and what was acknowledged in it: texts that were said, ids of the responses."""

    number: int
    conversation: str = ""
    acknowledged: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Seen:
    attempts: int = 0
    lasted: list[float] = field(default_factory=list)
    hung: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Run:
    """`turns`: in all; `length`: of one talk."""

    replicas: Replicas
    state: State
    turns: int
    length: int
    clients: int
    chance: random.Random
    replica_every: float = 4.0
    state_every: float = 15.0


async def kills(run: Run) -> Report:
    """The report: how many turns were lost, doubled or hung."""
    talks = [_Talk(number) for number in range(max(1, run.turns // run.length))]
    seen, began = _Seen(), time.monotonic()
    async with sessions() as session:
        async with chaos(
            run.replicas, run.state, run.chance, replica_every=run.replica_every, state_every=run.state_every
        ) as killed:
            await at_once(talks, run.clients, lambda talk: _talk(session, run, seen, talk), "talks")
            took = time.monotonic() - began
        await at_once(talks, run.clients, lambda talk: _check(session, run, seen, talk))
    seen.wrong += run.replicas.failed
    acknowledged = sum(len(talk.acknowledged) for talk in talks)
    title = f"Turns on {len(run.replicas)} replicas that are killed"
    report = Report(title, ("acknowledged turns", str(acknowledged)), wrong=seen.wrong)
    report.row("of them in conversations", sum(len(talk.acknowledged) for talk in talks if talk.conversation))
    report.row("turns a second", acknowledged / took)
    report.row("replicas killed", killed.replicas)
    report.row("servers of the state killed", killed.states)
    report.row("attempts beyond the first", seen.attempts - acknowledged)
    report.row("a turn with all its attempts, p50 / p99 / longest", milliseconds(seen.lasted))
    report.row("lost", seen.lost)
    report.row("doubled in a conversation", seen.doubled)
    report.row("hung", seen.hung)
    if acknowledged != len(talks) * run.length:
        report.wrong.append(f"{len(talks) * run.length - acknowledged} turns were never acknowledged")
    return report


async def _talk(session: aiohttp.ClientSession, run: Run, seen: _Seen, talk: _Talk) -> None:
    rests: list[asyncio.Task[None]] = []
    try:
        if talk.number % 2:
            talk.conversation = await _conversation(session, run, talk)
        for turn in range(run.length):
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
            seen.attempts += attempts
            seen.lasted.append(time.monotonic() - began)
            talk.acknowledged.append((text, done.response["id"]))
            if not is_whole(done.response, answer_to(text, turn)):
                seen.wrong.append(f"{text} was answered: {done.response}"[:500])
            assert done.rest is not None
            rests.append(done.rest)
    except Failed as failed:
        seen.hung += str(failed).startswith("hung")
        seen.lost += str(failed).startswith("404")
        seen.wrong.append(f"{said(talk.number, len(talk.acknowledged))}: {failed}"[:500])
    await asyncio.gather(*rests)


async def _conversation(session: aiohttp.ClientSession, run: Run, talk: _Talk) -> str:
    async def ask(attempt: int) -> str:
        url, key = run.replicas.url(talk.number + attempt), {"idempotency-key": f"conversation {talk.number}"}
        async with session.post(f"{url}/v1/conversations", json={}, headers=key) as got:
            if got.status != 200:
                raise Refused(got.status, await got.text(), got.headers.get("retry-after"))
            return str((await got.json())["id"])

    return (await insisted(ask, run.chance))[0]


async def _check(session: aiohttp.ClientSession, run: Run, seen: _Seen, talk: _Talk) -> None:
    """Everything that was acknowledged, read on any replica."""
    for turn, (text, response_id) in enumerate(talk.acknowledged):
        try:
            found = await read(session, run.replicas.url(talk.number + turn + 1), f"/v1/responses/{response_id}")
        except Failed as failed:
            seen.lost += 1
            seen.wrong.append(f"{text} was acknowledged as {response_id}, and reading it says {failed}"[:500])
            continue
        if not is_whole(found, answer_to(text, turn)):
            seen.lost += 1
            seen.wrong.append(f"{text} was acknowledged, and is {found}"[:500])
    if not talk.conversation:
        return
    expected = [one for turn, (text, _) in enumerate(talk.acknowledged) for one in (text, answer_to(text, turn))]
    path = f"/v1/conversations/{talk.conversation}/items?limit=100&order=asc"
    held = [item["content"][0]["text"] for item in (await read(session, run.replicas.url(talk.number), path))["data"]]
    if held != expected:
        counted = Counter(held)
        seen.doubled += sum(number - 1 for number in counted.values())
        seen.lost += sum(text not in counted for text in expected)
        seen.wrong.append(f"{talk.conversation} should hold {expected} and holds {held}"[:1500])
