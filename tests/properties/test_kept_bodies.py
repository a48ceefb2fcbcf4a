"""Whatever is sent to the endpoints that keep things: a 200 or a 400, and what was kept is shown as valid JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.api.conversations import Conversations
from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.models import ModelCatalog
from antiphon.api.prompts import Prompts
from antiphon.api.router import ReadyProbe, Router
from antiphon.observability.metrics import Metrics
from antiphon.translation.request.prompt_template import TEMPLATE_FIELDS
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.effort import examples
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_prompts import MemoryPromptStore
from tests.support.memory_store import MemoryResponseStore

_DEEP = b"[" * 3000 + b"]" * 3000
_KINDS = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "item_reference",
    "web_search_call",
    "shell_call",
)
_WORDS = st.sampled_from(["", "x", "user", "{{a}}", "{{ b }}", "{{", "\u0000", "ü漢\ud7ff", *_KINDS])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | _WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "id", "image_url", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
_ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(_KINDS) | _VALUES,
        "role": st.sampled_from(["user", "assistant", "system"]) | _VALUES,
        **dict.fromkeys(("content", "call_id", "name", "arguments", "output", "summary", "id", "action"), _VALUES),
    },
)
_CONVERSATION = st.fixed_dictionaries(
    {}, optional={"metadata": _VALUES, "items": _VALUES | st.lists(_ITEM, max_size=3)}
)
_PROMPT = st.dictionaries(
    st.sampled_from([*sorted(TEMPLATE_FIELDS), "name", "metadata", "description", "variables", "version", "prompt"]),
    _VALUES | _WORDS | st.lists(_ITEM, max_size=2),
    max_size=4,
)


class Server:
    """The endpoints over stores in memory."""

    def __init__(self) -> None:
        conversations = MemoryConversationStore(clock=lambda: 0.0)
        responses = MemoryResponseStore(conversations=conversations)
        self.upstream = HttpUpstream(UpstreamTarget("http://127.0.0.1:9"))
        self.router = Router(
            store=responses,
            models=ModelCatalog(self.upstream),
            ready=ReadyProbe(responses.ping),
            metrics=Metrics(),
            areas=(
                *Conversations(conversations, responses).endpoints(),
                *Prompts(MemoryPromptStore(clock=lambda: 0.0)).endpoints(),
            ),
        )

    async def ask(self, method: str, path: str, body: bytes = b"") -> ApiResponse:
        return await self.router.handle(ApiRequest(method, path, (), (), body, "o"))

    async def check(self, path: str, body: bytes) -> None:
        """Send the body to everything at this path that takes one, and read what was kept."""
        made = await self.ask("POST", path, body)
        assert made.status in (200, 400), (body, made.body)
        if made.status == 200:
            kept = f"{path}/{json.loads(made.body)['id']}"
        else:
            error = json.loads(made.body)["error"]
            assert set(error) - {"request_id"} == {"message", "type", "param", "code"}
            good = b'{"instructions":"x"}' if path.endswith("prompts") else b"{}"
            kept = f"{path}/{json.loads((await self.ask('POST', path, good)).body)['id']}"
        more = ("/items", "") if path.endswith("conversations") else ("", "/default_version")
        for method, rest in (("POST", more[0]), ("POST", more[1]), ("PUT", "")):
            answered = await self.ask(method, kept + rest, body)
            assert answered.status in (200, 400, 404, 405, 409), (method, rest, body, answered.body)
        for rest in ("", "/items", "/versions"):
            shown = await self.ask("GET", kept + rest)
            assert shown.status in (200, 404)
            json.loads(shown.body.decode())


@pytest.fixture(scope="module")
def loop() -> Any:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@settings(max_examples=examples(150), deadline=None)
@given(body=_CONVERSATION)
def test_any_conversation(loop: asyncio.AbstractEventLoop, body: Any) -> None:
    loop.run_until_complete(Server().check("/v1/conversations", json.dumps(body).encode()))


@settings(max_examples=examples(150), deadline=None)
@given(body=_PROMPT)
def test_any_prompt(loop: asyncio.AbstractEventLoop, body: Any) -> None:
    loop.run_until_complete(Server().check("/v1/prompts", json.dumps(body).encode()))


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/prompts"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xef\xbb\xbf{}",
        b'{"items":[NaN]}',
        b'{"items":[{"role":"user","content":"\xff"}],"instructions":"\xff"}',
        b'{"items":[{"type":"web_search_call","id":"x","action":{"q":"\xff"}}],"tools":[{"x":"\xff"}]}',
        b'{"items":[{"role":"user","content":"\\ud800"}],"instructions":"\\ud800"}',
        b'{"metadata":{"a":"\\ud800"},"instructions":"x"}',
        b'{"items":%b}' % _DEEP,
        b'{"metadata":%b}' % _DEEP,
        b'{"items":[{"role":"user","content":%b}]}' % _DEEP,
        b'{"items":[{"type":"web_search_call","action":%b}]}' % _DEEP,
        b'{"tools":%b}' % _DEEP,
        b'{"input":[{"role":"user","content":%b}]}' % _DEEP,
    ],
)
async def test_bytes_that_are_none(path: str, body: bytes) -> None:
    server = Server()
    answered = await server.ask("POST", path, body)
    assert answered.status in (200, 400), answered.body
    await server.check(path, body)
    await server.upstream.aclose()
