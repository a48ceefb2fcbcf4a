"""Runs replicas whose clocks differ by minutes, and checks that no replica takes over a valid lease and nothing expires
early.

Lives here: the run and its verdict. Not here: replicas, single requests (`clients.py`).

libfaketime changes the clocks of the replicas, and PostgreSQL has the machine's clock. Leases are short. So a replica
that judged leases by its own clock would immediately take over jobs, conversations and keys of another replica. Data
with a retention of five minutes must survive a clock that is seven minutes off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from lab.scale.clients import answer_to, read, sessions, streamed
from lab.scale.model import Model
from lab.scale.replicas import Replicas
from lab.scale.report import Report
from tests.support.streams import Cut, Failed, output_text

LEASE = 2.0
KEPT = 300.0
"""The seconds for which keys and responses are stored: less than the difference of the clocks."""
CLOCK_SETTINGS: dict[str, Any] = {
    "background": {"lease": LEASE},
    "conversations": {"lease": LEASE},
    "idempotency": {"lease": LEASE, "keep": KEPT},
    "retention": {"responses": KEPT, "conversations": KEPT, "events": KEPT, "sweep": 1.0},
}
"""The settings of the replicas for this run."""
_WORDS = 100
_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")


def fake_clocks(minutes: Mapping[int, float]) -> dict[int, dict[str, str]]:
    """The environment variables that put each replica's clock ahead by its number of minutes. Raises `SystemExit` if
    libfaketime is not installed."""
    found = [path for pattern in _LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))]
    if not found:
        raise SystemExit("clock: needs libfaketime; install Debian's package libfaketime")
    common = {"LD_PRELOAD": str(found[0]), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
    return {number: {**common, "FAKETIME": f"{60 * ahead:+.0f}s"} for number, ahead in minutes.items()}


async def clock(replicas: Replicas, model: Model, minutes: Mapping[int, float], *, jobs: int) -> Report:
    """Run all checks. The report lists leases that were taken over, responses that ran twice, and data that expired
    early. `model` must be so slow that an answer outlasts the leases."""
    shown = ", ".join(f"{minutes.get(number, 0):+g}" for number in range(len(replicas)))
    report = Report(f"{len(replicas)} replicas with clocks {shown} minutes off", ("clocks", shown))
    async with sessions() as session:
        stamps = [await _short(session, replicas.url(number), f"first {number}") for number in range(len(replicas))]
        streams = [await _stream(session, replicas.url(number), f"stream {number}") for number in range(len(replicas))]
        off = [(stamp["created_at"] - time.time()) / 60 for stamp in stamps]
        report.row("as their answers say, minutes", ", ".join(f"{one:+.1f}" for one in off))
        if any(abs(one - minutes.get(number, 0)) > 0.5 for number, one in enumerate(off)):
            report.wrong.append("the clocks are not where they should be")
        everybody = range(len(replicas))
        _, held, waiting = await asyncio.gather(
            _jobs(session, replicas, model, jobs, report),
            asyncio.gather(*(_conversation(session, replicas, model, number, report) for number in everybody)),
            asyncio.gather(*(_key(session, replicas, model, number, report) for number in everybody)),
        )
        report.row("others kept out of a conversation, times", sum(held))
        report.row("others told to wait for a key, times", sum(waiting))
        gone = 0
        for number, stamp in enumerate(stamps):
            for url in (replicas.url(other) for other in range(len(replicas))):
                try:
                    await read(session, url, f"/v1/responses/{stamp['id']}")
                except Failed as failed:
                    gone += 1
                    report.wrong.append(f"the response of replica {number} at {url}: {failed}")
                again = await _short(session, url, f"first {number}")
                if again["id"] != stamp["id"]:
                    report.wrong.append(f"the key of replica {number} is forgotten at {url}")
        report.row("responses gone too early", gone)
        cleared = 0
        for number, stream in enumerate(streams):
            for url in (replicas.url(other) for other in range(len(replicas))):
                path = f"{url}/v1/responses/{stream}?stream=true&starting_after=0"
                async with session.get(path) as got:
                    if got.status != 200 or b"response.completed" not in await got.read():
                        cleared += 1
                        report.wrong.append(f"the stream of replica {number} cannot be resumed at {url}: {got.status}")
        report.row("streams gone too early", cleared)
    return report


async def _short(session: aiohttp.ClientSession, url: str, said: str) -> dict[str, Any]:
    body = {"model": "demo", "input": said}
    async with session.post(f"{url}/v1/responses", json=body, headers={"idempotency-key": said}) as got:
        response: dict[str, Any] = await got.json()
        if got.status != 200 or output_text(response) != answer_to(said, 0):
            raise Failed(f"{got.status} {response}")
        return response


async def _stream(session: aiohttp.ClientSession, url: str, said: str) -> str:
    """Start a background response and follow it to its end. Returns its id."""
    turn = await streamed(session, url, {"model": "demo", "input": said, "background": True, "stream": True})
    assert turn.rest is not None
    await turn.rest
    return str(turn.response["id"])


async def _jobs(session: aiohttp.ClientSession, replicas: Replicas, model: Model, many: int, report: Report) -> None:
    async def one(number: int) -> None:
        said = f"job {number}: count to {_WORDS}"
        body = {"model": "demo", "input": said, "background": True}
        try:
            (await _turn(session, replicas.url(number), body))
        except (Failed, Cut) as failed:
            report.wrong.append(f"{said}: {failed}")
        if len(model.of(said)) != 1:
            report.wrong.append(f"{said} was run {len(model.of(said))} times")

    await asyncio.gather(*(one(number) for number in range(many)))
    times = [call.ended - call.began for call in model.calls if call.ended and call.said.startswith("job ")]
    report.row("background responses", many)
    report.row(f"each runs so many seconds, with a lease of {LEASE:g}", min(times, default=0.0))
    report.row("runs", len(times))
    if min(times, default=0.0) < 2 * LEASE:
        report.wrong.append("the jobs were too short to outlast a lease")


async def _conversation(
    session: aiohttp.ClientSession, replicas: Replicas, model: Model, number: int, report: Report
) -> int:
    """Hold a conversation with one turn for longer than the lease. Meanwhile every replica must refuse other turns."""
    async with session.post(f"{replicas.url(number)}/v1/conversations", json={}) as got:
        conversation = (await got.json())["id"]
    said = f"holding {number}: count to {_WORDS}"
    return await _held(session, replicas, model, number, report, said, {"conversation": conversation}, {})


async def _key(session: aiohttp.ClientSession, replicas: Replicas, model: Model, number: int, report: Report) -> int:
    """Send a request that outlasts its key's lease. The same request at another replica must wait, and then get the
    same answer."""
    said = f"with a key {number}: count to {_WORDS}"
    return await _held(session, replicas, model, number, report, said, {}, {"idempotency-key": said})


async def _held(
    session: aiohttp.ClientSession,
    replicas: Replicas,
    model: Model,
    number: int,
    report: Report,
    said: str,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> int:
    body = {"model": "demo", "input": said, "stream": True, **fields}
    holding = asyncio.create_task(streamed(session, replicas.url(number), body, **headers))
    refused = 0
    # The model was called, so the first replica now holds the lease.
    while not holding.done():
        if model.of(said):
            for other in range(1, len(replicas)):
                url = f"{replicas.url(number + other)}/v1/responses"
                async with session.post(url, json=body, headers=headers) as got:
                    text = await got.text()
                if got.status == 409:
                    refused += 1
                elif not holding.done() and model.of(said)[0].ended is None:
                    report.wrong.append(f"{said}: let in while it was held: {got.status} {text[:200]}")
        await asyncio.sleep(0.2)
    first = await holding
    assert first.rest is not None
    await first.rest
    if not refused:
        report.wrong.append(f"{said}: no request had to wait")
    if headers:
        again = await streamed(session, replicas.url(number + 1), body, **headers)
        assert again.rest is not None
        await again.rest
        if again.response["id"] != first.response["id"] or len(model.of(said)) != 1:
            report.wrong.append(f"{said}: made twice")
    return refused


async def _turn(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
    turn = await streamed(session, url, body)
    assert turn.rest is not None
    await turn.rest
