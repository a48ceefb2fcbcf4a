"""What belongs to somebody else does not exist: every route is tried with a stranger's ids.

The path table is enumerated, so a new route fails here until it is said what its variables are. For each, the answer
to somebody else's id equals the answer to one that does not exist, byte for byte apart from the id itself, and both ask
the database the same questions. So do ids in bodies.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import Caller
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.units import Step
from antiphon.stores.sqlite.writer import SqliteWriter
from tests.support.chat_server import ChatServer
from tests.support.state import state_settings
from tests.support.strangers import (
    IN_BODIES,
    MISSING,
    NOBODYS,
    Asked,
    attempts,
    belongings,
    filled,
    kinds_of,
    make,
    same_answer,
    usual_spelling,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Server:
    """A real HTTP door with everything behind it."""

    def __init__(
        self, url: str, door: HttpDoor, session: aiohttp.ClientSession, patterns: dict[str, list[str]]
    ) -> None:
        self.url, self._door, self._session = url, door, session
        self.patterns = patterns
        self.questions: list[str] = []

    async def ask(self, owner: str, method: str, path: str, body: Any = None) -> Asked:
        self.questions.clear()
        headers = {"authorization": f"Bearer {owner}", "x-request-id": "same"}
        options: dict[str, Any] = {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
        async with self._session.request(method, self.url + path, headers=headers, **options) as answered:
            content = await answered.read()
            kept = {
                name.lower(): value
                for name, value in answered.headers.items()
                if name.lower() not in ("date", "x-request-id", "content-length")
            }
            return Asked(answered.status, kept, content, list(self.questions))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    # No workers: what is queued stays so.
    async with ChatServer() as chat:
        data = tmp_path_factory.mktemp("data")
        settings = load_settings(
            {
                "data": data,
                "upstream": {"url": chat.base_url, "auth": "none"},
                "background": {"workers": 0},
            }
        )
        app = await build(settings.model_copy(update=await state_settings(data)), door="http")
        door = HttpDoor(app.context)
        address = await door.start("127.0.0.1:0")
        patterns = {
            endpoint.pattern: list(endpoint.methods) for endpoint in app.context.router.endpoints if not endpoint.open
        }
        async with aiohttp.ClientSession() as session:
            server = Server(f"http://{address}", door, session, patterns)
            with _recorded(server.questions):
                yield server
        await door.aclose()
        await app.aclose()


# Set while a request is answered, and in the tasks that come of it; the server's own work has other questions.
_ANSWERING: ContextVar[bool] = ContextVar("answering", default=False)


class _recorded:
    """Notes every statement that a store runs for a request."""

    def __init__(self, questions: list[str]) -> None:
        self._questions = questions
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        fetch, run, resolve = SqliteReaders.fetch, SqliteWriter.run, OwnerResolver.resolve

        def marked_resolve(owners: OwnerResolver, *given: Any) -> Caller:
            # Every request begins with the question whose it is.
            _ANSWERING.set(True)
            return resolve(owners, *given)

        async def noted_fetch(readers: SqliteReaders, sql: str, parameters: Any, **more: Any) -> Any:
            self._questions += [sql] if _ANSWERING.get() else []
            return await fetch(readers, sql, parameters, **more)

        async def noted_run(writer: SqliteWriter, steps: Sequence[Step], **more: Any) -> Any:
            self._questions += [step.sql for step in steps] if _ANSWERING.get() else []
            return await run(writer, steps, **more)

        self._patch.setattr(SqliteReaders, "fetch", noted_fetch)
        self._patch.setattr(SqliteWriter, "run", noted_run)
        for name in ("fetch", "fetchrow", "fetchval", "execute"):
            self._patch.setattr(asyncpg.Connection, name, self._noted(getattr(asyncpg.Connection, name)))
        self._patch.setattr(OwnerResolver, "resolve", marked_resolve)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _noted(self, asks: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noted(connection: Any, sql: str, *parameters: Any, **more: Any) -> Any:
            self._questions += [sql] if _ANSWERING.get() else []
            return await asks(connection, sql, *parameters, **more)

        return noted


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(server: Server) -> dict[str, str]:
    return await belongings(server, "alice")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(server: Server) -> dict[str, str]:
    return await belongings(server, "bob")


async def test_every_route_is_known(server: Server) -> None:
    """A route with a variable of an unknown kind is one that no test tries as a stranger."""
    assert not [pattern for pattern in server.patterns if pattern not in NOBODYS and kinds_of(pattern) is None]


async def test_every_route_as_a_stranger(server: Server, alice: dict[str, str], bob: dict[str, str]) -> None:
    tried = 0
    for attempt in attempts(server, alice, bob):
        answers = [
            await server.ask("bob", attempt.method, attempt.path % ids, attempt.body)
            for ids in (attempt.foreign, attempt.missing)
        ]
        what = (attempt.method, attempt.path, attempt.foreign)
        same_answer(answers[0], answers[1], attempt.foreign, attempt.missing, what)
        assert answers[0].status == 404, (what, answers[0].body)
        tried += 1
    assert tried >= 20


async def test_nothing_was_changed_by_the_stranger(server: Server, alice: dict[str, str]) -> None:
    """And the owner is served where the stranger was not: the questions above were good ones."""
    for pattern, methods in server.patterns.items():
        kinds = kinds_of(pattern)
        if "GET" not in methods or not kinds or pattern in NOBODYS or "/content" in pattern:
            continue
        asked = await server.ask("alice", "GET", pattern.replace("{}", "%s") % tuple(alice[kind] for kind in kinds))
        assert asked.status == 200, (pattern, asked.body)
    conversation = await make(server, "alice", "GET", f"/v1/conversations/{alice['conversation']}/items")
    assert len(conversation["data"]) == 2
    prompt = await make(server, "alice", "GET", f"/v1/prompts/{alice['prompt']}")
    assert prompt["last_version"] == "1"
    assert (await make(server, "alice", "GET", f"/v1/responses/{alice['queued']}"))["status"] == "queued"


async def test_every_list_is_ones_own(server: Server, alice: dict[str, str], bob: dict[str, str]) -> None:
    for pattern, methods in server.patterns.items():
        if "{" in pattern or "GET" not in methods or pattern in NOBODYS:
            continue
        assert json.loads((await server.ask("carol", "GET", pattern)).body)["data"] == [], pattern
        mine = (await server.ask("bob", "GET", pattern)).body
        assert not any(owned.encode() in mine for kind, owned in alice.items() if kind != "version"), pattern
        kind = usual_spelling(pattern).rpartition("/")[2].removesuffix("s").replace("vector_store", "store")
        for cursor in ("after", "before"):
            told = set()
            for each in (alice[kind], MISSING[kind]):
                answer = await server.ask("bob", "GET", f"{pattern}?{cursor}={each}")
                told.add((answer.status, answer.body.replace(each.encode(), b"<id>")))
            assert len(told) == 1, (pattern, cursor, told)


@pytest.mark.parametrize(("path", "body", "kind"), IN_BODIES)
async def test_ids_in_bodies(
    server: Server, alice: dict[str, str], bob: dict[str, str], path: str, body: Any, kind: str
) -> None:
    known = path.replace("{mine}", "{}")
    assert known in server.patterns or known.startswith("/v1/responses"), "no such route any more"
    path = path.replace("{mine}", bob.get("store", ""))
    absent = MISSING["item" if kind == "output" else kind]
    foreign = await server.ask("bob", "POST", path, filled(body, {kind: alice[kind]}))
    missing = await server.ask("bob", "POST", path, filled(body, {kind: absent}))
    same_answer(foreign, missing, (alice[kind],), (absent,), (path, body))
    error = json.loads(foreign.body)["error"]
    assert foreign.status in (400, 404) and error["type"] == "invalid_request_error"
    # The owner may: nothing but the owner made the difference. (What is queued cannot be continued yet, and an approval
    # belongs behind its request.)
    mine = await server.ask("bob", "POST", path, filled(body, {kind: bob[kind]}))
    assert mine.status == 200 or kind in ("queued", "approval"), mine.body
