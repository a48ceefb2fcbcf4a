"""Random walks through the exchange's table: whatever may happen may happen, and every transition in it is real."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.phase import COMPACT_PATH, COUNT_PATH, RESPONSES_PATH
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import TRANSITIONS, Input, State, StateMachine
from antiphon.engine.ports.actions import (
    Action,
    CancelReason,
    Chain,
    Context,
    Finish,
    LoadContext,
    PrepareTools,
    RequestHead,
    RunTools,
    SendBody,
    SendHead,
    StoredItem,
    StoredPrompt,
)
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import ApiError, ExchangeStateError, NotFound, StoreError
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, limits, make_exchange
from tests.support.hosted_tools import ScriptedTools

_ENDS = (Input.CANCEL, Input.LIMIT, Input.AGAIN, Input.TURNED_AWAY)
Arrow = tuple[State, Input, State]

_SEALER = Sealer([b"a key of the tests, for compaction"])
_WALKS = 3_000
_STEPS = 14
_TALK = [{"role": role, "content": "word " * 1_200} for role in ("user", "assistant", "user")]
_DICE = {"type": "mcp", "server_label": "dice", "server_url": "https://dice.example"}
_APPROVED = [
    {"type": "mcp_approval_request", "id": "mcpr_1", "name": "roll", "server_label": "dice", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
]
_FILE = {"role": "user", "content": [{"type": "input_file", "file_url": "https://files.example/a.txt"}]}
_SEARCH = {"type": "file_search"}
_FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
_COMPACTS = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}
_REQUESTS: list[dict[str, Any]] = [
    {},
    {"previous_response_id": "resp_1"},
    {"input": [_FILE]},
    {"tools": [_SEARCH]},
    {"tools": [_SEARCH, _FUNCTION]},
    {"tools": [_SEARCH], "input": [_FILE]},
    {"tools": [_SEARCH], "previous_response_id": "resp_1"},
    {"tools": [_DICE], "input": _APPROVED},
    {"tools": [_DICE], "input": [_FILE, *_APPROVED]},
    {"input": _TALK, **_COMPACTS},
    {"input": [*_TALK[:2], _FILE], **_COMPACTS},
    {"input": _TALK, **_COMPACTS, "tools": [_SEARCH]},
    {"background": True},
    {"background": True, "previous_response_id": "resp_1"},
    {"prompt": {"id": "pmpt_1"}},
    {"model": "native"},
]


def _call(number: int, name: str) -> dict[str, Any]:
    return {"index": number, "id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}


# A summary goes well in few walks.
_REQUESTS += [each for each in _REQUESTS if "context_management" in each] * 4
_HOSTED, _BOTH = [_call(0, "file_search")], [_call(0, "file_search"), _call(1, "f")]
_CHUNK = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
_CALLS, _MIXED = (
    b'data: {"choices":[{"delta":{"tool_calls":%b}}]}\n\n' % json.dumps(calls).encode() for calls in (_HOSTED, _BOTH)
)
_STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
_DONE = b"data: [DONE]\n\n"
_ANSWER = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
_CALLING = b'{"choices":[{"message":{"tool_calls":%b},"finish_reason":"tool_calls"}]}' % json.dumps(_HOSTED).encode()
_LONG = b" " * 3_000
_WORDS = (_CHUNK, _CHUNK + _STOP, _CHUNK + _STOP + _DONE)
_DATA = (*_WORDS, _CHUNK + _STOP, _CALLS + _STOP, _CALLS + _STOP + _DONE, _MIXED + _STOP, _DONE, _LONG)
_BODIES = (_ANSWER, _CALLING, _LONG, b'{"error":{"message":"no"}}')
_ROUTES = ModelRoutes(
    ModelRoute(PROFILES["vllm"]), (ModelRule("native", ModelRoute(PROFILES["generic"], upstream="o", mode="native")),)
)
_STORED = StoredResponse("resp_0", "completed", b'{"id":"resp_0","status":"completed"}', ())
_PROMPT = StoredPrompt("pmpt_1", None, 1, 1, 1, 0.0, 0.0, b"{}", b'{"instructions":"Be kind."}')
_ITEM = StoredItem("msg_1", "message", json.dumps({"type": "message", "id": "msg_1", **_FILE}).encode())


class _Walk:
    """One exchange to which things happen as the dice fall."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = Random(seed)
        self.request = _REQUESTS[seed % len(_REQUESTS)]
        self.form = seed // len(_REQUESTS)
        self.exchange: ResponseExchange = make_exchange(
            routes=_ROUTES,
            tool_types=ScriptedTools.types,
            sealer=_SEALER,
            limits=limits(upstream_body_bytes=2_500, upstream_error_bytes=1_000),
        )
        self.tools = ScriptedTools()
        self.seen: list[Action] = []
        self.loading: LoadContext | None = None
        self.preparing: PrepareTools | None = None
        self.running: list[Any] = []
        self.begun = False
        # Some walks are hasty, some hear the same again and again, few are broken off: else the rare would be too rare.
        self.weights = {happening: dice.choice((1.0, 4.0, 16.0)) for happening in Input}
        self.weights |= {happening: dice.choice((0.0, 0.0, 0.1, 30.0)) for happening in _ENDS}
        self.weights[Input.REQUEST] = self.weights[Input.HEAD] = 100.0
        self.heads = dice.choice((1, 9)), dice.choice((1, 9)), dice.choice((0, 1, 9))

    def step(self) -> None:
        """Something that may happen now happens; what is asked for is noted."""
        exchange, dice = self.exchange, self.dice
        choices = list(TRANSITIONS[exchange.state])
        # Nothing is performed for a request before it is known whether it is turned away.
        if self.begun or any(isinstance(one, SendHead) for one in self.seen):
            choices = [one for one in choices if one not in (Input.AGAIN, Input.TURNED_AWAY)]
        happening = dice.choices(choices, [self.weights[one] for one in choices])[0]
        self.begun = self.begun or exchange.state is not State.NEW
        if happening not in (Input.AGAIN, Input.TURNED_AWAY) and dice.random() < 0.15:
            exchange.receive_silence()
        if happening is Input.REQUEST:
            self._request()
        else:
            _HAPPEN[happening](self)
        for action in exchange.actions():
            self.note(action)

    def note(self, action: Action) -> None:
        """Rules that hold for every exchange."""
        assert not any(isinstance(one, Finish) for one in self.seen), "something follows the end"
        if isinstance(action, SendHead):
            assert not any(isinstance(one, SendHead) for one in self.seen), "a second head"
        elif isinstance(action, SendBody):
            assert any(isinstance(one, SendHead) for one in self.seen), "a body without a head"
        elif isinstance(action, LoadContext):
            self.loading = action
        elif isinstance(action, PrepareTools):
            self.preparing = action
        elif isinstance(action, RunTools):
            self.running = list(action.calls)
        self.seen.append(action)

    def _request(self) -> None:
        dice = self.dice
        body = {"model": "m", "input": "hi", "stream": dice.random() < 0.7, "store": dice.random() < 0.6}
        body |= self.request
        if body.get("background"):
            body["store"] = True
        path = dice.choices((RESPONSES_PATH, COUNT_PATH, COMPACT_PATH), (18, 1, 1))[0]
        self.exchange.generate = dice.random() < 0.9
        self.exchange.receive_request(RequestHead("POST", path, (), "owner"), json.dumps(body).encode())

    def context(self) -> None:
        assert self.loading is not None
        loading, dice = self.loading, self.dice
        if dice.random() < 0.1:
            self.exchange.receive_context(NotFound("It is gone."))
            return
        file = FetchedFile("a.txt", "text/plain", b"text") if dice.random() < 0.8 else ApiError("It is gone.")
        chain = Chain((_ITEM,) if dice.random() < 0.5 else ())
        files: dict[str, FetchedFile | ApiError] = dict.fromkeys(loading.file_urls, file)
        self.exchange.receive_context(Context(chain=chain, prompt=_PROMPT, files=files))

    def prepared(self) -> None:
        assert self.preparing is not None
        refused = ApiError("No.") if self.dice.random() < 0.1 else None
        self.exchange.receive_tools(refused or self.tools.prepare_now(self.preparing.tools))

    def tool(self) -> None:
        self.exchange.receive_tool_result(self.tools.run_now(self.running.pop()))

    def head(self) -> None:
        status, headers = self.dice.choices(((200, SSE), (200, JSON), (500, JSON)), self.heads)[0]
        self.exchange.receive_upstream_head(status, headers)

    def data(self) -> None:
        forms = _DATA if self.exchange.state is State.STREAMING else _BODIES
        usual = forms[self.form % len(forms)]
        self.exchange.receive_upstream_data(usual if self.dice.random() < 0.8 else self.dice.choice(forms))

    def end(self) -> None:
        cut = self.dice.random() < 0.2
        self.exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone") if cut else None)

    def limit(self) -> None:
        if self.dice.random() < 0.5:
            self.exchange.receive_too_much(ApiError("The stream is too large."))
        else:
            self.exchange.receive_time(0.0)
            self.exchange.receive_time(1e9)


