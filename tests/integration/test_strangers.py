"""Every route, and every id in a body, as each kind of caller to whom an object does not belong.

The requests come from the route table and from the API's document. A new route fails here until every id that it takes
is tried: a path variable needs its kind in `COLLECTIONS`, and a field of a body needs a request in `MORE_BODIES`, or a
line in `NO_IDS` (`tests/support/strangers.py`). A failure prints a table: the caller, the request, the answer to the
other owner's id, and the answer to an id that does not exist.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.exchange.phase import EXCHANGE_PATHS
from antiphon.engine.running.client_keys import KeyManager, WantedKey
from tests.support.chat_server import ChatServer
from tests.support.sandbox_trial import trial
from tests.support.state import open_state, state_settings
from tests.support.strangers import (
    ADMIN_PATHS,
    APPROVAL,
    CODE,
    FILE,
    IN_BODIES,
    MISSING,
    MORE_BODIES,
    NO_IDS,
    NOBODYS,
    SEARCH,
    Asked,
    attempts,
    belongings,
    filled,
    ids_in_schema,
    kinds_of,
    make,
    usual_spelling,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = "the-token-of-the-operators-0123456789"
RESEARCH = "research"
KEYS = {
    "alice": WantedKey("alice", team=RESEARCH),
    "teammate": WantedKey("bob", team=RESEARCH),
    "other team": WantedKey("carol", team="sales"),
    "dora": WantedKey("dora", team=RESEARCH),
    "other models": WantedKey("dora", team=RESEARCH, models=("none*",)),
    "other tools": WantedKey("dora", team=RESEARCH, tools=("none*",)),
    # The owner's keys, but no valid ones.
    "expired": WantedKey("alice", team=RESEARCH, lifetime=0.0),
    "revoked": WantedKey("alice", team=RESEARCH),
}
# Each caller, and the owner of the objects that the caller presents as its own.
STRANGERS = {
    "teammate": "teammate",
    "other team": "other team",
    "other models": "dora",
    "other tools": "dora",
}
# The answer to an object's path. A key that does not allow the tool gets a 400.
_MISSING = (404, 400, 403)
# A body may hold an id that is only stored, and looked up later. The model then gets no data of the other owner.
_REFUSED_OR_STORED = (200, 400, 403, 404)
REFUSED = ("expired", "revoked", "no key", "admin")
ALLOWED_KEYS = ("teammate", "other team")

_SHOWN = 200
# The last event of a request on a WebSocket.
_LAST = ("error", "response.completed", "response.incomplete", "response.failed")
_MADE = re.compile(r"\b[a-z]+[_-][0-9a-f]{32,48}\b")
_TIME = re.compile(r'("\w+_at"):[0-9.]+')
# The same text is encrypted differently each time.
_SEALED = re.compile(r'("encrypted_content"):"[^"]*"')


@dataclass
class Server:
    """A process that accepts managed keys, has every area enabled, and runs no background work."""

    chat: ChatServer
    url: str
    session: aiohttp.ClientSession
    patterns: dict[str, list[str]]
    document: dict[str, Any]
    tokens: dict[str, str]
    owned: dict[str, dict[str, str]] = field(default_factory=dict)

    async def ask(self, owner: str, method: str, path: str, body: Any = None, **headers: str) -> Asked:
        """`owner` is a name in `KEYS`, `admin`, or `no key`."""
        sent = {"x-request-id": "same", **headers}
        if owner in self.tokens:
            sent["authorization"] = f"Bearer {self.tokens[owner]}"
        options: dict[str, Any] = {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
        async with self.session.request(method, self.url + path, headers=sent, **options) as answered:
            content = await answered.read()
            kept = {
                name.lower(): value
                for name, value in answered.headers.items()
                if name.lower() not in ("date", "content-length", "openai-processing-ms")
            }
            return Asked(answered.status, kept, content)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    data = tmp_path_factory.mktemp("data")
    sandbox = "local" if os.environ.get("CI") or not trial().reason else "none"
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        made = load_settings(
            {
                "data": data,
                "upstream": {"url": chat.base_url, "auth": "none"},
                "background": {"workers": 0},
                "admin": {"api": True, "token": ADMIN},
                "code_interpreter": {"sandbox": sandbox},
            }
        )
        where = await state_settings(data)
        owner = where.get("owner", made.owner).model_copy(update={"managed_keys": True})
        tokens = {"admin": ADMIN}
        async with aclosing(await open_state(data, chain_items=100)) as stores:
            manager = KeyManager(stores.client_keys, stores.audit, "test")
            ids = {}
            for name, wanted in KEYS.items():
                key, tokens[name] = await manager.create(wanted)
                ids[name] = key.id
            await manager.revoke(ids["revoked"])
        app = await build(made.model_copy(update={**where, "owner": owner}), door="http")
        door = HttpDoor(app.context)
        url = f"http://{await door.start('127.0.0.1:0')}"
        patterns = {one.pattern: list(one.methods) for one in app.context.router.endpoints if not one.open}
        assert sandbox == "none" or "/v1/containers" in patterns
        async with session.get(url + "/openapi.json") as answered:
            document = await answered.json()
        server = Server(chat, url, session, patterns, document, tokens)
        for name in ("alice", "teammate", "other team", "dora"):
            server.owned[name] = {**await belongings(server, name), "key": ids[name]}
        chat.requests.clear()
        yield server
        await door.aclose()
        await app.aclose()


@dataclass
class Table:
    """The requests that were answered wrongly."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    tried: int = 0

    def check(self, holds: bool, caller: str, what: str, problem: str, foreign: Asked, missing: Asked) -> None:
        self.tried += 1
        if not holds:
            self.rows.append((caller, what, problem, _short(foreign), _short(missing)))

    def done(self) -> None:
        """Fail with the table, if a request was answered wrongly."""
        if self.rows:
            pytest.fail(str(self), pytrace=False)

    def __str__(self) -> str:
        head = ("caller", "request", "problem", "answer to the other owner's id", "answer to a missing id")
        widths = [max(len(row[at]) for row in (head, *self.rows)) for at in range(len(head))]
        lines = [" | ".join(map(str.ljust, row, widths)) for row in (head, *self.rows[:_SHOWN])]
        return "\n".join([f"{len(self.rows)} of {self.tried} checks failed", *lines])


