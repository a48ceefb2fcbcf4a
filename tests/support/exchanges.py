"""Runs an exchange in a test, in place of a server and the runner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from antiphon.config.limits import LimitSettings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.response_exchange import ExchangeOptions, ResponseExchange
from antiphon.engine.ports.actions import (
    Action,
    CallUpstream,
    Context,
    Finish,
    LoadContext,
    PrepareTools,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
)
from antiphon.engine.ports.hosted_tools import ToolRunner
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import UpstreamError
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.hosted_tools import ScriptedTools

SSE = (("content-type", "text/event-stream"),)
JSON = (("content-type", "application/json"),)
SEALER = Sealer([b"a key of the tests"], random_bytes=bytes)


@dataclass
class Outcome:
    """All actions that an exchange returned."""

    head: SendHead | None = None
    body: bytes = b""
    parts: list[bytes] = field(default_factory=list)
    finish: Finish | None = None
    calls: list[CallUpstream] = field(default_factory=list)
    records: list[ResponseRecord] = field(default_factory=list)
    loads: list[LoadContext] = field(default_factory=list)
    releases: list[ReleaseConversation] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chat(self) -> Any:
        """The chat request that the exchange sent."""
        return json.loads(self.calls[-1].request.body)


def limits(**changed: Any) -> LimitSettings:
    """Limits that may be smaller than the settings allow."""
    return LimitSettings.model_construct(**changed)


def exchange_options(
    profile: str = "generic",
    *,
    passthrough: bool = True,
    upstream_headers: frozenset[str] = frozenset(),
    routes: ModelRoutes | None = None,
    sealer: Sealer = SEALER,
    **options: Any,
) -> ExchangeOptions:
    """Options of an exchange. All models are at one upstream with this profile, unless `routes` names more."""
    route = ModelRoute(PROFILES[profile], passthrough=passthrough, headers=upstream_headers)
    return ExchangeOptions(routes or ModelRoutes(route), sealer, **options)


def make_exchange(profile: str = "generic", **options: Any) -> ResponseExchange:
    return ResponseExchange(exchange_options(profile, **options), SequentialIds(), fixed_clock)


def pump(
    exchange: ResponseExchange,
    outcome: Outcome,
    context: Context | None = None,
    tools: ScriptedTools | None = None,
) -> None:
    """Perform the actions that need no upstream, until the exchange waits for one."""
    while actions := exchange.actions():
        for action in actions:
            if isinstance(action, PrepareTools):
                assert tools is not None
                exchange.receive_tools(tools.prepare_now(action.tools))
            elif isinstance(action, RunTools):
                assert tools is not None
                # The last call ends first. The items must still come in the order of the calls.
                for call in reversed(action.calls):
                    exchange.receive_tool_result(tools.run_now(call))
            else:
                _perform(exchange, outcome, action, context)


def _perform(exchange: ResponseExchange, outcome: Outcome, action: Action, context: Context | None) -> None:
    """Perform one action that runs no tools."""
    if isinstance(action, SendHead):
        assert outcome.head is None, "a second head"
        outcome.head = action
    elif isinstance(action, SendBody):
        assert outcome.head is not None and outcome.finish is None
        outcome.body += action.data
        outcome.parts.append(action.data)
    elif isinstance(action, Finish):
        assert outcome.finish is None
        outcome.finish = action
    elif isinstance(action, CallUpstream):
        outcome.calls.append(action)
    elif isinstance(action, SaveResponse):
        outcome.records.append(action.record)
        exchange.receive_saved()
    elif isinstance(action, ReleaseConversation):
        outcome.releases.append(action)
    elif isinstance(action, LoadContext):
        outcome.loads.append(action)
        exchange.receive_context(context or Context())


async def converse(
    request: dict[str, Any], turns: Iterable[bytes], box: ToolRunner, *, context: Context | None = None, **options: Any
) -> Outcome:
    """Run one request with real tools. `turns` are the model's answers, as streams or JSON according to the request."""
    exchange = make_exchange(tool_types=box.types, **options)
    outcome = Outcome()

    async def go_on() -> None:
        while actions := exchange.actions():
            for action in actions:
                if isinstance(action, PrepareTools):
                    exchange.receive_tools(await box.prepare(action.owner, action.response_id, action.tools))
                elif isinstance(action, RunTools):
                    for result in await asyncio.gather(*(box.run(call) for call in action.calls)):
                        exchange.receive_tool_result(result)
                else:
                    _perform(exchange, outcome, action, context)

    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    await go_on()
    for turn in turns:
        if exchange.done:
            break
        call = outcome.calls[-1]
        exchange.receive_upstream_head(200, SSE if call.request.stream else JSON)
        await go_on()
        exchange.receive_upstream_data(turn)
        await go_on()
        if not exchange.done and outcome.calls[-1] is call:
            exchange.receive_upstream_end()
            await go_on()
    assert exchange.done
    return outcome


def run(
    request: dict[str, Any] | bytes,
    pieces: Iterable[bytes] = (),
    *,
    status: int = 200,
    headers: tuple[tuple[str, str], ...] = SSE,
    client_headers: tuple[tuple[str, str], ...] = (),
    error: UpstreamError | None = None,
    context: Context | None = None,
    profile: str = "generic",
    tools: ScriptedTools | None = None,
    **options: Any,
) -> Outcome:
    """Run one request to its end. Each model call gets the same upstream answer."""
    if tools is not None:
        options["tool_types"] = tools.types
    exchange = make_exchange(profile, **options)
    outcome = Outcome()
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", client_headers, "owner"), body)
    pump(exchange, outcome, context, tools)
    pieces = list(pieces)
    for call in outcome.calls:
        # `pump` may add the model call of a later turn during this loop.
        exchange.receive_upstream_head(status, headers)
        pump(exchange, outcome, tools=tools)
        for piece in pieces:
            if outcome.calls[-1] is call:
                exchange.receive_upstream_data(piece)
                pump(exchange, outcome, tools=tools)
        if outcome.calls[-1] is call:
            exchange.receive_upstream_end(error)
            pump(exchange, outcome, tools=tools)
    assert exchange.done
    return outcome
