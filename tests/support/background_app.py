"""Simulates several processes on one data folder in one event loop, each with its own store, HTTP server and workers.

Lives here: building each process from settings, as the commands do, and ending one as if it had been killed. Not here:
real processes (`tests/e2e`).

Invariant: the simulated processes share only the data folder and the chat server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from pydantic import SecretStr

from antiphon.app.build import App, build
from antiphon.config.limits import LimitSettings, QuotaSettings
from antiphon.config.operators import AdminSettings, ConsoleSettings
from antiphon.config.owners import JwtSettings, OwnerSettings, SealingSettings
from antiphon.config.settings import Settings
from antiphon.config.state import BackgroundSettings
from antiphon.config.tools import CodeInterpreterSettings
from antiphon.config.upstreams import AuthMode, ModelSettings, PriceSettings, UpstreamSettings
from antiphon.doors.http.server import HttpDoor
from antiphon.stores.sqlite.backend import SqliteStores
from tests.support.chat_server import ChatServer
from tests.support.state import lapse, look, needs_sqlite, state_settings
from tests.support.waiting import until


@dataclass
class BackgroundApp:
    """One simulated process. `url` ends in `/v1`."""

    app: App
    door: HttpDoor
    url: str
    session: aiohttp.ClientSession
    killed: bool = False

    @property
    def sqlite(self) -> SqliteStores:
        """The process's SQLite stores, for tests that bypass the ports."""
        needs_sqlite()
        assert isinstance(self.app.stores, SqliteStores)
        return self.app.stores

    async def create(self, *, token: str = "", **request: Any) -> dict[str, Any]:
        """Send `POST /v1/responses` with `background: true`. Returns the decoded answer."""
        body = {"model": "m", "input": "hi", "background": True, **request}
        async with self.session.post(f"{self.url}/responses", json=body, headers=_bearer(token)) as got:
            value: dict[str, Any] = await got.json()
        return value

    async def ask(self, path: str = "", method: str = "GET", token: str = "") -> tuple[int, Any]:
        """Send a request below `/v1/responses`. Returns the status and the decoded answer."""
        headers = {**_bearer(token), "x-request-id": "same"}
        async with self.session.request(method, f"{self.url}/responses{path}", headers=headers) as got:
            return got.status, await got.json()

    async def get(self, response_id: str, token: str = "") -> dict[str, Any]:
        """Retrieve a stored response."""
        status, value = await self.ask(f"/{response_id}", token=token)
        assert status == 200, value
        found: dict[str, Any] = value
        return found

    async def ended(self, response_id: str, token: str = "") -> dict[str, Any]:
        """Poll a response until it has a final status. Returns the response."""
        async with asyncio.timeout(10):
            while True:
                value = await self.get(response_id, token)
                if value["status"] not in ("queued", "in_progress"):
                    return value
                await asyncio.sleep(0.002)

    async def reaches(self, response_id: str, status: str) -> None:
        """Poll a response until it has this status."""
        async with asyncio.timeout(10):
            while (await self.get(response_id))["status"] != status:
                await asyncio.sleep(0.002)

    def stream(self, response_id: str = "", **query: Any) -> Follower:
        """Open the stream of a stored response, or of a new one if `response_id` is empty."""
        return Follower(self, response_id, query)

    async def kill(self) -> None:
        """End the process without cleanup, so that it holds its leases until they expire."""
        workers = self.app.workers
        workers.retire()
        workers.keep(workers.running, ())
        await until(lambda: not workers.running)
        await workers.aclose()
        self.killed = True

    async def stop(self) -> None:
        """Stop the process in order, as at SIGTERM."""
        await self.session.close()
        await self.door.aclose()
        await self.app.aclose()


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


class Follower:
    """Reads one event stream. `data` has the bytes received so far."""

    def __init__(self, app: BackgroundApp, response_id: str, query: dict[str, Any]) -> None:
        self._app = app
        self._response_id = response_id
        self._query = query
        self.data = b""
        self.cut = False

    async def __aenter__(self) -> Self:
        session, url = self._app.session, f"{self._app.url}/responses"
        if self._response_id:
            parameters = {"stream": "true", **{name: str(value) for name, value in self._query.items()}}
            self._got = await session.get(f"{url}/{self._response_id}", params=parameters)
        else:
            body = {"model": "m", "input": "hi", "background": True, "stream": True, **self._query}
            self._got = await session.post(url, json=body)
        assert self._got.status == 200, await self._got.text()
        assert self._got.content_type == "text/event-stream"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._got.close()

    async def until(self, text: bytes) -> bytes:
        """Read until the stream contains this text. Returns the bytes received so far."""
        async with asyncio.timeout(10):
            while text not in self.data:
                part = await self._got.content.readany()
                assert part, self.data
                self.data += part
        return self.data

    async def whole(self) -> bytes:
        """Read to the end of the stream. Returns all bytes."""
        async with asyncio.timeout(10):
            try:
                while part := await self._got.content.readany():
                    self.data += part
            except aiohttp.ClientPayloadError:
                self.cut = True
        return self.data

    async def response_id(self) -> str:
        """The response's id from the first event."""
        await self.until(b"\n\n")
        event: dict[str, Any] = json.loads(self.data.split(b"\n")[1].removeprefix(b"data: "))
        return str(event["response"]["id"])


