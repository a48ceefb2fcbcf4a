"""Sends requests of many owners with quotas to replicas that are killed, and compares the counters with the upstream.

Lives here: the upstream that notes the usage of each owner, the load, and the verdict. Not here: the kills
(`chaos.py`), the replicas (`replicas.py`).

Each owner has one kind of limit. The upstream answers with a random usage and notes it. The noted usage of a minute
must not exceed the owner's limit by more than `_SHARE`. For a limit per month, the whole run counts, and `_OVER_MONTH`
is the maximum. If an owner's requests were refused, the noted usage must be at least the limit without `_SHARE`. Half
of the owners with a limit on tokens also send bursts of requests that continue a stored response with a long history.
"""

from __future__ import annotations

import asyncio
import json
import random
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
from lab.scale.model import serving
from lab.scale.replicas import OWNER_KEY, Replicas
from lab.scale.report import Report, milliseconds
from lab.scale.states import State

LIMITS: dict[str, float] = {
    "requests_per_minute": 300,
    "tokens_per_minute": 40_000,
    "tokens_per_month": 150_000,
    "cost_per_month": 1.0,
    "parallel_requests": 3,
}
_EACH = 8
_SHARE = 0.05
_OVER_MONTH = 0.02
"""The allowed usage above a limit per month. A run has no change of the month, so the counter's month is exact."""
_INPUT, _OUTPUT = 1.0, 10.0
"""The prices of a million tokens."""
_STOPPING = ("adapter_unavailable", "shutting_down")
"""The codes of a replica whose first process was killed. Its other processes stop by themselves."""
_PAUSE = 0.02
_HISTORY = "word " * 800
"""The input of a stored response that bursts continue: 4,000 bytes, or about 1,000 tokens."""
_BURST = 16
_BURSTS = 0.1
"""The share of the chosen clients' requests that are bursts."""
_OWNERS = [f"{kind}-{number}" for kind in LIMITS for number in range(_EACH)]


def _key(owner: str) -> str:
    return f"client-key-of-{owner}"


QUOTA_SETTINGS: dict[str, Any] = {
    "owner": {"key": OWNER_KEY, "keys": {owner: [_key(owner)] for owner in _OWNERS}},
    "prices": [{"model": "*", "input": _INPUT, "output": _OUTPUT}],
    "quotas": {"owners": {owner: {owner.rpartition("-")[0]: LIMITS[owner.rpartition("-")[0]]} for owner in _OWNERS}},
    "log": {"level": "error"},
}