_HAPPEN: dict[Input, Callable[[_Walk], None]] = {
    Input.CONTEXT: _Walk.context,
    Input.PREPARED: _Walk.prepared,
    Input.TOOL: _Walk.tool,
    Input.HEAD: _Walk.head,
    Input.DATA: _Walk.data,
    Input.END: _Walk.end,
    Input.LIMIT: _Walk.limit,
    Input.SAVED: lambda walk: walk.exchange.receive_saved(
        StoreError("disk full") if walk.dice.random() < 0.2 else None
    ),
    Input.FOLLOWED: lambda walk: walk.exchange.receive_followed(),
    Input.CANCEL: lambda walk: walk.exchange.cancel(walk.dice.choice(list(CancelReason))),
    Input.AGAIN: lambda walk: walk.exchange.answer_again(_STORED),
    Input.TURNED_AWAY: lambda walk: walk.exchange.turn_away(ApiError("There is no room.")),
}


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Arrow]]:
    """Every transition that is made."""
    arrows: set[Arrow] = set()
    under: dict[int, tuple[State, Input]] = {}
    receive, go = StateMachine.receive, StateMachine.go

    def receiving(machine: StateMachine, happening: Input) -> None:
        receive(machine, happening)
        under[id(machine)] = (machine.state, happening)

    def going(machine: StateMachine, state: State) -> None:
        go(machine, state)
        arrows.add((*under[id(machine)], state))

    monkeypatch.setattr(StateMachine, "receive", receiving)
    monkeypatch.setattr(StateMachine, "go", going)
    yield arrows


