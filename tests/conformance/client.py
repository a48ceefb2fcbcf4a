"""One scenario against one server.

Lives here: sending a scenario's request and judging the answer. Not here: what is sent and checked (`scenarios.py`,
`checks.py`), which servers (`run.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import aiohttp

from tests.conformance.checks import Answer
from tests.conformance.scenarios import NOT_YET, SCENARIOS, Scenario

__all__ = ["Result", "Server", "run_all", "run_scenario"]

Verdict = Literal["pass", "fail", "not yet"]


@dataclass(frozen=True)
class Server:
    """A server under test. `base_url` ends in `/v1`; `ours` says that `NOT_YET` counts."""

    base_url: str
    model: str
    ours: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 30.0


@dataclass(frozen=True)
class Result:
    """What became of a scenario, and why it did not pass."""

    scenario: str
    verdict: Verdict
    reason: str = ""


async def run_scenario(
    session: aiohttp.ClientSession, server: Server, scenario: Scenario, *, official: bool = False
) -> Result:
    """Send it and judge the answer; `official` leaves out what the official suite does not check."""
    if scenario.transport == "websocket":
        return Result(scenario.name, "not yet", NOT_YET[scenario.name])
    try:
        async with asyncio.timeout(server.seconds):
            answer = await _send(session, server, scenario)
    except TimeoutError:
        problem: str | None = f"no whole answer within {server.seconds:g} s"
    except (aiohttp.ClientError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        wanted = (check for check in scenario.checks if not (official and hasattr(check, "beyond")))
        problem = next((found for check in wanted if (found := check(answer)) is not None), None)
    return _judge(scenario, problem, NOT_YET.get(scenario.name) if server.ours else None)


def _judge(scenario: Scenario, problem: str | None, not_yet: str | None) -> Result:
    if not_yet is None:
        return Result(scenario.name, "pass" if problem is None else "fail", problem or "")
    if problem is None:
        return Result(scenario.name, "fail", "it passes: take it out of NOT_YET")
    return Result(scenario.name, "not yet", f"{not_yet} ({problem.split(':')[0]})")


async def _send(session: aiohttp.ClientSession, server: Server, scenario: Scenario) -> Answer:
    if scenario.transport == "none":
        return Answer(0, "", b"")
    body = scenario.body if scenario.without_model else {"model": server.model, **scenario.body}
    async with session.post(server.base_url + scenario.path, json=body, headers=dict(server.headers)) as got:
        return Answer.read(got.status, got.headers.get("content-type", ""), await got.read())


async def run_all(server: Server, *, official: bool = False) -> list[Result]:
    """All scenarios at once, as the official suite does it; results in their order."""
    async with aiohttp.ClientSession() as session:
        runs = (run_scenario(session, server, scenario, official=official) for scenario in SCENARIOS)
        return list(await asyncio.gather(*runs))
