"""What belongs to somebody else does not exist: every route is tried with a stranger's ids.

The path table is enumerated, so a new route fails here until it is said what its variables are. For each, the answer
to somebody else's id equals the answer to one that does not exist, byte for byte apart from the id itself, and both ask
the database the same questions. So do ids in bodies.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter, Statement
from tests.support.chat_server import ChatServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What each variable of each path names, in their order.
VARIABLES: dict[str, tuple[str, ...]] = {
    "/v1/responses/{}": ("response",),
    "/v1/responses/{}/input_items": ("response",),
    "/v1/responses/{}/cancel": ("response",),
    "/v1/conversations/{}": ("conversation",),
    "/v1/conversations/{}/items": ("conversation",),
    "/v1/conversations/{}/items/{}": ("conversation", "item"),
    "/v1/prompts/{}": ("prompt",),
    "/v1/prompts/{}/versions": ("prompt",),
    "/v1/prompts/{}/versions/{}": ("prompt", "version"),
    "/v1/prompts/{}/default_version": ("prompt",),
    "/v1/prompts/{}/set-default-version": ("prompt",),
    "/v1/files/{}": ("file",),
    "/v1/files/{}/content": ("file",),
    "/v1/vector_stores/{}": ("store",),
    "/v1/vector_stores/{}/search": ("store",),
    "/v1/vector_stores/{}/files": ("store",),
    "/v1/vector_stores/{}/files/{}": ("store", "file"),
    "/v1/vector_stores/{}/files/{}/content": ("store", "file"),
    "/v1/vector_stores/{}/file_batches": ("store",),
    "/v1/vector_stores/{}/file_batches/{}": ("store", "batch"),
    "/v1/vector_stores/{}/file_batches/{}/cancel": ("store", "batch"),
    "/v1/vector_stores/{}/file_batches/{}/files": ("store", "batch"),
}
NOBODYS = {"/v1/models/{*}": "models are everybody's", "/v1/models": "", "/v1/antiphon/capabilities": ""}

# Kinds that stand for others in a path: the second kind of response is one that is queued.
KINDS = {"response": ("response", "queued")}
MISSING = {
    "response": "resp_" + "0" * 48,
    "queued": "resp_" + "0" * 48,
    "conversation": "conv_" + "0" * 48,
    "item": "msg_" + "0" * 48,
    "prompt": "pmpt_" + "0" * 48,
    "version": "9",
    "file": "file-" + "0" * 32,
    "store": "vs_" + "0" * 48,
    "batch": "vsfb_" + "0" * 48,
    "approval": "mcpr_" + "0" * 48,
}
QUERIES = {
    ("GET", "/v1/responses/{}"): ("", "?stream=true", "?stream=true&starting_after=0", "?include[]=x"),
    ("GET", "/v1/prompts/{}"): ("", "?version=1"),
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/conversations/{}"): {"metadata": {}},
    ("POST", "/v1/conversations/{}/items"): {"items": [{"role": "user", "content": "x"}]},
    ("POST", "/v1/prompts/{}"): {"instructions": "x"},
    ("PUT", "/v1/prompts/{}"): {"instructions": "x"},
    ("POST", "/v1/prompts/{}/default_version"): {"version": 1},
    ("PUT", "/v1/prompts/{}/default_version"): {"version": 1},
    ("POST", "/v1/prompts/{}/set-default-version"): {"version": 1},
    ("PUT", "/v1/prompts/{}/set-default-version"): {"version": 1},
    ("POST", "/v1/vector_stores/{}"): {"name": "x"},
    ("POST", "/v1/vector_stores/{}/search"): {"query": "x"},
    ("POST", "/v1/vector_stores/{}/files"): {"file_id": "{file}"},
    ("POST", "/v1/vector_stores/{}/files/{}"): {"attributes": {"a": "b"}},
    ("POST", "/v1/vector_stores/{}/file_batches"): {"file_ids": ["{file}"]},
}
# Ids in bodies: the path, the body with what is tried, and which kind that is.
_ASK = {"model": "m", "input": "hi"}
_FILE = {"role": "user", "content": [{"type": "input_file", "file_id": "{file}"}]}
_APPROVAL = {"type": "mcp_approval_response", "approval_request_id": "{approval}", "approve": True}
IN_BODIES: tuple[tuple[str, Any, str], ...] = (
    ("/v1/responses", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses", {**_ASK, "previous_response_id": "{queued}"}, "queued"),
    ("/v1/responses", {**_ASK, "conversation": "{conversation}"}, "conversation"),
    ("/v1/responses", {**_ASK, "conversation": {"id": "{conversation}"}, "store": False}, "conversation"),
    ("/v1/responses", {**_ASK, "conversation": "{conversation}", "stream": True}, "conversation"),
    ("/v1/responses", {**_ASK, "prompt": {"id": "{prompt}"}}, "prompt"),
    ("/v1/responses", {**_ASK, "prompt": {"id": "{prompt}", "version": "1"}}, "prompt"),
    ("/v1/responses", {**_ASK, "input": [{"type": "item_reference", "id": "{item}"}]}, "item"),
    ("/v1/responses", {**_ASK, "input": [{"type": "item_reference", "id": "{output}"}]}, "output"),
    ("/v1/responses", {**_ASK, "input": [_FILE]}, "file"),
    ("/v1/responses", {**_ASK, "input": [_APPROVAL]}, "approval"),
    ("/v1/responses/input_tokens", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses/input_tokens", {**_ASK, "conversation": "{conversation}"}, "conversation"),
    ("/v1/responses/compact", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/conversations", {"items": [{"type": "item_reference", "id": "{item}"}]}, "item"),
    ("/v1/conversations", {"items": [{"type": "item_reference", "id": "{output}"}]}, "output"),
    ("/v1/vector_stores", {"file_ids": ["{file}"]}, "file"),
    ("/v1/vector_stores/{mine}/files", {"file_id": "{file}"}, "file"),
    ("/v1/vector_stores/{mine}/file_batches", {"file_ids": ["{file}"]}, "file"),
    # The last one: no worker ends it, and the conversation stays locked.
    ("/v1/responses", {**_ASK, "conversation": "{conversation}", "background": True}, "conversation"),
)


def _plain(pattern: str) -> str:
    """Another spelling is no other endpoint."""
    return pattern.replace("/v1/vector-stores", "/v1/vector_stores")


@dataclass
class Asked:
    """What was answered, and what the database was asked for it."""

    status: int
    headers: dict[str, str]
    body: bytes
    questions: list[str] = field(default_factory=list)


class Server:
    """A real HTTP door with everything behind it, on SQLite."""

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

    async def make(self, owner: str, method: str, path: str, body: Any = None) -> Any:
        asked = await self.ask(owner, method, path, body)
        assert asked.status == 200, (path, asked.body)
        return json.loads(asked.body)


async def belongings(server: Server, owner: str) -> dict[str, str]:
    """One of everything, by its kind."""
    response = await server.make(owner, "POST", "/v1/responses", _ASK)
    queued = await server.make(owner, "POST", "/v1/responses", {**_ASK, "background": True})
    request = {"type": "mcp_approval_request", "server_label": "s", "name": "f", "arguments": "{}"}
    items = {"items": [request, {"role": "user", "content": f"{owner}'s words"}]}
    conversation = (await server.make(owner, "POST", "/v1/conversations", items))["id"]
    listed = await server.make(owner, "GET", f"/v1/conversations/{conversation}/items")
    prompt = await server.make(owner, "POST", "/v1/prompts", {"instructions": "x"})
    owned = {
        "response": response["id"],
        "output": response["output"][0]["id"],
        "queued": queued["id"],
        "conversation": conversation,
        "item": listed["data"][0]["id"],
        "approval": listed["data"][1]["id"],
        "prompt": prompt["id"],
        "version": "1",
    }
    if "/v1/files" in server.patterns:
        form = aiohttp.FormData()
        form.add_field("purpose", "user_data")
        form.add_field("file", f"{owner}'s file".encode(), filename="a.txt", content_type="text/plain")
        owned["file"] = (await server.make(owner, "POST", "/v1/files", form))["id"]
    if "/v1/vector_stores" in server.patterns:
        store = (await server.make(owner, "POST", "/v1/vector_stores", {"name": "x"}))["id"]
        batch = {"file_ids": [owned["file"]]}
        owned["store"] = store
        owned["batch"] = (await server.make(owner, "POST", f"/v1/vector_stores/{store}/file_batches", batch))["id"]
    return owned


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    # No workers: what is queued stays so.
    async with ChatServer() as chat:
        settings = load_settings(
            {
                "data": tmp_path_factory.mktemp("data"),
                "upstream": {"url": chat.base_url, "auth": "none"},
                "background": {"workers": 0},
            }
        )
        app = await build(settings, door="http")
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
        fetch, run, answer = SqliteReaders.fetch, SqliteWriter.run, HttpDoor._answer

        async def marked_answer(door: HttpDoor, *given: Any) -> Any:
            _ANSWERING.set(True)
            return await answer(door, *given)

        async def noted_fetch(readers: SqliteReaders, sql: str, parameters: Any) -> Any:
            self._questions += [sql] if _ANSWERING.get() else []
            return await fetch(readers, sql, parameters)

        async def noted_run(writer: SqliteWriter, statements: Sequence[Statement], **more: Any) -> Any:
            self._questions += [statement.sql for statement in statements] if _ANSWERING.get() else []
            return await run(writer, statements, **more)

        self._patch.setattr(SqliteReaders, "fetch", noted_fetch)
        self._patch.setattr(SqliteWriter, "run", noted_run)
        self._patch.setattr(HttpDoor, "_answer", marked_answer)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(server: Server) -> dict[str, str]:
    return await belongings(server, "alice")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(server: Server) -> dict[str, str]:
    return await belongings(server, "bob")


def _filled(value: Any, ids: dict[str, str]) -> Any:
    text = json.dumps(value)
    for kind, found in ids.items():
        text = text.replace("{" + kind + "}", found)
    return json.loads(text)


def _check(foreign: Asked, missing: Asked, tried: Sequence[str], absent: Sequence[str], what: object) -> None:
    assert foreign.status == missing.status >= 400, (what, foreign.body, missing.body)
    assert foreign.headers == missing.headers, what
    said = []
    for asked, ids in ((foreign, tried), (missing, absent)):
        # The table of a search index is named after its store.
        text = "\n".join([asked.body.decode(), *asked.questions])
        for one in ids:
            text = text.replace(one, "<id>")
        said.append(text)
    assert said[0] == said[1], what


def _ways(kinds: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Which ids are the stranger's own: none, or all but the last one, two, ...; the rest is somebody else's."""
    for number in range(len(kinds)):
        for chosen in itertools.product(*(KINDS.get(kind, (kind,)) for kind in kinds)):
            yield tuple("own" if at < number else kind for at, kind in enumerate(chosen))