def _walk_where_dice_seldom_lead() -> None:
    """A limit behind a summary that lacks nothing but its end, and calls of both sides in one turn."""
    asked = [each for each in _REQUESTS[:-12] if "context_management" in each]
    forms = [(each, _CHUNK + _STOP) for each in asked]
    cut_short = ({"tools": [_SEARCH], "store": False}, _CALLS + _STOP + _DONE)
    mixed = {"tools": [_SEARCH, _FUNCTION]}
    forms += [({**mixed, "store": store}, _MIXED + _STOP + _DONE) for store in (True, False)]
    for request, data in (*forms, cut_short):
        exchange = _Walk(0).exchange
        body = {"model": "m", "input": "hi", "stream": True, **request}
        exchange.receive_request(RequestHead("POST", RESPONSES_PATH, (), "owner"), json.dumps(body).encode())
        if exchange.state is State.PREPARING:
            (preparing,) = exchange.actions()
            assert isinstance(preparing, PrepareTools)
            exchange.receive_tools(ScriptedTools().prepare_now(preparing.tools))
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(data)
        if data == cut_short[1]:
            exchange.cancel(CancelReason.CLIENT_GONE)
        elif exchange.state is State.RUNNING:
            *_, running = exchange.actions()
            assert isinstance(running, RunTools)
            exchange.receive_tool_result(ScriptedTools().run_now(running.calls[0]))
        else:
            exchange.receive_too_much(ApiError("The stream is too large."))


@pytest.mark.sources
def test_every_transition_of_the_table_is_made_by_somebody(walked: set[Arrow]) -> None:
    for seed in range(_WALKS):
        walk = _Walk(seed)
        for _ in range(_STEPS):
            if walk.exchange.state is State.DONE:
                break
            walk.step()
    _walk_where_dice_seldom_lead()
    listed = {
        (state, happening, after)
        for state, inputs in TRANSITIONS.items()
        for happening, afters in inputs.items()
        for after in afters
        if after is not state
    }
    never = listed - walked
    assert not never, "\n".join(f"{state.name} {happening.name} {after.name}" for state, happening, after in never)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happening", Input)
def test_what_the_table_does_not_have_raises(state: State, happening: Input) -> None:
    machine = StateMachine()
    machine.state = state
    allowed = TRANSITIONS[state].get(happening)
    if allowed is None:
        with pytest.raises(ExchangeStateError):
            machine.receive(happening)
        return
    for after in State:
        machine.state = state
        machine.receive(happening)
        if after in allowed:
            machine.go(after)
            assert machine.state is after
        else:
            with pytest.raises(ExchangeStateError):
                machine.go(after)
            assert machine.state is state


def test_after_the_end_there_is_no_transition() -> None:
    machine = StateMachine()
    machine.receive(Input.REQUEST)
    machine.go(State.DONE)
    with pytest.raises(ExchangeStateError):
        machine.go(State.CALLING)
