"""A real HTTP server of Antiphon for tests, and a client that sends raw bytes.

Lives here: assembling the server with a scriptable chat server, and `RawClient`. The client sends exactly the test's
bytes, and shows how the server split the answer into chunks. Not here: Envoy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from antiphon.api.chat import PassedOn
from antiphon.api.conversations import Conversations
from antiphon.api.files import Files
from antiphon.api.models import ModelCatalog
from antiphon.api.prompts import Prompts
from antiphon.api.router import ReadyProbe, Router
from antiphon.config.limits import LimitSettings, TimeoutSettings, WebSocketSettings
from antiphon.config.operators import ConsoleSettings
from antiphon.doors.context import Admission, ConsolePages, DoorContext
from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.hosted_tools import ToolRunner
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.engine.running.loading import LockedConversations, Ports, StoredFiles
from antiphon.engine.running.runner import Runner
from antiphon.errors import Unavailable
from antiphon.ids import new_id, now
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.repeated_failures import Refusals
from antiphon.redaction import SecretSearch
from antiphon.sealing import Sealer
from antiphon.stores.files import FileStore
from antiphon.stores.leases import Leases
from antiphon.translation.profiles import PROFILES
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.chat_server import DEADLINE, ChatServer
from tests.support.exchanges import SEALER, exchange_options
from tests.support.journal import Noted, recording_exchange
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_prompts import MemoryPromptStore
from tests.support.memory_store import MemoryResponseStore
from tests.support.metrics import value_of
from tests.support.ports import make_ports
from tests.support.waiting import until


@dataclass
class HttpSetup:
    """The settings that a test can change."""

    address: str = "127.0.0.1:0"
    private: bool = False
    cors_origins: tuple[str, ...] = ()
    drive_exchanges: bool = True
    secret: str | None = None
    request_body_bytes: int = 1 << 20
    request_seconds: float = 30.0
    send_seconds: float = 30.0
    concurrent: int = 100
    bytes_in_flight: int = 64 << 20
    owner_requests: int = 0
    owner_bytes: int = 0
    keepalive: float = 15.0
    head_wait: float = 60.0
    owners: OwnerResolver = field(default_factory=lambda: OwnerResolver("bearer", key=b"key"))
    conversations: MemoryConversationStore = field(default_factory=lambda: MemoryConversationStore(clock=now))
    prompts: MemoryPromptStore = field(default_factory=lambda: MemoryPromptStore(clock=now))
    store: MemoryResponseStore = field(default_factory=MemoryResponseStore)
    files: FileStore = field(default_factory=lambda: MemoryFileStore(clock=now))
    file_bytes: int = 1 << 20
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    sealer: Sealer = SEALER
    tools: ToolRunner | None = None
    runner: Callable[[Ports], Runner] = Runner
    console: ConsolePages | None = None
    console_at: ConsoleAt = ConsoleAt.NOWHERE
    journal: Noted | None = None
    secrets: tuple[str, ...] = ()
    records: ConsoleSettings = field(default_factory=ConsoleSettings)


@dataclass
class OpenHttpDoor:
    """A running HTTP server."""

    door: HttpDoor
    context: DoorContext
    store: MemoryResponseStore
    chat: ChatServer
    address: str
    conversations: MemoryConversationStore

    @property
    def base_url(self) -> str:
        return f"http://{self.address}/v1"

    def client(self) -> RawClient:
        """Open a new connection to the server."""
        return RawClient(self.address)

    async def ask(self, data: bytes) -> RawAnswer:
        """Send one request on a new connection. Returns the answer."""
        async with self.client() as client:
            await client.send(data)
            return await client.read()

    async def stored(self, status: str) -> str:
        """Wait until the store has a response with this status. Returns its id."""
        records = self.store.records
        await until(lambda: any(record.status == status for record in records.values()))
        return next(record.id for record in records.values() if record.status == status)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if it was never incremented."""
        return value_of(self.context.telemetry.metrics.render().decode(), name, **labels)


