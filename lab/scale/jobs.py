"""Runs background responses while replicas are killed: each must end exactly once, and its stream must be the same on
every replica.

Lives here: the run and its verdict. Not here: the kills (`chaos.py`), the model's ledger (`model.py`).

Each client starts a background response and follows it. After some events, or when its replica dies, the client
continues at another replica with `starting_after`. At the end the run reads every stream again as a whole. The stream
must contain the client's events, byte for byte, except for the events of a killed attempt. A new `response.in_progress`
makes those void.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab.scale.chaos import chaos
from lab.scale.clients import Refused, at_once, insisted, read, sessions
from lab.scale.model import Model
from lab.scale.replicas import Replicas
from lab.scale.report import Report, milliseconds
from lab.scale.states import State
from tests.support.streams import DONE, TERMINAL, Cut, Failed, frames, output_text

_WAITS = 900.0
"""The maximum seconds that a response may wait in the queue behind all others."""
_PIECE = (4, 40)
"""The minimum and maximum number of events that a client reads before it changes the replica."""


@dataclass
class _Job:
    """One background response. `read` has the received events by their number."""

    said: str
    expected: str
    id: str = ""
    read: dict[int, bytes] = field(default_factory=dict)
    ended: float = 0.0
    last: str = ""
    places: int = 0


@dataclass
class Run:
    """The parameters of a run. `words` is the length of an answer, with the model's pause between two words. `lease` is
    `background.lease`."""

    replicas: Replicas
    state: State
    model: Model
    jobs: int
    words: int
    cancels: int
    lease: float
    chance: random.Random
    replica_every: float = 2.0
    cancelled_within: float = 1.0


def jobs_settings(lease: float) -> dict[str, Any]:
    """The settings of the replicas for this run, with at least as many attempts as there are kills."""
    return {"background": {"lease": lease, "attempts": 1000, "per_owner": 10_000}}


async def jobs(run: Run) -> Report:
    """Run the background responses. The report lists responses that did not end, ran twice, or were read with other
    events than stored."""
    report = Report(f"{run.jobs} background responses on {len(run.replicas)} replicas", ("jobs", str(run.jobs)))
    text = " ".join(str(number) for number in range(1, run.words + 1))
    made = [_Job(f"job {number}: count to {run.words}", text) for number in range(run.jobs)]
    async with sessions() as session:
        began = time.monotonic()
        async with chaos(run.replicas, run.state, run.chance, replica_every=run.replica_every) as killed:
            await at_once(list(enumerate(made)), len(made), lambda one: _guarded(session, run, report, *one), "jobs")
        took = time.monotonic() - began
        # By then, a worker that wrongly reran a finished job would have started it.
        await asyncio.sleep(2 * run.lease)
        await at_once(made, 16, lambda job: _check(session, run, report, job))
        late = sum(call.began > job.ended for job in made if job.ended for call in run.model.of(job.said))
        report.row("replicas killed", killed.replicas)
        report.row("seconds", took)
        report.row("ended", sum(bool(job.ended) for job in made))
        for kind in sorted({job.last for job in made if job.last}):
            report.row(f"of them {kind}", sum(job.last == kind for job in made))
        report.row("model calls", len(run.model.calls))
        report.row("model calls after the end", late)
        report.row("pieces that streams were read in", sum(job.places for job in made))
        report.row("events read", sum(len(job.read) for job in made))
        report.wrong += run.replicas.failed + ([f"{late} model calls after the end"] if late else [])
        await _cancels(session, run, report)
    return report


async def _guarded(session: aiohttp.ClientSession, run: Run, report: Report, number: int, job: _Job) -> None:
    try:
        await _follow(session, run, number, job)
    except (Failed, KeyError) as failed:
        report.wrong.append(f"{job.said}: {failed}"[:400])


async def _follow(session: aiohttp.ClientSession, run: Run, number: int, job: _Job) -> None:
    body = {"model": "demo", "input": job.said, "background": True, "stream": True}

    async def piece(attempt: int) -> None:
        url, after = run.replicas.url(number + job.places + attempt), max(job.read, default=-1)
        if job.id:
            path = f"{url}/v1/responses/{job.id}?stream=true&starting_after={after}"
            request = session.get(path)
        else:
            request = session.post(f"{url}/v1/responses", json=body, headers={"idempotency-key": job.said})
        many = run.chance.randint(*_PIECE)
        async with request as got:
            if got.status != 200:
                raise Refused(got.status, await got.text(), got.headers.get("retry-after"))
            reading = frames(got)
            async for frame in reading:
                if frame == DONE:
                    break
                event = json.loads(frame)
                at = event["sequence_number"]
                if at <= after:
                    raise Refused(400, f"event {at} came after {after}", None)
                after, job.read[at] = at, frame
                job.id = job.id or event["response"]["id"]
                if event["type"] in TERMINAL:
                    job.ended, job.last = time.monotonic(), event["type"]
                many -= 1
                if not many:
                    got.close()
                    break
        if not many or job.ended:
            return
        raise Cut("a stream ended before its response")

    while not job.ended:
        await insisted(piece, run.chance, _WAITS)
        job.places += 1


async def _check(session: aiohttp.ClientSession, run: Run, report: Report, job: _Job) -> None:
    """Compare the events that a client read with the stored stream."""
    if not job.ended:
        return
    url = run.replicas.url(run.chance.randrange(len(run.replicas)))
    found = await read(session, url, f"/v1/responses/{job.id}")
    if job.last != "response.completed" or found["status"] != "completed" or output_text(found) != job.expected:
        report.wrong.append(f"{job.said} ended with {job.last} and is {found}"[:400])
    whole: dict[int, bytes] = {}
    async with session.get(f"{url}/v1/responses/{job.id}?stream=true") as got:
        async for frame in frames(got):
            if frame != DONE:
                whole[json.loads(frame)["sequence_number"]] = frame
    begun = [at for at, frame in job.read.items() if json.loads(frame)["type"] == "response.in_progress"]
    void = {at for at in job.read if at not in whole}
    if any(job.read.get(at) != frame for at, frame in whole.items()) or any(at >= max(begun) for at in void):
        different = [at for at, frame in whole.items() if job.read.get(at) != frame]
        report.wrong.append(f"{job.said} was read otherwise: {different[:5]} differ, {sorted(void)[:5]} are gone")


async def _cancels(session: aiohttp.ClientSession, run: Run, report: Report) -> None:
    """Cancel responses through another replica. Measures the time until the model's stream is closed."""
    took: list[float] = []
    for number in range(run.cancels):
        said = f"cancelled {number}: count to 5000"
        # The request is a stream, because the model then answers word by word. Its client disconnects immediately.
        asked: dict[str, Any] = {"model": "demo", "input": said, "background": True, "stream": True}
        async with session.post(f"{run.replicas.url(number)}/v1/responses", json=asked) as got:
            response_id = json.loads(await anext(frames(got)))["response"]["id"]
            got.close()
        async with asyncio.timeout(60):
            while not run.model.of(said):
                await asyncio.sleep(0.02)
        began = time.monotonic()
        async with session.post(f"{run.replicas.url(number + 1)}/v1/responses/{response_id}/cancel") as got:
            status = (await got.json())["status"]
        async with asyncio.timeout(60):
            while (ended := run.model.of(said)[-1].ended) is None:
                await asyncio.sleep(0.005)
        took.append(ended - began)
        elsewhere = await read(session, run.replicas.url(number + 2), f"/v1/responses/{response_id}")
        if {status, elsewhere["status"]} != {"cancelled"} or len(run.model.of(said)) != 1:
            report.wrong.append(f"{said} is {status} and {elsewhere['status']}")
    report.row("cancelled elsewhere, the model's stream dropped after p50 / p99 / longest", milliseconds(took))
    if took and max(took) > run.cancelled_within:
        report.wrong.append(f"a cancellation took {max(took):.2f} s")