@dataclass
class Processes:
    """Opens processes on the folder `data`, in front of the chat server `chat`. `state` is their `state.url`."""

    data: Path
    chat: ChatServer
    state: str = "sqlite:"
    opened: list[BackgroundApp] = field(default_factory=list)

    async def start(
        self,
        *,
        upstream: str = "",
        upstream_profile: str = "generic",
        path_allow: tuple[str, ...] = (),
        keepalive: float = 15.0,
        head: float = 600.0,
        limits: dict[str, Any] | None = None,
        owner: Literal["bearer", "single", "jwt"] = "bearer",
        jwt: JwtSettings | None = None,
        auth: AuthMode = AuthMode.NONE,
        store_never: tuple[str, ...] = (),
        owner_keys: dict[str, Any] | None = None,
        managed_keys: bool = False,
        admin: AdminSettings | None = None,
        console: ConsoleSettings | None = None,
        quotas: dict[str, Any] | None = None,
        prices: tuple[PriceSettings, ...] = (),
        models: tuple[ModelSettings, ...] = (),
        mcp: str = "",
        code_interpreter: CodeInterpreterSettings | None = None,
        seal: bool = False,
        sealing_keys: tuple[str, ...] = (),
        **background: Any,
    ) -> BackgroundApp:
        """Start one more process with these settings. Requests to this process may use the MCP server `mcp`."""
        where = await state_settings(self.data, self.state)
        settings = Settings(
            data=self.data,
            state=where["state"].model_copy(update={"seal": seal}),
            sealing=SealingSettings(keys=tuple(map(SecretStr, sealing_keys)))
            if sealing_keys
            else where.get("sealing", SealingSettings()),
            upstream=UpstreamSettings(
                url=upstream or self.chat.base_url, auth=auth, profile=upstream_profile, path_allow=path_allow
            ),
            background=BackgroundSettings(**background),
            limits=LimitSettings(**(limits or {})),
            quotas=QuotaSettings(**(quotas or {})),
            prices=prices,
            models=models,
            code_interpreter=code_interpreter or CodeInterpreterSettings(),
            admin=admin or AdminSettings(),
            console=console or ConsoleSettings(),
            owner=where.get("owner", OwnerSettings()).model_copy(
                update={
                    "source": owner,
                    "store_never": store_never,
                    "managed_keys": managed_keys,
                    "jwt": jwt or JwtSettings(),
                    **_named(owner_keys),
                }
            ),
        )
        if mcp:
            settings = settings.model_copy(
                update={
                    "fetch": settings.fetch.model_copy(update={"allow_private": ("127.0.0.1",)}),
                    "mcp": settings.mcp.model_copy(update={"allow": (mcp,)}),
                }
            )
        settings = settings.model_copy(
            update={"timeouts": settings.timeouts.model_copy(update={"keepalive": keepalive, "head": head})}
        )
        app = await build(settings, door="http")
        door = HttpDoor(app.context)
        address = await door.start("127.0.0.1:0")
        made = BackgroundApp(app, door, f"http://{address}/v1", aiohttp.ClientSession())
        self.opened.append(made)
        return made

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """Run an SQL statement on the database, bypassing all processes. Returns the rows."""
        return look(self.data, statement, *parameters)

    def expire_leases(self) -> None:
        """Expire all leases of workers, as if much time had passed."""
        lapse(self.data, "jobs", "lease_until", "worker IS NOT NULL")


def _named(owner_keys: dict[str, Any] | None) -> dict[str, Any]:
    """The setting `owner.keys`, or nothing if no keys are given."""
    return {} if owner_keys is None else {"keys": OwnerSettings.model_validate({"keys": owner_keys}).keys}


@asynccontextmanager
async def processes(data: Path, state: str = "sqlite:") -> AsyncIterator[Processes]:
    """A factory of processes. All processes are closed at the end."""
    async with ChatServer() as chat:
        made = Processes(data, chat, state)
        try:
            yield made
        finally:
            for one in made.opened:
                await one.stop()
