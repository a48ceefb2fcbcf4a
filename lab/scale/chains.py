"""Runs chains of responses whose turns alternate between replicas; each turn begins when the previous one is complete.

Lives here: the run and its verdict. Not here: replicas, single requests (`clients.py`).

When `response.completed` arrives, the next replica must continue the response, and the replica after that must read it.
Both replicas must find the response immediately, and the model must get all earlier messages.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from lab.scale.clients import Refused, Turn, answer_to, at_once, is_whole, read, said, sessions, streamed
from lab.scale.replicas import Replicas
from lab.scale.report import Report, milliseconds
from tests.support.streams import Cut, Failed


@dataclass
class _Seen:
    turns: int = 0
    missing: int = 0
    wrong: list[str] = field(default_factory=list)
    readable: list[float] = field(default_factory=list)


async def chains(replicas: Replicas, *, chains: int, turns: int, clients: int) -> Report:
    """Run the chains. The report has the number of 404 answers, and the time from a response's completion until another
    replica returned it."""
    seen = _Seen()
    began = time.monotonic()
    async with sessions() as session:
        await at_once(range(chains), clients, lambda number: _chain(session, replicas, seen, number, turns), "chains")
    took = time.monotonic() - began
    report = Report(f"{chains} chains over {len(replicas)} replicas", ("chains", str(chains)), wrong=seen.wrong)
    report.row("turns", seen.turns)
    report.row("turns a second", seen.turns / took)
    report.row("404", seen.missing)
    report.row("from completed to read on another replica, p50 / p99 / longest", milliseconds(seen.readable))
    if seen.turns != chains * turns:
        report.wrong.append(f"{chains * turns - seen.turns} turns are missing")
    return report


async def _chain(session: aiohttp.ClientSession, replicas: Replicas, seen: _Seen, number: int, turns: int) -> None:
    previous: Turn | None = None
    reading: list[asyncio.Task[None]] = []
    try:
        for turn in range(turns):
            text = said(number, turn)
            body = {"model": "demo", "input": text}
            if previous is not None:
                body["previous_response_id"] = previous.response["id"]
            previous = await streamed(session, replicas.url(number + turn), body)
            seen.turns += 1
            if not is_whole(previous.response, answer_to(text, turn)):
                seen.wrong.append(f"{text}: {previous.response}"[:400])
            elsewhere = replicas.url(number + turn + 2)
            reading.append(asyncio.create_task(_read(session, elsewhere, previous, answer_to(text, turn), seen)))
            assert previous.rest is not None
            reading.append(previous.rest)
    except (Failed, Cut, aiohttp.ClientError, OSError) as failed:
        seen.missing += isinstance(failed, Refused) and failed.status == 404
        seen.wrong.append(f"{said(number, turn)}: {type(failed).__name__} {failed}"[:400])
    await asyncio.gather(*reading)


async def _read(session: aiohttp.ClientSession, url: str, turn: Turn, text: str, seen: _Seen) -> None:
    try:
        if not is_whole(await read(session, url, f"/v1/responses/{turn.response['id']}"), text):
            seen.wrong.append(f"{turn.response['id']} is another one elsewhere")
        seen.readable.append(time.monotonic() - turn.at)
    except (Failed, aiohttp.ClientError, OSError) as failed:
        seen.missing += isinstance(failed, Refused) and failed.status == 404
        seen.wrong.append(f"{turn.response['id']} cannot be read elsewhere: {failed}"[:400])
