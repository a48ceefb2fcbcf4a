"""A request that names a prompt: it is loaded first, alone, and only then is anything else decided."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    Context,
    Enqueue,
    Finish,
    LoadContext,
    RequestHead,
    SendBody,
    SendHead,
    StoredPrompt,
)
from antiphon.engine.ports.callers import Access
from antiphon.engine.running.runner import Runner
from antiphon.errors import InternalError
from antiphon.observability.metrics import Metrics
from antiphon.translation.events.encode import DONE
from antiphon.translation.profiles import PROFILES
from antiphon.translation.values import PromptReference
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import limits, make_exchange
from tests.support.judge import parse_sse
from tests.support.memory_prompts import MemoryPromptStore
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import make_ports

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")


def prompt(**template: Any) -> StoredPrompt:
    return StoredPrompt("pmpt_1", None, 3, 3, 4, 0.0, 0.0, b"{}", json.dumps(template).encode())


def begin(options: dict[str, Any] | None = None, **fields: Any) -> tuple[ResponseExchange, LoadContext]:
    exchange = make_exchange(**(options or {}))
    request = {"prompt": {"id": "pmpt_1", "version": "3"}, "input": "hi", "model": "m", **fields}
    exchange.receive_request(_HEAD, json.dumps({name: each for name, each in request.items() if each}).encode())
    (load,) = exchange.actions()
    assert isinstance(load, LoadContext)
    return exchange, load


def test_it_is_loaded_alone_and_first() -> None:
    exchange, load = begin(previous_response_id="resp_0", input=[{"type": "item_reference", "id": "msg_1"}])
    assert load == LoadContext("owner", None, prompt=PromptReference("pmpt_1", 3, {}))
    assert exchange.state is State.CONTEXT and exchange.awaits_prompt and not exchange.done
    exchange.receive_context(Context(prompt=prompt(instructions="x")))
    (second,) = exchange.actions()
    assert isinstance(second, LoadContext) and second.prompt is None and not exchange.awaits_prompt
    assert (second.previous_response_id, second.item_ids) == ("resp_0", ("msg_1",))


def test_then_it_is_an_ordinary_request() -> None:
    exchange, _ = begin(model=None, stream=True)
    exchange.receive_context(Context(prompt=prompt(model="from the prompt", instructions="x")))
    assert exchange.known.streaming and exchange.known.model == "from the prompt"
    assert not exchange.needs_drive
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream) and call.request.model == "from the prompt"


def test_the_response_shows_what_stood_before_the_input() -> None:
    """Instructions and the prompt's messages are one list there; without messages, instructions are as they were."""
    shown = {}
    for template in (
        {"instructions": "Be kind."},
        {"instructions": "Be kind.", "input": "Hello."},
        {"input": "Hello."},
    ):
        exchange, _ = begin(stream=True)
        exchange.receive_context(Context(prompt=prompt(**template)))
        exchange.actions()
        exchange.receive_silence()
        (sent,) = [action.data for action in exchange.actions() if isinstance(action, SendBody)]
        shown[tuple(template)] = parse_sse(sent + DONE)[0]["response"]["instructions"]
    said = {"role": "user", "content": "Hello."}
    kind = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]}
    assert shown == {("instructions",): "Be kind.", ("instructions", "input"): [kind, said], ("input",): [said]}


def test_what_the_prompt_asks_for_decides_who_makes_the_call() -> None:
    exchange, _ = begin()
    exchange.receive_context(Context(prompt=prompt(context_management=[{"type": "compaction"}])))
    assert exchange.needs_drive


@pytest.mark.parametrize("context", [Context(), InternalError("told you", code="storage_failed")])
def test_a_prompt_that_is_not_there(context: Any) -> None:
    exchange, _ = begin()
    exchange.receive_context(context)
    head, body, finish = exchange.actions()
    assert isinstance(head, SendHead) and isinstance(body, SendBody) and isinstance(finish, Finish)
    assert head.status == (400 if isinstance(context, Context) else 500)
    assert (b"prompt_not_found" in body.data) == isinstance(context, Context)


def test_a_client_that_leaves_meanwhile() -> None:
    exchange, _ = begin()
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert [type(action) for action in exchange.actions()] == [Finish] and exchange.done


