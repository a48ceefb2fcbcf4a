"""Sends requests of many callers with quotas to replicas that are killed, and compares the counters with the upstream.

Lives here: the upstream that notes the usage of each owner, key, team and model, the load, and the verdict. Not here:
the limits (`quota_plan.py`), the kills (`chaos.py`), the replicas (`replicas.py`).

Each caller has one limit that binds. The upstream answers with a random usage and notes it. The noted usage of a minute
must not exceed a limit by more than `_SHARE`. For a limit per month, the whole run counts, and `_OVER_MONTH` is the
maximum. If requests were refused because of a limit, the noted usage must be at least the limit without `_SHARE`. Some
of the callers with a limit on tokens also send bursts of requests that continue a stored response with a long history.

A killed process may have had requests in flight, and its leases count as used. If the usage of a response is above its
reservation, a process reports the difference within a second, and a killed process does not. So a counter may differ
from the upstream's books by these amounts. Without kills, both must be equal.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import open_stores
from antiphon.stores.quotas import StoredCounter
from lab.scale.chaos import chaos
from lab.scale.early_refusals import EarlyRefusals
from lab.scale.model import serving
from lab.scale.quota_plan import INPUT_PRICE, LEVELS, LIMITS, OUTPUT_PRICE, Caller, Plan, Subject, counter_of
from lab.scale.replicas import Replicas
from lab.scale.report import Report, milliseconds
from lab.scale.states import State

_SHARE = 0.05
_OVER_MONTH = 0.02
"""The allowed usage above a limit per month. A run has no change of the month, so the counter's month is exact."""
_GRAIN = {"requests_per_minute": 2.0, "tokens_per_minute": 420.0, "tokens_per_month": 420.0, "cost_per_month": 0.004}
"""The amounts of two large requests. With the small limits of a short run, they are more than `_SHARE`."""
_LARGEST = {"tokens_per_month": 1600.0, "cost_per_month": 0.016}
"""More than the largest reservation of one request."""
_UNREPORTED = {"tokens_per_month": 400.0, "cost_per_month": 0.004}
"""More than the usage above its reservation that a process has at a time. A killed process reports it no more."""
_LEASE = 0.01
"""The largest part of a limit that a process leases before requests need it."""
_STOPPING = ("adapter_unavailable", "shutting_down")
"""The codes of a replica whose first process was killed. Its other processes stop by themselves."""
_PAUSE = 0.02
_HISTORY = "word " * 800
"""The input of a stored response that bursts continue: 4,000 bytes, or about 1,000 tokens."""
_BURST = 16
_BURSTS = 0.1
"""The share of the chosen clients' requests that are bursts."""
_REFUSED = re.compile(r"for (API key|owner|team|model) '([^']+)' on ([a-z ]+): limit")


