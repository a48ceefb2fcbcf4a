"""Conversations over the API without a server: every operation, every way to ask wrongly, and what a stranger gets."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.api.conversations import Conversations
from antiphon.api.models import ModelCatalog
from antiphon.api.router import ReadyProbe, Router
from antiphon.engine.ports.actions import StoredItem
from antiphon.observability.metrics import Metrics
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.responses import ResponseStore
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.contracts.store_contract import record
from tests.support.asked_router import AskedRouter
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_store import MemoryResponseStore
from tests.support.schemas import OPENAI, valid
from tests.support.state import open_state

OWNER, STRANGER = "b:alice", "b:bob"
NOWHERE = "conv_" + "0" * 48
USER = {"role": "user", "content": "hello"}


class Setup(AskedRouter):
    prefix = "/v1/conversations"

    def __init__(self, responses: ResponseStore, conversations: ConversationStore) -> None:
        self.responses, self.conversations = responses, conversations
        self.upstream = HttpUpstream(UpstreamTarget("http://127.0.0.1:9"))
        self.route()

    def route(self, *, strict: bool = False) -> None:
        """`strict`: what nobody here knows is refused."""
        self.router = Router(
            store=self.responses,
            models=ModelCatalog(self.upstream),
            ready=ReadyProbe(self.responses.ping),
            metrics=Metrics(),
            areas=Conversations(self.conversations, self.responses, strict=strict).endpoints(),
        )

    async def made(self, *items: dict[str, Any], **metadata: str) -> str:
        made = await self.ask("POST", "", {"items": list(items), "metadata": metadata})
        found: str = made["id"]
        return found


@pytest.fixture(params=["memory", "sqlite"])
async def setup(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setup]:
    if request.param == "memory":
        conversations = MemoryConversationStore(clock=time.time)
        setup = Setup(MemoryResponseStore(conversations=conversations), conversations)
        yield setup
    else:
        stores = await open_state(tmp_path, chain_items=1000)
        setup = Setup(stores.responses, stores.conversations)
        yield setup
        await stores.aclose()
    await setup.upstream.aclose()


def check_item(item: dict[str, Any]) -> dict[str, Any]:
    assert valid(OPENAI, "ConversationItem", item) == []
    return item


# Conversations


async def test_a_conversation_is_made_read_changed_and_deleted(setup: Setup) -> None:
    made = await setup.ask("POST", "", {"metadata": {"topic": "ü"}})
    assert valid(OPENAI, "ConversationResource", made) == []
    assert made == {
        "id": made["id"],
        "object": "conversation",
        "created_at": pytest.approx(time.time(), abs=60),
        "metadata": {"topic": "ü"},
    }
    assert made["id"].startswith("conv_") and len(made["id"]) <= 64
    path = f"/{made['id']}"
    assert await setup.ask("GET", path) == made
    assert await setup.ask("POST", path, {"metadata": {"b": "c"}}) == {**made, "metadata": {"b": "c"}}
    assert await setup.ask("POST", path, {"metadata": None}) == {**made, "metadata": {}}
    deleted = await setup.ask("DELETE", path)
    assert deleted == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    assert valid(OPENAI, "DeletedConversationResource", deleted) == []
    assert (await setup.refused("GET", path))[0] == 404


@pytest.mark.parametrize("body", [None, {}, {"metadata": None, "items": None}, {"items": []}])
async def test_nothing_is_required(setup: Setup, body: Any) -> None:
    made = await setup.ask("POST", "", body)
    assert made["metadata"] == {}
    assert (await setup.ask("GET", f"/{made['id']}/items"))["data"] == []


async def test_conversations_are_listed_in_pages(setup: Setup) -> None:
    ids = [await setup.made() for _ in range(5)]
    await setup.ask("POST", "", {}, owner=STRANGER)
    page = await setup.ask("GET", "")
    assert page["object"] == "list" and sorted(each["id"] for each in page["data"]) == sorted(ids)
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    seen: list[str] = []
    more = True
    while more:
        query = [("limit", "2"), ("order", "asc")] + ([("after", seen[-1])] if seen else [])
        page = await setup.ask("GET", "", query=query)
        seen += [each["id"] for each in page["data"]]
        more = page["has_more"]
    assert sorted(seen) == sorted(ids) and len(seen) == 5


# Items


async def test_items_are_stored_as_they_will_be_shown(setup: Setup) -> None:
    given: list[dict[str, Any]] = [
        {**USER, "id": "msg_mine", "type": "message"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"}]},
        {"role": "user", "content": [{"type": "input_file", "file_url": "https://x/y.pdf"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    ]
    conversation = await setup.made()
    added = await setup.ask("POST", f"/{conversation}/items", {"items": given})
    assert valid(OPENAI, "ConversationItemList", added) == []
    assert added["object"] == "list" and added["has_more"] is False
    kinds = [check_item(each)["type"] for each in added["data"]]
    assert kinds == [each.get("type", "message") for each in given]
    assert added["data"][0] == {
        "id": added["first_id"],
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "hello"}],
    }
    assert "msg_mine" not in [each["id"] for each in added["data"]]
    listed = await setup.ask("GET", f"/{conversation}/items", query=[("order", "asc")])
    assert listed == added
    newest = await setup.ask("GET", f"/{conversation}/items", query=[("limit", "2")])
    assert newest["data"] == added["data"][:-3:-1] and newest["has_more"] is True
    rest = await setup.ask("GET", f"/{conversation}/items", query=[("after", newest["last_id"])])
    assert rest["data"] == added["data"][-3::-1] and rest["has_more"] is False


async def test_items_of_the_creation_come_first(setup: Setup) -> None:
    conversation = await setup.made(USER, {"role": "system", "content": "be kind"})
    await setup.ask("POST", f"/{conversation}/items", {"items": [USER]})
    listed = await setup.ask("GET", f"/{conversation}/items", query=[("order", "asc")])
    assert [each["role"] for each in listed["data"]] == ["user", "system", "user"]


async def test_one_item_is_read_and_deleted(setup: Setup) -> None:
    conversation = await setup.made(USER, USER, a="b")
    listed = await setup.ask("GET", f"/{conversation}/items", query=[("order", "asc")])
    first, second = listed["data"]
    path = f"/{conversation}/items/{first['id']}"
    assert await setup.ask("GET", path, query=[("include[]", "message.output_text.logprobs")]) == first
    # OpenAI's answer to this is the conversation.
    assert await setup.ask("DELETE", path) == await setup.ask("GET", f"/{conversation}")
    assert (await setup.ask("GET", f"/{conversation}/items"))["data"] == [second]
    assert (await setup.refused("DELETE", path))[0] == 404


async def test_items_can_be_referred_to(setup: Setup) -> None:
    conversation = await setup.made(USER)
    (own,) = (await setup.ask("GET", f"/{conversation}/items"))["data"]
    kept = b'{"id":"msg_r_in0","type":"message","status":"completed","role":"user","content":[]}'
    await setup.responses.save(record("r", inputs=(StoredItem("msg_r_in0", "message", kept),)))
    other = await setup.made({"type": "item_reference", "id": own["id"]}, {"id": "msg_r_in0"})
    copies = (await setup.ask("GET", f"/{other}/items", query=[("order", "asc")]))["data"]
    assert [{**each, "id": ""} for each in copies] == [{**own, "id": ""}, {**json.loads(kept), "id": ""}]
    assert not {each["id"] for each in copies} & {own["id"], "msg_r_in0"}
    for body in ({"items": [{"type": "item_reference", "id": "msg_none"}]}, {"items": [{"id": own["id"]}]}):
        owner = STRANGER if body["items"][0]["id"] == own["id"] else OWNER
        status, error = await setup.refused("POST", "", body, owner=owner)
        assert (status, error["param"], error["code"]) == (400, "items[0].id", "item_not_found")


async def test_a_locked_conversation_keeps_its_items(setup: Setup) -> None:
    conversation = await setup.made(USER)
    (item,) = (await setup.ask("GET", f"/{conversation}/items"))["data"]
    await setup.conversations.load(OWNER, conversation, holder="resp_1", seconds=1000)
    for method, path, body in (
        ("POST", "/items", {"items": [USER]}),
        ("DELETE", f"/items/{item['id']}", None),
        ("DELETE", "", None),
    ):
        status, error = await setup.refused(method, f"/{conversation}{path}", body)
        assert (status, error["code"]) == (409, "conversation_locked")
    assert (await setup.ask("POST", f"/{conversation}", {"metadata": {"a": "b"}}))["metadata"] == {"a": "b"}
    assert len((await setup.ask("GET", f"/{conversation}/items"))["data"]) == 1
    await setup.conversations.release("resp_1")
    await setup.ask("POST", f"/{conversation}/items", {"items": [USER]})


# Asking wrongly

_MANY = {str(n): "x" for n in range(17)}


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "code"),
    [
        ("POST", "", b"{", None, "invalid_json"),
        ("POST", "", b"[]", None, "invalid_type"),
        ("POST", "", {"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ("POST", "", {"metadata": _MANY}, "metadata", "object_above_max_properties"),
        ("POST", "", {"metadata": {"k" * 65: "v"}}, "metadata", "string_above_max_length"),
        ("POST", "", {"metadata": {"k": "v" * 513}}, "metadata", "string_above_max_length"),
        ("POST", "", {"items": {}}, "items", "invalid_type"),
        ("POST", "", {"items": [USER] * 21}, "items", "array_above_max_length"),
        ("POST", "", {"items": [1]}, "items[0]", "invalid_type"),
        ("POST", "", {"items": [USER, {"role": "robot", "content": "x"}]}, "items[1].role", "invalid_value"),
        ("POST", "", {"items": [{"role": "user"}]}, "items[0].content", "missing_required_parameter"),
        ("POST", "", {"items": [{}]}, "items[0].type", "missing_required_parameter"),
        ("POST", "/{}", {}, "metadata", None),
        ("POST", "/{}", {"metadata": _MANY}, "metadata", "object_above_max_properties"),
        ("POST", "/{}/items", {}, "items", None),
        ("POST", "/{}/items", {"items": [USER] * 21}, "items", "array_above_max_length"),
        ("GET", "/{}/items?limit=0", None, "limit", "integer_below_min_value"),
        ("GET", "/{}/items?limit=101", None, "limit", "integer_above_max_value"),
        ("GET", "/{}/items?order=up", None, "order", "invalid_value"),
        ("GET", "/{}/items?after=msg_none", None, "after", None),
        ("GET", "?after=conv_none", None, "after", None),
        ("GET", "?limit=x", None, "limit", "invalid_type"),
    ],
)
async def test_what_is_wrong_is_named(
    setup: Setup, method: str, path: str, body: Any, param: str | None, code: str | None
) -> None:
    conversation = await setup.made(USER)
    path, _, query = path.replace("{}", conversation).partition("?")
    pairs = [tuple(query.split("="))] if query else []
    status, error = await setup.refused(method, path, body, query=pairs)
    assert status == 400, error
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert len((await setup.ask("GET", f"/{conversation}/items"))["data"]) == 1
    assert len((await setup.ask("GET", ""))["data"]) == 1


_UNKNOWN: list[tuple[str, str, Any, str]] = [
    ("POST", "/{}/items", {"items": [USER, {"type": "omen"}]}, "items.omen"),
    (
        "POST",
        "/{}/items",
        {"items": [{"role": "user", "content": [{"type": "smell"}, {"type": "input_text", "text": "x"}]}]},
        "content.smell",
    ),
    ("GET", "/{}/items?include=everything", None, "include:everything"),
]


@pytest.mark.parametrize(("method", "path", "body", "name"), _UNKNOWN, ids=[name for *_, name in _UNKNOWN])
@pytest.mark.parametrize("strict", [False, True], ids=["tolerant", "strict"])
async def test_what_nobody_knows_is_left_out_and_named_or_refused(
    setup: Setup, strict: bool, method: str, path: str, body: Any, name: str
) -> None:
    conversation = await setup.made(USER)
    if strict:
        setup.route(strict=True)
    path, _, query = path.replace("{}", conversation).partition("?")
    pairs = [(query.partition("=")[0], query.partition("=")[2])] if query else []
    if strict:
        assert (await setup.refused(method, path, body, query=pairs))[0] == 400
        return
    answer = await setup.send(method, path, body, query=pairs)
    assert answer.status == 200 and ("antiphon-ignored", name) in answer.headers
    assert "omen" not in answer.body.decode()


@pytest.mark.parametrize("odd", ["conv_%00", "c'; DROP TABLE conversations", "x" * 65, "ü", "conv_" + "f" * 48])
async def test_an_id_that_is_none_is_a_404(setup: Setup, odd: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("POST", "/items", {"items": [USER]}),
        ("GET", "/items/msg_1", None),
        ("DELETE", "/items/msg_1", None),
    ):
        status, error = await setup.refused(method, f"/{odd}{path}", body)
        assert status == 404 and error["message"].startswith("Conversation with id '")


async def test_wrong_methods(setup: Setup) -> None:
    assert (await setup.refused("PUT", ""))[0] == 405
    assert (await setup.refused("PATCH", f"/{NOWHERE}"))[0] == 405
    assert (await setup.refused("POST", f"/{NOWHERE}/items/msg_1"))[0] == 405
    assert (await setup.refused("GET", f"/{NOWHERE}/else"))[0] == 404