async def test_every_route_is_known(server: Server) -> None:
    """A route with variables that is not in the table above is one that nobody tried as a stranger."""
    unknown = {_plain(pattern) for pattern in server.patterns if "{" in pattern} - VARIABLES.keys() - NOBODYS.keys()
    assert not unknown


async def test_every_route_as_a_stranger(server: Server, alice: dict[str, str], bob: dict[str, str]) -> None:
    tried = 0
    for pattern, methods in server.patterns.items():
        plain = _plain(pattern)
        if plain not in VARIABLES:
            continue
        kinds = VARIABLES[plain]
        for method in methods:
            for way, query in itertools.product(_ways(kinds), QUERIES.get((method, plain), ("",))):
                foreign = [
                    bob[kind] if choice == "own" else alice[choice] for kind, choice in zip(kinds, way, strict=True)
                ]
                missing = [
                    bob[kind] if choice == "own" else MISSING[choice] for kind, choice in zip(kinds, way, strict=True)
                ]
                if foreign == missing or way[-1] == "version":
                    # A version is a number: everybody's are the same.
                    continue
                body = _filled(BODIES.get((method, plain)), bob)
                path = pattern.replace("{}", "%s") + query
                answers = [await server.ask("bob", method, path % tuple(ids), body) for ids in (foreign, missing)]
                _check(answers[0], answers[1], foreign, missing, (method, path, way))
                assert answers[0].status == 404, (method, path, way, answers[0].body)
                tried += 1
    assert tried >= 20


