"""Stalls, disconnects or restarts the database under load, and checks that errors come in time and service recovers.

Lives here: the faults, and the clients' view of each. Not here: the servers (`states.py`), the black hole (`hole.py`).

Clients write and read the whole time and never retry. While the database does not answer, each request must be a 503
with `retry-after`. A read must get it within `state.deadline`. A response that must be saved gets it within
`timeouts.save` and one more deadline, because Antiphon then looks for a saved response. When the database is back,
Antiphon must serve the clients again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from lab.scale.clients import sessions
from lab.scale.hole import Hole
from lab.scale.replicas import Replicas
from lab.scale.report import Report
from lab.scale.states import State

_WARM_SECONDS = 2.0
_SETTLED = 20
"""The number of successful answers in a row that each client needs before the next fault."""
_LONGEST = 60.0
_PAUSE = 0.05
_DEADLINE, _SAVE = 4.5, 10.0
"""The defaults of `state.deadline` and `timeouts.save`."""
_ALLOWED = {"read": _DEADLINE, "written": _SAVE + _DEADLINE}


@dataclass
class _Answer:
    began: float
    ended: float
    what: str
    status: int
    retry_after: bool
    said: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault. `do` begins it, and `undo` ends it after `seconds`."""

    name: str
    do: Callable[[], Awaitable[None]]
    undo: Callable[[], Awaitable[None]]
    seconds: float


@dataclass
class _Load:
    session: aiohttp.ClientSession
    replicas: Replicas
    answers: list[_Answer] = field(default_factory=list)
    stopping: bool = False

    async def client(self, number: int, known: str) -> None:
        turn = 0
        while not self.stopping:
            turn += 1
            url = self.replicas.url(number + turn)
            body = {"model": "demo", "input": "stored"}
            path = f"/v1/responses/{known}"
            request = (
                self.session.post(f"{url}/v1/responses", json=body) if turn % 2 else self.session.get(f"{url}{path}")
            )
            began, what = time.monotonic(), "written" if turn % 2 else "read"
            try:
                async with asyncio.timeout(_LONGEST), request as got:
                    said = await got.text()
                    again = "retry-after" in got.headers
                    answer = _Answer(began, time.monotonic(), what, got.status, again, said[:200])
            except (aiohttp.ClientError, OSError, TimeoutError) as failed:
                answer = _Answer(began, time.monotonic(), what, 0, False, f"{type(failed).__name__}: {failed}")
            self.answers.append(answer)
            await asyncio.sleep(_PAUSE)

    async def served(self, since: float, clients: int) -> None:
        """Wait until enough answers in a row were successful for `clients` clients."""
        end = time.monotonic() + _LONGEST
        while time.monotonic() < end:
            last = self.answers[-_SETTLED * clients // 4 :]
            if all(one.status == 200 and one.began > since for one in last) and len(last) >= clients:
                return
            await asyncio.sleep(0.05)


def faults_of(state: State, hole: Hole, *, frozen: float, down: float) -> list[Fault]:
    """The faults that this kind of state supports."""
    server, pooler = state.server, state.pooler
    assert server is not None

    def at_once(do: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        async def done() -> None:
            do()

        return done

    def apart(do: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(do)

    found = [
        Fault("stands still (SIGSTOP)", apart(server.freeze), apart(server.thaw), frozen),
        Fault("black hole", at_once(hole.swallow), at_once(hole.heal), frozen),
        Fault("killed (kill -9)", apart(server.kill), apart(server.start), down),
        Fault("restarted in order", apart(server.stop), apart(server.start), down),
    ]
    if pooler is not None:
        found.append(Fault("pgbouncer restarted", apart(pooler.stop), apart(pooler.start), down))
    return found


async def faults(replicas: Replicas, given: list[Fault], *, clients: int, margin: float) -> Report:
    """Cause each fault under load. The report has the first error, the longest answer and the recovery time of each.
    `margin`: the seconds beyond the deadline that a busy machine may need."""
    columns = (
        "the database",
        "s",
        "errors",
        "first error after",
        "longest read",
        "longest write",
        "served again after",
        "all after",
    )
    report = Report(f"Faults of the database, {len(replicas)} replicas, {clients} clients", columns)
    async with sessions() as session:
        load = _Load(session, replicas)
        async with session.post(f"{replicas.url(0)}/v1/responses", json={"model": "demo", "input": "known"}) as got:
            known = (await got.json())["id"]
        tasks = [asyncio.create_task(load.client(number, known)) for number in range(clients)]
        try:
            await asyncio.sleep(_WARM_SECONDS)
            for fault in given:
                await _try(load, fault, report, clients, margin)
        finally:
            load.stopping = True
            await asyncio.gather(*tasks)
    return report


async def _try(load: _Load, fault: Fault, report: Report, clients: int, margin: float) -> None:
    load.answers.clear()
    began = time.monotonic()
    await fault.do()
    # The duration of the stop command counts as part of the fault.
    await asyncio.sleep(fault.seconds)
    undone = time.monotonic()
    await fault.undo()
    back = time.monotonic()
    await load.served(back, clients)
    during = list(load.answers)
    errors = [one for one in during if one.status != 200]
    good = [one.ended for one in during if one.status == 200 and one.ended > undone]
    longest = {kind: max(one.ended - one.began for one in during if one.what == kind) for kind in _ALLOWED}
    first = f"{min(one.ended for one in errors) - began:.2f} s" if errors else "-"
    # The outage ends when the server answers again, even if `undo` is still waiting.
    again = f"{max(0.0, min(good) - back):.2f} s" if good else "never"
    last = f"{max(0.0, max(one.ended for one in errors) - back):.2f} s" if errors else "-"
    seconds = f"{back - began:.1f}"
    times = [f"{one:.2f} s" for one in longest.values()]
    report.row(fault.name, seconds, len(errors), first, *times, again, last)
    other = [one for one in errors if one.status != 503 or not one.retry_after]
    kinds = sorted({f"{one.what}: {one.status}, retry-after {one.retry_after}: {one.said}" for one in other})
    report.wrong += [f"{fault.name}: {kind}" for kind in kinds[:4]]
    for kind, allowed in _ALLOWED.items():
        if longest[kind] > allowed + margin:
            report.wrong.append(f"{fault.name}: an answer, {kind}, took {longest[kind]:.1f} s")
    if errors and fault.seconds > _DEADLINE and min(one.ended for one in errors) - began > _DEADLINE + margin:
        report.wrong.append(f"{fault.name}: the first error came after {first}")
    if not good or min(good) - back > _DEADLINE + margin:
        report.wrong.append(f"{fault.name}: served again only after {again}")