@pytest.mark.parametrize(("times", "room", "fits"), [(1, 2_000, True), (3, 2_000, False), (3, 4_000, True)])
def test_a_variable_that_is_repeated_counts_as_often(times: int, room: int, fits: bool) -> None:
    exchange, _ = begin(
        {"limits": limits(request_body_bytes=room)}, prompt={"id": "pmpt_1", "variables": {"it": "x" * 1_000}}
    )
    exchange.receive_context(Context(prompt=prompt(input="{{it}}" * times)))
    first, *rest = exchange.actions()
    if fits:
        assert isinstance(first, CallUpstream) and first.request.body.count(b"x" * 1_000) == times
        return
    assert isinstance(first, SendHead) and first.status == 413
    (said,) = [json.loads(each.data)["error"] for each in rest if isinstance(each, SendBody)]
    assert (said["code"], said["param"]) == ("request_too_large", "prompt.variables")
    assert "limits.request_body_bytes" in said["message"]


def test_files_in_variables_are_fetched() -> None:
    url = "https://example.com/a.txt"
    exchange, _ = begin(prompt={"id": "pmpt_1", "variables": {"it": {"type": "input_file", "file_url": url}}})
    exchange.receive_context(Context(prompt=prompt(input="Read {{it}}")))
    (load,) = exchange.actions()
    assert isinstance(load, LoadContext) and load.file_urls == (url,)
    exchange.receive_context(Context(files={url: FetchedFile("a.txt", "text/plain", b"the text")}))
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream) and b"the text" in call.request.body


def test_in_the_background_the_version_is_settled_when_it_is_queued() -> None:
    """The job holds the request as it came but for that: the worker asks for the prompt again."""
    variables = {"who": "Ann"}
    exchange, load = begin({}, background=True, prompt={"id": "pmpt_1", "variables": variables})
    assert load.prompt is not None and (load.prompt.id, load.prompt.version) == ("pmpt_1", None)
    exchange.receive_context(Context(prompt=prompt(instructions="{{who}}")))
    (enqueue,) = exchange.actions()
    assert isinstance(enqueue, Enqueue)
    body = json.loads(enqueue.request)["body"]
    assert body == {
        "model": "m",
        "input": "hi",
        "background": True,
        "prompt": {"id": "pmpt_1", "version": "3", "variables": variables},
    }


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ({"model": "gpt"}, "model_not_found"),
        ({"model": "qwen3", "tools": [{"type": "custom", "name": "c"}]}, "tool_not_allowed"),
        ({"model": "qwen3"}, ""),
    ],
)
def test_a_prompt_brings_no_model_and_no_tool_that_the_key_does_not_allow(template: dict[str, Any], code: str) -> None:
    exchange = make_exchange()
    access = Access(models=("qwen*",), tools=("function",))
    head = RequestHead("POST", "/v1/responses", (), "owner", access=access)
    exchange.receive_request(head, b'{"prompt":{"id":"pmpt_1","version":"3"},"input":"hi"}')
    exchange.actions()
    exchange.receive_context(Context(prompt=prompt(**template)))
    actions = exchange.actions()
    if not code:
        assert isinstance(actions[0], CallUpstream)
        return
    (body,) = [action for action in actions if isinstance(action, SendBody)]
    assert json.loads(body.data)["error"]["code"] == code


def test_a_prompt_for_a_native_model_is_refused() -> None:
    native = ModelRoutes(
        ModelRoute(PROFILES["generic"]), (ModelRule("theirs", ModelRoute(PROFILES["generic"], mode="native")),)
    )
    exchange, _ = begin({"routes": native}, model=None)
    exchange.receive_context(Context(prompt=prompt(model="theirs", instructions="x")))
    head, body, _ = exchange.actions()
    assert isinstance(head, SendHead) and head.status == 400
    assert isinstance(body, SendBody) and json.loads(body.data)["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("template", "drives"), [({}, False), ({"context_management": [{"type": "compaction"}]}, True)]
)
async def test_it_is_loaded_before_a_door_decides_who_makes_the_call(template: dict[str, Any], drives: bool) -> None:
    prompts = MemoryPromptStore(clock=lambda: 0.0)
    await prompts.create("owner", "pmpt_1", None, b"{}", json.dumps({"instructions": "x", **template}).encode())
    runner = Runner(
        make_ports(
            MemoryResponseStore(),
            None,
            timeouts=TimeoutSettings(),
            metrics=Metrics(),
            prompts=prompts,
        )
    )
    exchange = make_exchange()
    await runner.receive(exchange, _HEAD, b'{"model":"m","input":"hi","prompt":{"id":"pmpt_1"}}')
    assert not exchange.awaits_prompt and exchange.needs_drive is drives and exchange.known.model == "m"
    refused = make_exchange()
    await runner.receive(refused, _HEAD, b'{"model":"m","input":"hi","prompt":{"id":"pmpt_2"}}')
    head, _, _ = refused.actions()
    assert isinstance(head, SendHead) and head.status == 400 and refused.done
    await runner.aclose()