@asynccontextmanager
async def open_http_door(setup: HttpSetup | None = None, **changes: Any) -> AsyncIterator[OpenHttpDoor]:
    """Start the server with a separate chat server."""
    setup = setup or HttpSetup(**changes)
    metrics = Metrics()
    async with ChatServer() as chat:
        upstream = HttpUpstream(UpstreamTarget(chat.base_url))
        counted = CountedUpstream(upstream, metrics, "pass_through")
        runner = setup.runner(
            make_ports(
                setup.store,
                upstream,
                timeouts=TimeoutSettings(keepalive=setup.keepalive, head_wait=setup.head_wait),
                metrics=metrics,
                stored_files=StoredFiles(setup.files, 1 << 20),
                conversations=LockedConversations(setup.conversations, Leases()),
                prompts=setup.prompts,
                tools=setup.tools,
            )
        )
        setup.store.conversations = setup.conversations
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
        types = setup.tools.types if setup.tools is not None else frozenset[str]()
        options = exchange_options(sealer=setup.sealer, tool_types=types)

        async def ready() -> None:
            if admission.leaving:
                raise Unavailable("The server is shutting down.", code="shutting_down")
            await setup.store.ping()

        context = DoorContext(
            new_exchange=lambda: (
                ResponseExchange(options, new_id, now)
                if setup.journal is None
                else recording_exchange(setup.records, options, new_id, now)
            ),
            runner=runner,
            router=Router(
                store=setup.store,
                models=ModelCatalog(upstream),
                ready=ReadyProbe(ready),
                metrics=metrics,
                areas=(
                    *Conversations(setup.conversations, setup.store).endpoints(),
                    *Prompts(setup.prompts).endpoints(),
                    *Files(setup.files, max_bytes=setup.file_bytes, metrics=metrics).endpoints(),
                    *PassedOn(counted, ModelRoutes(ModelRoute(PROFILES["generic"])), journal=setup.journal).endpoints(),
                ),
            ),
            owners=setup.owners,
            admission=admission,
            # `model_construct` skips validation, because tests use values below the settings' minimum.
            limits=LimitSettings.model_construct(request_body_bytes=setup.request_body_bytes),
            timeouts=TimeoutSettings(request=setup.request_seconds, send=setup.send_seconds),
            secrets=SecretSearch(setup.secrets),
            telemetry=Telemetry(metrics, journal=setup.journal, console=setup.records),
            secret=setup.secret,
            cors_origins=setup.cors_origins,
            console=setup.console,
            upload_bytes=setup.file_bytes,
            websocket=setup.websocket,
            bodies=Budget(
                setup.bytes_in_flight,
                "limits.bytes_in_flight",
                share=setup.owner_bytes,
                share_setting="limits.owner_bytes_in_flight",
                refused=refusals.note,
            ),
        )
        door = HttpDoor(context, private=setup.private, drive_exchanges=setup.drive_exchanges, console=setup.console_at)
        address = await door.start(setup.address)
        try:
            yield OpenHttpDoor(door, context, setup.store, chat, address, setup.conversations)
        finally:
            await door.aclose()
            await runner.aclose()
            await upstream.aclose()
            refusals.close()


def post_bytes(
    value: Any = None,
    *,
    path: str = "/v1/responses",
    method: str = "POST",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """The bytes of a whole request, with headers and body."""
    if body is None:
        body = b"" if value is None else json.dumps(value).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: test", "content-type: application/json"]
    given = {"content-length": str(len(body)), **(headers or {})}
    lines += [f"{name}: {content}" for name, content in given.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class RawAnswer:
    """An answer as received. `parts` are the chunks of a chunked body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    parts: list[bytes] = field(default_factory=list)
    whole: bool = True
    """Whether the body ended as its framing requires."""

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the answer. Asserts that the error has OpenAI's form."""
        value = self.json
        assert list(value) == ["error"] and set(value["error"]) - {"request_id"} == {
            "message",
            "type",
            "param",
            "code",
        }, value
        assert self.header("content-type") == "application/json"
        found: dict[str, Any] = value["error"]
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """The data of the events, without `[DONE]`."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class RawClient:
    """One connection that sends and receives raw bytes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        if self._address.startswith("unix:"):
            self._reader, self._writer = await asyncio.open_unix_connection(self._address.removeprefix("unix:"))
        else:
            host, _, port = self._address.rpartition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection without any further data."""
        self._writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(DEADLINE):
            await self._writer.drain()

    async def head(self) -> RawAnswer:
        """Read the status and the headers. `part` reads the body."""
        async with asyncio.timeout(DEADLINE):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return RawAnswer(int(lines[0].split(" ")[1]), tuple((name.lower(), value) for name, value in pairs))

    async def part(self) -> bytes:
        """Read the next chunk of a chunked body; empty at its end. Raises IncompleteReadError if the connection
        breaks."""
        async with asyncio.timeout(DEADLINE):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        return data

    async def exactly(self, size: int) -> bytes:
        """Read `size` bytes of a body. Raises IncompleteReadError if the connection breaks."""
        return await self._reader.readexactly(size)

    async def read(self, *, bodiless: bool = False) -> RawAnswer:
        """Read the whole answer. Skips interim (1xx) answers."""
        answer = await self.head()
        while answer.status < 200:
            answer = await self.head()
        try:
            if answer.header("transfer-encoding") == "chunked":
                while part := await self.part():
                    answer.parts.append(part)
            elif not bodiless and answer.status != 204:
                async with asyncio.timeout(DEADLINE):
                    answer.parts.append(await self._reader.readexactly(int(answer.header("content-length") or 0)))
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.whole = False
        return answer

    async def closed(self) -> bool:
        """Wait for the server to close. Returns False if the server sends data instead."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True