@dataclass
class Ledger:
    """What the upstream served, by owner. `minutes` has requests and tokens by owner and minute of the clock."""

    url: str = ""
    tokens: Counter[str] = field(default_factory=Counter)
    cost: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    minutes: dict[str, Counter[tuple[str, int]]] = field(default_factory=lambda: defaultdict(Counter))
    active: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def oracle(chance: random.Random) -> AsyncIterator[Ledger]:
    """Start the upstream. The last message of a request is the owner."""
    ledger = Ledger()

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        owner = asked["messages"][-1]["content"].split()[0]
        minute = int(time.time() // 60)
        ledger.active[owner] += 1
        ledger.most[owner] = max(ledger.most[owner], ledger.active[owner])
        try:
            read, written = chance.randint(20, 60), chance.randint(50, 150)
            read = max(read, sum(len(each["content"]) for each in asked["messages"]) // 4)
            ledger.requests[owner] += 1
            ledger.tokens[owner] += read + written
            ledger.cost[owner] += round(read * _INPUT + written * _OUTPUT)
            ledger.minutes["requests_per_minute"][owner, minute] += 1
            ledger.minutes["tokens_per_minute"][owner, minute] += read + written
            await asyncio.sleep(_PAUSE)
        finally:
            ledger.active[owner] -= 1
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
    replicas: Replicas
    requests: int
    chance: random.Random
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused_in: Counter[tuple[str, int]] = field(default_factory=Counter)
    lasted: list[float] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    chains: dict[str, str] = field(default_factory=dict)

    async def client(self, session: aiohttp.ClientSession) -> None:
        while self.requests > 0:
            owner = self.chance.choice(_OWNERS)
            kind, _, number = owner.rpartition("-")
            if kind.startswith("tokens") and int(number) % 2 and self.chance.random() < _BURSTS:
                await self._burst(session, owner)
            else:
                await self._ask(session, owner)

    async def _burst(self, session: aiohttp.ClientSession, owner: str) -> None:
        """Continue the owner's response with the long history by several requests at once."""
        if owner not in self.chains:
            body = await self._ask(session, owner, input=f"{owner} tells {_HISTORY}", store=True)
            if body is None:
                return
            self.chains[owner] = json.loads(body)["id"]
        more = {"previous_response_id": self.chains[owner]}
        await asyncio.gather(*(self._ask(session, owner, **more) for _ in range(_BURST)))

    async def _ask(self, session: aiohttp.ClientSession, owner: str, **more: Any) -> str | None:
        """Send one request. Returns the body of a 200, else None."""
        self.requests -= 1
        number = self.chance.choice(self.replicas.up or [0])
        url = self.replicas.url(number)
        body: dict[str, Any] = {"model": "m", "input": f"{owner} asks", "store": False, **more}
        if self.chance.random() < 0.5:
            body["max_output_tokens"] = 150
        began, minute = time.monotonic(), int(time.time() // 60)
        try:
            headers = {"authorization": f"Bearer {_key(owner)}"}
            async with session.post(f"{url}/v1/responses", json=body, headers=headers) as got:
                text = await got.text()
        except (aiohttp.ClientError, TimeoutError):
            # The replica was killed.
            self.cut[owner] += 1
            return None
        self.lasted.append(time.monotonic() - began)
        self.statuses[owner, got.status] += 1
        if got.status == 200:
            return text
        if got.status == 429:
            self.refused_in[owner, minute] += 1
            if "retry-after" not in got.headers or owner not in text:
                self.wrong.append(f"a 429 without its limit or its end: {text[:200]}")
        elif got.status == 503 and number not in self.replicas.up and any(code in text for code in _STOPPING):
            # The replica was killed, and its Envoy or its workers lived a moment longer.
            self.cut[owner] += 1
        else:
            self.wrong.append(f"{got.status}: {text[:200]}")
        return None


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
    settled_within: float = 65.0,
) -> Report:
    """Run the load, with a kill every `every` seconds. The report has a row for each kind of limit. `settled_within`:
    the seconds to wait for the last reports to the counters."""
    load = _Load(replicas, requests, chance)
    began, first = time.monotonic(), int(time.time() // 60)
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        chaos(replicas, state, chance, replica_every=every, state_every=1e9) as killed,
    ):
        await asyncio.gather(*(load.client(session) for _ in range(clients)))
        took = time.monotonic() - began
        last = int(time.time() // 60)
    # Leases of killed processes are settled after 30 seconds, at the latest one sweep later.
    await asyncio.sleep(settled_within)
    async with aclosing(await open_stores(StateSettings(url=SecretStr(state.url)), folder, chain_items=1)) as stores:
        stored = await stores.quotas.counters()
    columns = ("kind", "served", "refused", "overshoot", "unused although refused", "charged above the upstream")
    report = Report(f"Quotas of {len(_OWNERS)} owners on {len(replicas)} replicas", columns, wrong=load.wrong)
    report.wrong += replicas.failed
    for kind, limit in LIMITS.items():
        report.row(*_kind(kind, limit, ledger, load, range(first + 1, last), stored, report.wrong, killed.replicas))
    report.row(
        "all", sum(ledger.requests.values()), _count(load, 429), f"{len(load.lasted) / took:.0f} requests a second"
    )
    report.row("replicas killed", killed.replicas, f"{sum(load.cut.values())} requests cut", milliseconds(load.lasted))
    return report


def _kind(
    kind: str,
    limit: float,
    ledger: Ledger,
    load: _Load,
    minutes: range,
    stored: list[StoredCounter],
    wrong: list[str],
    kills: int,
) -> tuple[object, ...]:
    """The row of one kind of limit. `minutes`: the whole minutes of the run. Extends the failures `wrong`."""
    owners = [owner for owner in _OWNERS if owner.rpartition("-")[0] == kind]
    over = unused = beyond = 0.0
    for owner in owners:
        if kind.endswith("_minute"):
            used = [float(ledger.minutes[kind][owner, minute]) for minute in minutes]
            refused = [load.refused_in[owner, minute] > 0 for minute in minutes]
        elif kind == "parallel_requests":
            used, refused = [float(ledger.most[owner])], [False]
        else:
            used = [ledger.cost[owner] / 1e6 if kind == "cost_per_month" else float(ledger.tokens[owner])]
            refused = [_count(load, 429, owner) > 0]
            counted = next((one.used for one in stored if one.subject == f"owner:n:{owner}"), 0)
            beyond = max(beyond, (counted / (1e6 if kind == "cost_per_month" else 1) - used[0]) / limit)
            if counted / (1e6 if kind == "cost_per_month" else 1) < used[0] * 0.999 and not kills:
                wrong.append(f"{owner}: the counter has {counted}, and the upstream served {used[0]}")
        over = max([over, *((one - limit) / limit for one in used)])
        unused = max([unused, *((limit - one) / limit for one, no in zip(used, refused, strict=True) if no)])
    if over > (_OVER_MONTH if kind.endswith("_month") else _SHARE):
        wrong.append(f"{kind}: {over:.1%} over the limit")
    if unused > _SHARE + (0.02 * kills if kind.endswith("_month") else 0.02):
        wrong.append(f"{kind}: {unused:.1%} of the limit unused, and requests were refused")
    served, refusals = sum(ledger.requests[owner] for owner in owners), sum(_count(load, 429, one) for one in owners)
    return kind, served, refusals, f"{over:.2%}", f"{unused:.2%}", f"{beyond:.2%}"


def _count(load: _Load, status: int, owner: str = "") -> int:
    return sum(count for (one, got), count in load.statuses.items() if got == status and owner in ("", one))
