"""Runs one scenario against one server.

Lives here: sending a scenario's request, or its turns over WebSocket, and checking the answers. Not here: the requests
and checks (`scenarios.py`, `checks.py`), the servers (`run.py`).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from lab.conformance.checks import Answer, Check
from lab.conformance.scenarios import NOT_YET, SCENARIOS, Scenario

Verdict = Literal["pass", "fail", "not yet"]
_ENDS = ("response.completed", "response.failed", "response.incomplete", "error")


@dataclass(frozen=True)
class Server:
    """A server under test. `base_url` ends in `/v1`. With `ours`, the list `NOT_YET` applies."""

    base_url: str
    model: str
    ours: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 30.0


@dataclass(frozen=True)
class Result:
    """The result of a scenario, with the reason if it did not pass."""

    scenario: str
    verdict: Verdict
    reason: str = ""


async def run_scenario(
    session: aiohttp.ClientSession, server: Server, scenario: Scenario, *, official: bool = False
) -> Result:
    """Send the scenario's requests and check the answers. With `official`, skip checks that the official suite does not
    make."""
    try:
        if scenario.turns:
            problem = await _converse(session, server, scenario, official)
        else:
            async with asyncio.timeout(server.seconds):
                problem = _problem(await _send(session, server, scenario), scenario.checks, official)
    except TimeoutError:
        problem = f"no whole answer within {server.seconds:g} s"
    except aiohttp.WSServerHandshakeError as error:
        problem = f"HTTP {error.status}, not 101"
    except (aiohttp.ClientError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    return _judge(scenario, problem, NOT_YET.get(scenario.name) if server.ours else None)


def _judge(scenario: Scenario, problem: str | None, not_yet: str | None) -> Result:
    if not_yet is None:
        return Result(scenario.name, "pass" if problem is None else "fail", problem or "")
    if problem is None:
        return Result(scenario.name, "fail", "it passes: take it out of NOT_YET")
    return Result(scenario.name, "not yet", f"{not_yet} ({problem.split(':')[0]})")


def _problem(answer: Answer, checks: tuple[Check, ...], official: bool) -> str | None:
    """The problem that the first failing check reports, or None."""
    wanted = (check for check in checks if not (official and hasattr(check, "beyond")))
    return next((found for check in wanted if (found := check(answer)) is not None), None)


async def _send(session: aiohttp.ClientSession, server: Server, scenario: Scenario) -> Answer:
    if scenario.body is None:
        return Answer(0, "", b"")
    body = scenario.body if scenario.without_model else {"model": server.model, **scenario.body}
    return await _post(session, server, scenario.path, body)


async def _post(session: aiohttp.ClientSession, server: Server, path: str, body: dict[str, Any]) -> Answer:
    async with session.post(server.base_url + path, json=body, headers=dict(server.headers)) as got:
        return Answer.read(got.status, got.headers.get("content-type", ""), await got.read())


# Over WebSocket.


async def _converse(session: aiohttp.ClientSession, server: Server, scenario: Scenario, official: bool) -> str | None:
    """Run the turns of a scenario, one after the other. Returns the problem of the first failing turn."""
    before: list[Any] = []
    if scenario.compacts is not None:
        async with asyncio.timeout(server.seconds):
            compacted = await _post(session, server, "/responses/compact", {"model": server.model, **scenario.compacts})
        if not compacted.output:
            return f"compaction: HTTP {compacted.status}: {compacted.body[:200].decode('utf-8', 'replace')}"
        before = list(compacted.output)
    socket = await _open(session, server)
    ids: list[str] = []
    try:
        for number, turn in enumerate(scenario.turns, 1):
            if turn.reconnects:
                await socket.close()
                socket = await _open(session, server)
            body = {"type": "response.create", "model": server.model, **turn.body}
            if before:
                body["input"] = [*before, *body["input"]]
                before = []
            if turn.continues is not None:
                body["previous_response_id"] = ids[turn.continues]
            async with asyncio.timeout(server.seconds):
                await socket.send_json(body)
                answer = Answer.turn(await _receive(socket))
            ids.append(answer.value.get("id", "") if isinstance(answer.value, dict) else "")
            if (problem := _problem(answer, turn.checks, official)) is not None:
                last = answer.events[-1] if answer.events else None
                said = f" ({json.dumps(last['error'])[:200]})" if last and last.get("error") else ""
                return f"turn {number}: {problem}{said}"
    finally:
        await socket.close()
    return None


async def _open(session: aiohttp.ClientSession, server: Server) -> aiohttp.ClientWebSocketResponse:
    headers = {"content-type": "application/json", **dict(server.headers)}
    return await session.ws_connect(server.base_url + "/responses", headers=headers, compress=15)


async def _receive(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """Receive frames up to a terminal event or an error, or until the server closes."""
    events: list[dict[str, Any]] = []
    while True:
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return events
        try:
            event = json.loads(message.data)
        except ValueError:
            event = {"type": f"not JSON: {message.data[:80]}"}
        events.append(event)
        failed = isinstance(event.get("error"), dict) and event["error"].get("code")
        if event.get("type") in _ENDS or failed:
            return events


async def run_all(server: Server, *, official: bool = False) -> list[Result]:
    """Run all scenarios concurrently, as the official suite does. The results are in the order of the scenarios."""
    async with aiohttp.ClientSession() as session:
        runs = (run_scenario(session, server, scenario, official=official) for scenario in SCENARIOS)
        return list(await asyncio.gather(*runs))
