"""Checks on two replicas that an object of one owner does not exist for another owner, whichever replica serves.

Lives here: the run and its verdict. Not here: the list of routes (`tests/support/strangers.py`).

One replica creates all objects of the owner alice, and another all objects of bob. Then bob tries each route, and each
id in a body, on every replica. He must get the answers for ids that do not exist, and no answer may contain text of
alice's. At the end alice must find all her objects on every replica.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab.scale.clients import read, sessions
from lab.scale.replicas import Replicas
from lab.scale.report import Report
from tests.support.strangers import (
    IN_BODIES,
    MISSING,
    NOBODYS,
    Asked,
    attempts,
    belongings,
    filled,
    kinds_of,
    same_answer,
    usual_spelling,
)

ALICE, BOB = "alice", "bob"
OWNERS_SETTINGS: dict[str, Any] = {
    # No worker runs, so queued responses stay queued.
    "background": {"workers": 0},
    "vector_stores": {"ingest": 0},
    "models": [{"match": "m", "model": "demo"}],
}
"""The settings of the replicas for this run."""
# Objects of one process only, or without an owner.
_OPEN = frozenset({"/health", "/ready", "/metrics", "/openapi.json"})


@dataclass
class _Replica:
    """One replica that serves requests. `heard` has all answers to bob."""

    session: aiohttp.ClientSession
    url: str
    patterns: dict[str, list[str]]
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    async def ask(self, owner: str, method: str, path: str, body: Any = None) -> Asked:
        headers = {"authorization": f"Bearer {owner}", "x-request-id": "same"}
        options: dict[str, Any] = {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
        async with self.session.request(method, self.url + path, headers=headers, **options) as got:
            content = await got.read()
            kept = {
                name.lower(): value
                for name, value in got.headers.items()
                if name.lower() not in ("date", "x-request-id", "content-length")
            }
        if owner == BOB:
            self.heard.append((f"{method} {path}", content))
        return Asked(got.status, kept, content)


async def owners(replicas: Replicas) -> Report:
    """Try all routes. The report has the number of requests, and those that returned data of another owner."""
    report = Report(f"Two owners on {len(replicas)} replicas", ("replicas", str(len(replicas))))
    async with sessions() as session:
        asked = [await _replica(session, replicas.url(number)) for number in range(len(replicas))]
        unknown = {one for one in asked[0].patterns if one not in NOBODYS and kinds_of(one) is None}
        report.wrong += [f"{pattern}: this run does not know its variables" for pattern in sorted(unknown)]
        alice, bob = await belongings(asked[0], ALICE), await belongings(asked[-1], BOB)
        report.row("routes with ids", sum(bool(kinds_of(one)) for one in asked[0].patterns))
        counted = dict.fromkeys(("ids in paths", "lists", "ids in bodies", "alice's own, read by her"), 0)
        for replica in asked:
            counted["ids in paths"] += await _paths(replica, alice, bob, report)
            counted["lists"] += await _lists(replica, alice, report)
            counted["ids in bodies"] += await _bodies(replica, alice, bob, report)
        for replica in asked:
            counted["alice's own, read by her"] += await _own(replica, alice, report)
        heard = [one for replica in asked for one in replica.heard]
    for what, number in counted.items():
        report.row(what, number)
        report.wrong += [] if number else [f"{what}: nothing was tried"]
    report.row("answers to bob", len(heard))
    crossed = [where for where, content in heard if ALICE.encode() in content]
    report.row("of them with a word of alice's", len(crossed))
    report.wrong += [f"{where} told bob a word of alice's" for where in crossed]
    return report


async def _replica(session: aiohttp.ClientSession, url: str) -> _Replica:
    paths = (await read(session, url, "/openapi.json"))["paths"]
    methods = {"get", "post", "put", "patch", "delete"}
    return _Replica(
        session,
        url,
        {
            # A model's name may contain a slash, so the check does not treat it as an id.
            re.sub(r"\{[^}]*\}", "{*}" if path.startswith("/v1/models/") else "{}", path): [
                method.upper() for method in given if method in methods
            ]
            for path, given in paths.items()
            if path not in _OPEN
        },
    )


async def _paths(replica: _Replica, alice: dict[str, str], bob: dict[str, str], report: Report) -> int:
    tried = 0
    for one in attempts(replica, alice, bob):
        answers = [await replica.ask(BOB, one.method, one.path % ids, one.body) for ids in (one.foreign, one.missing)]
        _judge(report, answers, one.foreign, one.missing, f"{one.method} {one.path} at {replica.url}")
        if answers[0].status != 404:
            report.wrong.append(f"{one.method} {one.path} is a {answers[0].status}")
        tried += 1
    return tried


async def _bodies(replica: _Replica, alice: dict[str, str], bob: dict[str, str], report: Report) -> int:
    for path, body, kind in IN_BODIES:
        absent, where = MISSING["item" if kind == "output" else kind], path.replace("{mine}", bob["store"])
        answers = [await replica.ask(BOB, "POST", where, filled(body, {kind: one})) for one in (alice[kind], absent)]
        _judge(report, answers, (alice[kind],), (absent,), f"{path} with a {kind} at {replica.url}")
    return len(IN_BODIES)


async def _lists(replica: _Replica, alice: dict[str, str], report: Report) -> int:
    tried = 0
    for pattern, methods in replica.patterns.items():
        if "{" in pattern or "GET" not in methods or pattern in NOBODYS:
            continue
        asked = await replica.ask(BOB, "GET", pattern)
        data = json.loads(asked.body).get("data")
        if asked.status != 200 or not data:
            report.wrong.append(f"{pattern} is no list of bob's: {asked.status} {asked.body[:200]!r}")
        if any(owned.encode() in asked.body for kind, owned in alice.items() if kind != "version"):
            report.wrong.append(f"{pattern} at {replica.url} lists alice's")
        tried += 1
    return tried


async def _own(replica: _Replica, alice: dict[str, str], report: Report) -> int:
    tried = 0
    for pattern, methods in replica.patterns.items():
        kinds = kinds_of(pattern)
        if (
            "GET" not in methods
            or not kinds
            or pattern in NOBODYS
            or "vector_stores/{}/files/{}/content" in usual_spelling(pattern)
        ):
            continue
        asked = await replica.ask(ALICE, "GET", pattern.replace("{}", "%s") % tuple(alice[kind] for kind in kinds))
        if asked.status != 200:
            report.wrong.append(f"{pattern} at {replica.url} is not alice's own: {asked.status} {asked.body[:200]!r}")
        tried += 1
    return tried


def _judge(report: Report, answers: list[Asked], foreign: tuple[str, ...], missing: tuple[str, ...], what: str) -> None:
    try:
        same_answer(answers[0], answers[1], foreign, missing, what)
    except AssertionError as different:
        report.wrong.append(f"{what}: not the answer to an id that does not exist: {different}"[:500])