def _short(asked: Asked) -> str:
    return f"{asked.status} {asked.body[:160].decode(errors='replace')}"


def _plain(asked: Asked, ids: tuple[str, ...]) -> tuple[int, dict[str, str], str]:
    """The answer without the requested ids, new ids, times and encrypted parts."""
    text = asked.body.decode(errors="replace")
    for one in ids:
        text = text.replace(one, "<id>")
    return asked.status, asked.headers, _SEALED.sub(r"\1", _TIME.sub(r"\1", _MADE.sub("<id>", text)))


def _leaks(server: Server, asked: Asked, sent: tuple[str, ...]) -> bool:
    """Whether an answer has a word or an id of alice that the request did not have."""
    ids = [one for kind, one in server.owned["alice"].items() if kind != "version" and one not in sent]
    return any(word.encode() in asked.body for word in ("alice", *ids))


def _requests(server: Server, own: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """All requests with an id of alice: the method, the path with `%s`, the possible statuses, her ids with the missing
    ones, and both bodies."""
    alice = server.owned["alice"]
    for one in attempts(server, alice, own):
        # The answer to HEAD has the status and the headers of the answer to GET.
        for method in (one.method, "HEAD") if one.method == "GET" else (one.method,):
            yield method, one.path, _MISSING, (one.foreign, one.missing), one.body, one.body
    for path, body, kind in (*MORE_BODIES, *IN_BODIES):
        # Without a sandbox there are no containers.
        if kind in alice and path.replace("{mine}", "{}") in {*server.patterns, *EXCHANGE_PATHS}:
            absent = MISSING["item" if kind == "output" else kind]
            both = [filled(body, {**own, kind: one, "mine": own["store"]}) for one in (alice[kind], absent)]
            named = kinds_of(path.replace("{mine}", "{}"))
            path = path.replace("{mine}", own[named[0]]) if named else path
            yield "POST", path, _REFUSED_OR_STORED, ((alice[kind],), (absent,)), *both
    for pattern, methods in server.patterns.items():
        if "GET" in methods and "{" not in pattern and not pattern.startswith(ADMIN_PATHS) and pattern not in NOBODYS:
            listed = kinds_of(f"{pattern}/{{}}")
            assert listed is not None, f"{pattern}: COLLECTIONS lacks the kind of its objects"
            for cursor in ("after", "before"):
                ids = ((alice[listed[0]],), (MISSING[listed[0]],))
                yield "GET", f"{pattern}?{cursor}=%s", _REFUSED_OR_STORED, ids, None, None


async def test_every_id_that_a_route_takes_is_tried(server: Server) -> None:
    unknown = [one for one in server.patterns if one not in NOBODYS and kinds_of(one) is None]
    assert not unknown, f"COLLECTIONS lacks the kind of an id in {unknown}"
    for path, methods in server.document["paths"].items():
        pattern = usual_spelling(re.sub(r"\{[^}]*\}", "{}", path))
        # Requests whose path has the stranger's own id as well as those with the owner's.
        bodies = [body for one, body, _ in (*MORE_BODIES, *IN_BODIES) if one.replace("{mine}", "{}") == pattern]
        tried = ids_in_schema(bodies) | NO_IDS.get("", frozenset()) | NO_IDS.get(pattern, frozenset())
        for method, described in methods.items():
            taken = ids_in_schema(described.get("requestBody", {}), server.document["components"]["schemas"])
            assert taken <= tried, f"{method.upper()} {path}: no request of MORE_BODIES has {sorted(taken - tried)}"


@pytest.mark.parametrize("caller", STRANGERS)
async def test_an_object_of_another_owner_does_not_exist(server: Server, caller: str) -> None:
    table = Table()
    for method, path, statuses, ids, *bodies in _requests(server, server.owned[STRANGERS[caller]]):
        foreign, missing = [
            await server.ask(caller, method, path % one if "%s" in path else path, body)
            for one, body in zip(ids, bodies, strict=True)
        ]
        what = f"{method} {path} {json.dumps(bodies[1]) if bodies[1] is not None else ''}"
        same = _plain(foreign, ids[0]) == _plain(missing, ids[1])
        table.check(same, caller, what, "differs", foreign, missing)
        statuses = statuses[:1] if statuses is _MISSING and caller in ALLOWED_KEYS else statuses
        table.check(foreign.status in statuses, caller, what, "status", foreign, missing)
        table.check(not _leaks(server, foreign, ids[0]), caller, what, "leaks", foreign, missing)
    table.done()
    assert table.tried > 300
    assert not [one for one in server.chat.requests if b"alice's" in one.body]


@pytest.mark.parametrize("caller", STRANGERS)
async def test_a_list_has_no_object_of_another_owner(server: Server, caller: str) -> None:
    for pattern, methods in server.patterns.items():
        if "GET" in methods and "{" not in pattern and not pattern.startswith(ADMIN_PATHS):
            if pattern in NOBODYS:
                continue
            listed = await server.ask(caller, "GET", pattern)
            assert listed.status == 200, (pattern, listed.body)
            # A stranger may store the ids of others, which the list then returns.
            ids = {one["id"] for one in json.loads(listed.body)["data"]}
            assert ids.isdisjoint(server.owned["alice"].values()) and b"alice" not in listed.body, (
                pattern,
                listed.body,
            )


@pytest.mark.parametrize("caller", STRANGERS)
async def test_a_websocket_shows_no_object_of_another_owner(server: Server, caller: str) -> None:
    table, own = Table(), server.owned[STRANGERS[caller]]
    headers = {"authorization": f"Bearer {server.tokens[caller]}"}
    # A socket closes after some errors, so each request has its own.
    for path, body, kind in (*MORE_BODIES, *IN_BODIES):
        if path != "/v1/responses" or "background" in body or kind not in own:
            continue
        alice = server.owned["alice"][kind]
        ids = (alice, MISSING["item" if kind == "output" else kind])
        answers = []
        for one in ids:
            sent = {"type": "response.create", **filled(body, {**own, kind: one}), "store": False}
            sent.pop("stream", None)
            async with server.session.ws_connect(server.url + path, headers=headers) as socket:
                await socket.send_json(sent)
                events = [await socket.receive_json()]
                while events[-1]["type"] not in _LAST:
                    events.append(await socket.receive_json())
            answers.append(Asked(events[-1].get("status", 200), {}, json.dumps(events, separators=(",", ":")).encode()))
        same = _plain(answers[0], (ids[0],)) == _plain(answers[1], (ids[1],))
        table.check(same, caller, f"WebSocket {json.dumps(body)}", "differs", *answers)
        table.check(not _leaks(server, answers[0], (alice,)), caller, f"WebSocket {kind}", "leaks", *answers)
    table.done()
    assert table.tried > 20


@pytest.mark.parametrize("caller", REFUSED)
async def test_a_websocket_opens_with_a_valid_key_only(server: Server, caller: str) -> None:
    headers = {"authorization": f"Bearer {server.tokens[caller]}"} if caller in server.tokens else {}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await server.session.ws_connect(server.url + "/v1/responses", headers=headers)
    assert refused.value.status == 401


@pytest.mark.parametrize("caller", ALLOWED_KEYS)
@pytest.mark.parametrize("kind", ["file", "approval", "store", "container"])
async def test_an_id_that_is_stored_first_gives_no_access_later(server: Server, caller: str, kind: str) -> None:
    """Conversations and prompts take ids without looking them up. A response looks them up as its own owner."""
    if kind not in server.owned["alice"]:
        pytest.skip("there is no local sandbox on this machine")
    answers = []
    for one in (server.owned["alice"][kind], MISSING[kind]):
        uses: dict[str, Any] = {"model": "m", "input": "hi"}
        if kind in ("file", "approval"):
            items = filled({"items": [FILE if kind == "file" else APPROVAL]}, {kind: one})
            uses["conversation"] = (await make(server, caller, "POST", "/v1/conversations", items))["id"]
        else:
            tools = filled({"instructions": "x", "tools": [SEARCH if kind == "store" else CODE]}, {kind: one})
            uses["prompt"] = {"id": (await make(server, caller, "POST", "/v1/prompts", tools))["id"]}
        answers.append(_plain(await server.ask(caller, "POST", "/v1/responses", uses), (one,)))
    assert answers[0] == answers[1]
    assert answers[0][0] in (200, 400, 404) and "alice" not in answers[0][2]
    assert not [one for one in server.chat.requests if b"alice's" in one.body]


@pytest.mark.parametrize("caller", REFUSED)
async def test_a_caller_without_a_valid_key_gets_a_401_on_every_route(server: Server, caller: str) -> None:
    table = Table()
    for method, path, _, ids, *bodies in _requests(server, server.owned["alice"]):
        foreign, missing = [
            await server.ask(caller, method, path % one if "%s" in path else path, body)
            for one, body in zip(ids, bodies, strict=True)
        ]
        same = foreign.status == missing.status == 401 and foreign.body == missing.body
        table.check(same and foreign.headers == missing.headers, caller, f"{method} {path}", "", foreign, missing)
    plain = [(method, one) for one, methods in server.patterns.items() for method in methods if "{" not in one]
    for method, path in (*plain, *(("POST", path) for path in EXCHANGE_PATHS)):
        if not path.startswith(ADMIN_PATHS):
            asked = await server.ask(caller, method, path, {} if method != "GET" else None)
            table.check(asked.status == 401, caller, f"{method} {path}", "", asked, asked)
    table.done()


@pytest.mark.parametrize("caller", [*STRANGERS, "alice", "expired", "revoked", "no key"])
async def test_the_admin_api_is_closed_to_clients(server: Server, caller: str) -> None:
    for pattern, methods in server.patterns.items():
        if pattern.startswith(ADMIN_PATHS):
            for method in methods:
                asked = await server.ask(caller, method, pattern.replace("{}", server.owned["alice"]["key"]), {})
                # A process answers 429 after several attempts in one minute.
                assert asked.status in (401, 429), (method, pattern, asked.body)
                assert not _leaks(server, asked, ())


async def test_the_operator_reads_no_contents(server: Server) -> None:
    for pattern, methods in server.patterns.items():
        if pattern.startswith(ADMIN_PATHS) and "GET" in methods:
            asked = await server.ask("admin", "GET", pattern)
            assert asked.status == 200 and b"alice's" not in asked.body, (pattern, asked.body)


async def test_an_idempotency_key_belongs_to_its_owner(server: Server) -> None:
    body = {"model": "m", "input": "the same words"}
    made: dict[str, str] = {}
    for caller in ("alice", "teammate", "other team", "alice"):
        asked = await server.ask(caller, "POST", "/v1/responses", body, **{"idempotency-key": "of-everybody"})
        assert asked.status == 200
        assert made.setdefault(caller, json.loads(asked.body)["id"]) == json.loads(asked.body)["id"]
    assert len(set(made.values())) == 3


async def test_the_owner_still_has_everything(server: Server) -> None:
    """This test runs after the requests of all others, which changed nothing."""
    alice = server.owned["alice"]
    for pattern, methods in server.patterns.items():
        kinds = kinds_of(pattern)
        if "GET" in methods and kinds and pattern not in NOBODYS and not pattern.startswith("/v1/files/{}/content"):
            path = pattern.replace("{}", "%s") % tuple(alice[kind] for kind in kinds)
            asked = await server.ask("alice", "GET", path)
            assert asked.status == 200 or ("/vector" in path and "/content" in path), (path, asked.body)
    items = await make(server, "alice", "GET", f"/v1/conversations/{alice['conversation']}/items")
    assert len(items["data"]) == 2
    assert (await make(server, "alice", "GET", f"/v1/prompts/{alice['prompt']}"))["last_version"] == "1"
    assert len((await make(server, "alice", "GET", f"/v1/vector_stores/{alice['store']}/files"))["data"]) == 1
    assert (await make(server, "alice", "GET", f"/v1/responses/{alice['queued']}"))["status"] == "queued"