async def test_nothing_was_changed_by_the_stranger(server: Server, alice: dict[str, str]) -> None:
    """And the owner is served where the stranger was not: the questions above were good ones."""
    for pattern, methods in server.patterns.items():
        kinds = VARIABLES.get(_plain(pattern), ())
        if "GET" not in methods or not kinds or "/content" in pattern:
            continue
        asked = await server.ask("alice", "GET", pattern.replace("{}", "%s") % tuple(alice[kind] for kind in kinds))
        assert asked.status == 200, (pattern, asked.body)
    conversation = await server.make("alice", "GET", f"/v1/conversations/{alice['conversation']}/items")
    assert len(conversation["data"]) == 2
    prompt = await server.make("alice", "GET", f"/v1/prompts/{alice['prompt']}")
    assert prompt["last_version"] == "1"
    assert (await server.make("alice", "GET", f"/v1/responses/{alice['queued']}"))["status"] == "queued"


async def test_every_list_is_ones_own(server: Server, alice: dict[str, str], bob: dict[str, str]) -> None:
    for pattern, methods in server.patterns.items():
        if "{" in pattern or "GET" not in methods or pattern in NOBODYS:
            continue
        assert json.loads((await server.ask("carol", "GET", pattern)).body)["data"] == [], pattern
        mine = (await server.ask("bob", "GET", pattern)).body
        assert not any(owned.encode() in mine for kind, owned in alice.items() if kind != "version"), pattern
        kind = _plain(pattern).rpartition("/")[2].removesuffix("s").replace("vector_store", "store")
        for cursor in ("after", "before"):
            answers = [
                await server.ask("bob", "GET", f"{pattern}?{cursor}={each}") for each in (alice[kind], MISSING[kind])
            ]
            assert (answers[0].status, answers[0].body) == (answers[1].status, answers[1].body), (pattern, cursor)


@pytest.mark.parametrize(("path", "body", "kind"), IN_BODIES)
async def test_ids_in_bodies(
    server: Server, alice: dict[str, str], bob: dict[str, str], path: str, body: Any, kind: str
) -> None:
    known = path.replace("{mine}", "{}")
    assert known in server.patterns or known.startswith("/v1/responses"), "no such route any more"
    path = path.replace("{mine}", bob.get("store", ""))
    absent = MISSING["item" if kind == "output" else kind]
    foreign = await server.ask("bob", "POST", path, _filled(body, {kind: alice[kind]}))
    missing = await server.ask("bob", "POST", path, _filled(body, {kind: absent}))
    _check(foreign, missing, (alice[kind],), (absent,), (path, body))
    error = json.loads(foreign.body)["error"]
    assert foreign.status in (400, 404) and error["type"] == "invalid_request_error"
    # The owner may: nothing but the owner made the difference. (What is queued cannot be continued yet, and an approval
    # belongs behind its request.)
    mine = await server.ask("bob", "POST", path, _filled(body, {kind: bob[kind]}))
    assert mine.status == 200 or kind in ("queued", "approval"), mine.body
