"""A real ext_proc server for tests, with gRPC server, exchange, runner, router and HTTP client.

Lives here: assembling the server, with its state in memory, on a Unix socket. Not here: Envoy's side (`fake_envoy.py`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antiphon.api.models import ModelCatalog
from antiphon.api.router import ReadyProbe, Router
from antiphon.config.limits import LimitSettings, TimeoutSettings
from antiphon.config.operators import ConsoleSettings
from antiphon.doors.context import Admission, DoorContext
from antiphon.doors.extproc.server import ExtProcDoor, Mode, TransportName
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.hosted_tools import ToolRunner
from antiphon.engine.running.runner import Runner
from antiphon.ids import Clock
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.repeated_failures import Refusals
from antiphon.redaction import SecretSearch
from antiphon.stores.responses import ResponseStore
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget
from tests.support.chat_server import ChatServer
from tests.support.exchanges import exchange_options
from tests.support.fake_envoy import DEADLINE, EnvoyStream, FakeEnvoy
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.journal import Noted, recording_exchange
from tests.support.memory_store import MemoryResponseStore
from tests.support.metrics import value_of
from tests.support.ports import make_ports

SSE = (("content-type", "text/event-stream"),)
JSON = (("content-type", "application/json"),)


default_transport: TransportName = "auto"
"""The transport of tests that do not name one. The suites run once with each transport."""


@dataclass
class DoorSetup:
    """The settings that a test can change."""

    mode: Mode = "auto"
    transport: TransportName = "auto"
    address: str = ""
    secret: str | None = None
    request_body_bytes: int = 1 << 20
    request_seconds: float = 30.0
    concurrent: int = 100
    bytes_in_flight: int = 64 << 20
    owner_requests: int = 0
    owner_bytes: int = 0
    keepalive: float = 15.0
    head_wait: float = 60.0
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    end_seconds: float = 1.0
    record_seconds: float = 5.0
    drive_stream_bytes: int = 64 << 20
    owners: OwnerResolver = field(default_factory=lambda: OwnerResolver("bearer", key=b"key"))
    store: ResponseStore | None = None
    exchange: dict[str, Any] = field(default_factory=dict)
    tools: ToolRunner | None = None
    exchange_type: type[ResponseExchange] = ResponseExchange
    clock: Clock = fixed_clock
    journal: Noted | None = None
    secrets: tuple[str, ...] = ()


@dataclass
class OpenDoor:
    """A running ext_proc server."""

    door: ExtProcDoor
    context: DoorContext
    store: MemoryResponseStore
    chat: ChatServer
    address: str
    envoy: FakeEnvoy

    def stream(self, **options: Any) -> EnvoyStream:
        return self.envoy.stream(**options)

    async def metric(self, name: str, **labels: str) -> float:
        """The value of a metric after all requests in flight have ended; 0 if it was never incremented."""
        assert await self.context.admission.drained(DEADLINE)
        return value_of(self.context.telemetry.metrics.render().decode(), name, **labels)


@asynccontextmanager
async def open_door(folder: Path, setup: DoorSetup | None = None, **changes: Any) -> AsyncIterator[OpenDoor]:
    """Start the server in `folder`, with a chat server for the calls that the sidecar makes itself."""
    setup = setup or DoorSetup(**changes)
    memory = MemoryResponseStore()
    store = setup.store or memory
    metrics = Metrics()
    async with ChatServer(unix_path=folder / "chat.sock") as chat:
        upstream = HttpUpstream(UpstreamTarget("http://model-door/v1", unix_path=str(folder / "chat.sock")))
        runner = Runner(
            make_ports(
                store,
                upstream,
                timeouts=TimeoutSettings(keepalive=setup.keepalive, head_wait=setup.head_wait),
                metrics=metrics,
                tools=setup.tools,
            )
        )
        refusals = Refusals(metrics.refused.add)
        admission = Admission(
            Budget(
                setup.concurrent,
                "limits.concurrent_requests",
                unit="requests",
                share=setup.owner_requests,
                share_setting="limits.owner_requests",
                refused=refusals.note,
            )
        )
        context = DoorContext(
            new_exchange=_exchanges(setup),
            runner=runner,
            router=Router(store=store, models=ModelCatalog(upstream), ready=ReadyProbe(store.ping), metrics=metrics),
            owners=setup.owners,
            admission=admission,
            # `model_construct` skips validation, because tests use values below the settings' minimum.
            limits=LimitSettings.model_construct(
                request_body_bytes=setup.request_body_bytes, drive_stream_bytes=setup.drive_stream_bytes
            ),
            timeouts=setup.timeouts.model_copy(update={"request": setup.request_seconds}),
            secrets=SecretSearch(setup.secrets),
            telemetry=Telemetry(metrics, journal=setup.journal, console=ConsoleSettings(record="all")),
            secret=setup.secret,
            bodies=Budget(
                setup.bytes_in_flight,
                "limits.bytes_in_flight",
                share=setup.owner_bytes,
                share_setting="limits.owner_bytes_in_flight",
                refused=refusals.note,
            ),
        )
        transport = default_transport if setup.transport == "auto" else setup.transport
        door = ExtProcDoor(
            context,
            mode=setup.mode,
            transport=transport,
            end_seconds=setup.end_seconds,
            record_seconds=setup.record_seconds,
        )
        address = await door.start(setup.address or f"unix:{folder}/grpc.sock")
        try:
            async with FakeEnvoy(address, secret=setup.secret) as envoy:
                yield OpenDoor(door, context, memory, chat, address, envoy)
        finally:
            await door.aclose()
            await runner.aclose()
            await upstream.aclose()
            refusals.close()


def _exchanges(setup: DoorSetup) -> Callable[[], ResponseExchange]:
    types = setup.tools.types if setup.tools is not None else frozenset[str]()
    options = exchange_options(tool_types=types, **setup.exchange)
    ids = SequentialIds()
    if setup.journal is not None:
        return lambda: recording_exchange(ConsoleSettings(record="all"), options, ids, setup.clock)
    return lambda: setup.exchange_type(options, ids, setup.clock)


def request_body(text: str = "Hi", **fields: Any) -> bytes:
    """The body of a request for a response."""
    return json.dumps({"model": "demo-model", "input": text, **fields}).encode()


def sse_events(body: bytes) -> list[str]:
    """The event names of a stream, in order, with `[DONE]`. Skips comments."""
    names = []
    for block in body.split(b"\n\n"):
        for line in block.split(b"\n"):
            if line.startswith(b"event: "):
                names.append(line[7:].decode())
            elif line == b"data: [DONE]":
                names.append("[DONE]")
    return names