@dataclass
class Ledger:
    """What the upstream served, by the counters' ids. `minutes` has requests and tokens by counter and minute of the
    clock."""

    plan: Plan
    url: str = ""
    served: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    cost: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    minutes: dict[str, Counter[tuple[str, int]]] = field(default_factory=lambda: defaultdict(Counter))
    active: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    def note(self, counters: tuple[str, ...], read: int, written: int) -> None:
        """Note one answer, at each level."""
        minute = int(time.time() // 60)
        self.served += 1
        for one in counters:
            self.requests[one] += 1
            self.tokens[one] += read + written
            self.cost[one] += round(read * INPUT_PRICE + written * OUTPUT_PRICE)
            self.minutes["requests_per_minute"][one, minute] += 1
            self.minutes["tokens_per_minute"][one, minute] += read + written


@asynccontextmanager
async def oracle(chance: random.Random, plan: Plan) -> AsyncIterator[Ledger]:
    """Start the upstream. The first word of a request's last message is the key's id."""
    ledger = Ledger(plan)

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        caller = plan.callers[asked["messages"][-1]["content"].split()[0]]
        counters = caller.counters(asked["model"])
        ledger.active.update(counters)
        for one in counters:
            ledger.most[one] = max(ledger.most[one], ledger.active[one])
        try:
            read, written = chance.randint(20, 60), chance.randint(50, 150)
            read = max(read, sum(len(each["content"]) for each in asked["messages"]) // 4)
            ledger.note(counters, read, written)
            await asyncio.sleep(_PAUSE)
        finally:
            ledger.active.subtract(counters)
        message = {"role": "assistant", "content": "yes"}
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with serving(app) as ledger.url:
        yield ledger


@dataclass
class _Load:
    """The clients. `refused` and `refused_in` have the refusals by the counter's id and the kind of limit, and
    `refused_in` also by minute."""

    replicas: Replicas
    plan: Plan
    requests: int
    chance: random.Random
    answered: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused_in: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    lasted: list[float] = field(default_factory=list)
    cuts: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    chains: dict[str, str] = field(default_factory=dict)

    async def client(self, session: aiohttp.ClientSession) -> None:
        while self.requests > 0:
            caller, model = self.plan.ask(self.chance)
            if caller.bursts and self.chance.random() < _BURSTS:
                await self._burst(session, caller, model)
            else:
                await self._ask(session, caller, model)

    async def _burst(self, session: aiohttp.ClientSession, caller: Caller, model: str) -> None:
        """Continue the owner's response with the long history by several requests at once."""
        if caller.owner not in self.chains:
            body = await self._ask(session, caller, model, input=f"{caller.key_id} tells {_HISTORY}", store=True)
            if body is None:
                return
            self.chains[caller.owner] = json.loads(body)["id"]
        more = {"previous_response_id": self.chains[caller.owner]}
        await asyncio.gather(*(self._ask(session, caller, model, **more) for _ in range(_BURST)))

    async def _ask(self, session: aiohttp.ClientSession, caller: Caller, model: str, **more: Any) -> str | None:
        """Send one request. Returns the body of a 200, else None."""
        self.requests -= 1
        number = self.chance.choice(self.replicas.up or [0])
        url = self.replicas.url(number)
        body: dict[str, Any] = {"model": model, "input": f"{caller.key_id} asks", "store": False, **more}
        if self.chance.random() < 0.5:
            body["max_output_tokens"] = 150
        began, minute = time.monotonic(), int(time.time() // 60)
        try:
            headers = {"authorization": f"Bearer {caller.token}"}
            async with session.post(f"{url}/v1/responses", json=body, headers=headers) as got:
                text = await got.text()
        except (aiohttp.ClientError, TimeoutError):
            # The replica was killed.
            self._note_cut(caller.counters(model))
            return None
        self.lasted.append(time.monotonic() - began)
        if got.status == 200:
            self.answered += 1
            return text
        if got.status == 429:
            self._note_refusal(caller.counters(model), minute, text, "retry-after" in got.headers)
        elif got.status == 503 and number not in self.replicas.up and any(code in text for code in _STOPPING):
            # The replica was killed, and its Envoy or its workers lived a moment longer.
            self._note_cut(caller.counters(model))
        else:
            self.wrong.append(f"{got.status}: {text[:200]}")
        return None

    def _note_cut(self, counters: tuple[str, ...]) -> None:
        self.cuts += 1
        self.cut.update(counters)

    def _note_refusal(self, counters: tuple[str, ...], minute: int, text: str, ends: bool) -> None:
        """Note which limit of whom a 429 names. A limit of another caller or one that cannot bind is a failure."""
        said = _REFUSED.search(json.loads(text)["error"]["message"])
        level = "key" if said is not None and said[1] == "API key" else said[1] if said is not None else ""
        subject = counter_of(level, said[2]) if said is not None else ""
        kind = said[3].replace(" ", "_") if said is not None else ""
        binds = any((one.counter, one.kind) == (subject, kind) for one in self.plan.subjects)
        if not (ends and binds and subject in counters):
            self.wrong.append(f"a 429 without its limit or its end: {text[:200]}")
        self.refused[subject, kind] += 1
        self.refused_in[subject, kind, minute] += 1


async def quotas(
    replicas: Replicas,
    state: State,
    ledger: Ledger,
    folder: Path,
    *,
    requests: int,
    clients: int,
    chance: random.Random,
    every: float,
    early: EarlyRefusals,
    settled_within: float = 65.0,
) -> Report:
    """Run the load, with a kill every `every` seconds. The report has a row for each level and kind of limit, and the
    books of each level. `settled_within`: the seconds to wait for the last reports to the counters."""
    load = _Load(replicas, ledger.plan, requests, chance)
    began, first = time.monotonic(), int(time.time() // 60)
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        early.counting(),
        chaos(replicas, state, chance, replica_every=every, state_every=1e9) as killed,
    ):
        await asyncio.gather(*(load.client(session) for _ in range(clients)))
        took = time.monotonic() - began
        last = int(time.time() // 60)
    # Leases of killed processes are settled after 30 seconds, at the latest one sweep later.
    await asyncio.sleep(settled_within)
    async with aclosing(await open_stores(StateSettings(url=SecretStr(state.url)), folder, chain_items=1)) as stores:
        stored = await stores.quotas.counters()
    columns = (
        "limit",
        "subjects",
        "served",
        "refused",
        "early",
        "overshoot",
        "unused although refused",
        "charged above",
    )
    title = f"Quotas of {len({one.owner for one in ledger.plan.callers.values()})} owners on {len(replicas)} replicas"
    report = Report(title, columns, wrong=load.wrong)
    report.wrong += replicas.failed
    verdict = _Verdict(ledger, load, range(first + 1, last) or range(first, last + 1), stored, killed.replicas, early)
    for level in LEVELS:
        for kind in LIMITS:
            if subjects := [one for one in ledger.plan.subjects if (one.level, one.kind) == (level, kind)]:
                report.row(f"{level}, {kind}", len(subjects), *verdict.limits(level, kind, subjects))
    for level in LEVELS:
        verdict.books(report, level)
    # A request that was cut may have reached the upstream.
    if not load.answered <= ledger.served <= load.answered + load.cuts:
        report.wrong.append(f"{load.answered} answers, {ledger.served} calls of the upstream, {load.cuts} requests cut")
    refused = sum(load.refused.values())
    report.row(
        "all", "", ledger.served, refused, early.counts.total(), f"{len(load.lasted) / took:.0f} requests a second"
    )
    report.row("replicas killed", killed.replicas, f"{load.cuts} requests cut", milliseconds(load.lasted))
    report.wrong += verdict.wrong
    return report


@dataclass
class _Verdict:
    """Compares the limits and the counters with what the upstream served. `minutes`: the minutes to judge."""

    ledger: Ledger
    load: _Load
    minutes: range
    stored: list[StoredCounter]
    kills: int
    early: EarlyRefusals
    wrong: list[str] = field(default_factory=list)

    def limits(self, level: str, kind: str, subjects: list[Subject]) -> tuple[object, ...]:
        """The cells of one kind of limit. The shares are those of the worst subject."""
        over = unused = beyond = 0.0
        for one in subjects:
            used, refused = self._used(one)
            over = max([over, *((each - one.limit) / one.limit for each in used)])
            unused = max(
                [unused, *((one.limit - each) / one.limit for each, no in zip(used, refused, strict=True) if no)]
            )
            if kind.endswith("_month"):
                beyond = max(beyond, (self._counted(one.counter, kind) - used[0]) / one.limit)
        grain = _GRAIN.get(kind, 0.0) / min(one.limit for one in subjects) if self.ledger.plan.small else 0.0
        if over > (_OVER_MONTH if kind.endswith("_month") else _SHARE) + grain:
            self.wrong.append(f"{level}, {kind}: {over:.1%} over the limit")
        if unused > _SHARE + (0.02 * self.kills if kind.endswith("_month") else 0.02) + grain:
            self.wrong.append(f"{level}, {kind}: {unused:.1%} of the limit unused, and requests were refused")
        refusals = sum(self.load.refused[one.counter, kind] for one in subjects)
        served = sum(self.ledger.requests[one.counter] for one in subjects)
        return served, refusals, self.early.counts[level, kind], f"{over:.2%}", f"{unused:.2%}", f"{beyond:.2%}"

    def _used(self, one: Subject) -> tuple[list[float], list[bool]]:
        """The amounts that the upstream served, and whether requests were refused meanwhile: by minute, or once."""
        ledger, kind = self.ledger, one.kind
        if kind.endswith("_minute"):
            used = [float(ledger.minutes[kind][one.counter, minute]) for minute in self.minutes]
            return used, [self.load.refused_in[one.counter, kind, minute] > 0 for minute in self.minutes]
        if kind == "parallel_requests":
            return [float(ledger.most[one.counter])], [False]
        return [self._noted(one.counter, kind)], [self.load.refused[one.counter, kind] > 0]

    def _noted(self, counter: str, kind: str) -> float:
        return self.ledger.cost[counter] / 1e6 if kind == "cost_per_month" else float(self.ledger.tokens[counter])

    def _counted(self, counter: str, kind: str) -> float:
        found = next((one.used for one in self.stored if (one.subject, one.measure) == (counter, kind)), 0)
        return found / 1e6 if kind == "cost_per_month" else float(found)

    def books(self, report: Report, level: str) -> None:
        """Compare all counters of months of one level with the upstream."""
        for kind in ("tokens_per_month", "cost_per_month"):
            counters = [
                one.subject for one in self.stored if one.measure == kind and one.subject.startswith(f"{level}:")
            ]
            if not counters:
                continue
            counted, noted, wrong = 0.0, 0.0, 0
            for one in counters:
                here, there = self._counted(one, kind), self._noted(one, kind)
                counted, noted = counted + here, noted + there
                in_flight = self.load.cut[one] * _LARGEST[kind]
                leases = self.kills * _LEASE * self.ledger.plan.limit_of(one, kind)
                unreported = self.kills * _UNREPORTED[kind]
                # Costs are rounded.
                if not there - in_flight - unreported - 1e-6 <= here <= there + in_flight + leases + 1e-6:
                    wrong += 1
                    self.wrong.append(f"{one}, {kind}: the counter has {here}, and the upstream served {there}")
            difference = f"{counted / noted - 1:+.3%}" if noted else "-"
            said = f"counters {counted:.6g}, upstream {noted:.6g}, {difference}"
            report.row(f"books: {level}, {kind}", len(counters), said, f"{wrong} wrong")
