"""A relayed exchange without IO: whatever comes, and in whatever parts, what Envoy is told is what it accepts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.answers import Accounting
from antiphon.doors.extproc.message_queues import Outbox
from antiphon.doors.extproc.opening import ClientRequest, ProtocolError
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.relay_state import RelayState, local_reply
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.ports.actions import CallUpstream, CancelReason, RequestHead, SaveResponse
from antiphon.translation.profiles import PROFILES
from tests.support.exchanges import make_exchange
from tests.support.judge import check_stream, parse_sse

_STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    + b"".join(b'data: {"choices":[{"delta":{"content":"%d "}}]}\n\n' % number for number in range(12))
    + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_TIMES = TimeoutSettings()
_SSE = (("content-type", "text/event-stream"),)


class _Relayed:
    """A state, and what it said, as Envoy reads it."""

    def __init__(
        self,
        *,
        stream: bool = True,
        text: str = "hi",
        end_seconds: float = 1.0,
        tries: int = 1,
        store: bool = False,
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.said: list[pb.ProcessingResponse] = []
        exchange = make_exchange(**options)
        headers = (
            *((":method", "POST"), (":path", "/v1/responses"), (":scheme", "http"), (":authority", "api.example")),
            *(("x-forwarded-proto", "http"), ("authorization", "Bearer x"), ("x-mine", "1")),
        )
        self.request = ClientRequest("POST", "/v1/responses", "", headers, "req_1", is_exchange=True)
        self.state = RelayState(exchange, self.request, _TIMES, _TIMES.keepalive, end_seconds, Accounting(lambda *_: 0))
        body = json.dumps({"model": "m", "input": text, "stream": stream, "store": store}).encode()
        exchange.receive_request(RequestHead("POST", "/v1/responses", headers, "owner"), body)
        call = self.state.next_action()
        assert isinstance(call, CallUpstream)
        self.state.forward(msgspec.structs.replace(call.request, tries=tries), self.now)
        self._send()

    def take(self, received: Received) -> None:
        self.state.receive(received, self.now)
        self.answer()

    def answer(self) -> None:
        assert self.state.answer(self.now) is None
        self._send()

    def pass_time(self, seconds: float) -> None:
        """Nothing comes for so long; what is due meanwhile is done."""
        last = self.now + seconds
        while not self.state.finished and (due := self.state.next_due()) <= last:
            self.now = max(self.now, due)
            self.state.pass_time(self.now)
            self.answer()
        self.now = last

    def _send(self) -> None:
        messages = [*self.state.outgoing, *(self.state.rest or ())]
        self.state.outgoing, self.state.rest = [], None
        self.said += [pb.ProcessingResponse.FromString(message) for message in messages]

    @property
    def kinds(self) -> list[str]:
        return [str(one.WhichOneof("response")) for one in self.said]

    @property
    def body(self) -> bytes:
        """What the client gets."""
        parts = [one.response_body.response.body_mutation.streamed_response for one in self.said]
        assert not any(part.end_of_stream for part in parts[:-1]), "nothing comes behind the end"
        return b"".join(part.body for part in parts)


def _head(status: str = "200", *, end: bool = False) -> Received:
    return Received(MessageKind.RESPONSE_HEADERS, ((":status", status), *_SSE), b"", end)


@given(cuts=st.sets(st.integers(1, len(_STREAM) - 1), max_size=8), trailers=st.booleans(), late=st.booleans())
def test_a_stream_in_any_parts_is_the_same_stream(cuts: set[int], trailers: bool, late: bool) -> None:
    """However it ends, with its last part, a part of its own or trailers: one head, its parts, one end."""
    relayed = _Relayed()
    at = [0, *sorted(cuts), len(_STREAM)]
    relayed.take(_head())
    assert relayed.kinds == ["request_headers", "request_body"], "an early failure still gets its own status"
    for begin, end in itertools.pairwise(at):
        last = end == len(_STREAM) and not (trailers or late)
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[begin:end], last))
    if trailers:
        relayed.take(Received(MessageKind.RESPONSE_TRAILERS))
    elif late:
        assert not relayed.state.finished, "it ends with its upstream"
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), b"", True))
    assert relayed.state.finished
    kinds = relayed.kinds[2:]
    assert kinds[0] == "response_headers" and kinds.count("response_headers") == 1
    assert (kinds[-1] == "response_trailers") == trailers and kinds.count("response_trailers") == trailers
    ended = [one for one in relayed.said if one.response_body.response.body_mutation.streamed_response.end_of_stream]
    assert len(ended) == (not trailers)
    events = parse_sse(relayed.body)
    check_stream(events)
    assert [event["delta"] for event in events if event.get("type") == "response.output_text.delta"] == [
        f"{number} " for number in range(12)
    ]


def test_of_the_clients_headers_only_the_upstreams_own_go_on() -> None:
    removed = _Relayed().said[0].request_headers.response.header_mutation.remove_headers
    assert set(removed) == {"x-mine"}, "the exchange passed the other one on"


def test_a_large_request_goes_out_in_parts_of_which_the_last_ends_it() -> None:
    relayed = _Relayed(text="x" * 700_000)
    parts = [one.request_body.response.body_mutation.streamed_response for one in relayed.said[1:]]
    assert [part.end_of_stream for part in parts] == [False, False, True]
    assert len(json.loads(b"".join(part.body for part in parts))["messages"][0]["content"]) == 700_000


@pytest.mark.parametrize("end_seconds", [0.5, 2.0])
def test_an_upstream_that_does_not_end_is_waited_for_so_long(end_seconds: float) -> None:
    relayed = _Relayed(end_seconds=end_seconds)
    relayed.take(_head())
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM, False))
    relayed.pass_time(end_seconds - 0.1)
    assert not relayed.state.finished
    relayed.pass_time(0.2)
    assert relayed.state.finished and relayed.body.endswith(b"data: [DONE]\n\n")
    count = len(relayed.said)
    relayed.answer()
    assert len(relayed.said) == count, "it ends once"
    assert relayed.state.next_due() == float("inf"), "nothing is due behind the end"


def test_a_silent_stream_gets_comments_and_then_an_end_with_its_cause() -> None:
    relayed = _Relayed()
    relayed.take(_head())
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[:80], False))
    relayed.pass_time(3 * _TIMES.keepalive + 1)
    assert relayed.body.count(b": keep-alive") == 3 and not relayed.state.finished
    relayed.pass_time(_TIMES.idle)
    assert relayed.state.finished and b'"response.failed"' in relayed.body
    assert relayed.state.finish is not None and relayed.state.finish.outcome == "failed"


def test_an_upstream_that_does_not_begin_is_an_error_with_its_own_status() -> None:
    relayed = _Relayed()
    relayed.pass_time(_TIMES.head + 1)
    (answer,) = relayed.said[2:]
    assert answer.immediate_response.status.code == 504
    assert json.loads(answer.immediate_response.body)["error"]["code"] == "upstream_timeout"
    assert answer.immediate_response.details == "antiphon_error", "JSON: the access log and local replies know it"


@pytest.mark.parametrize("bodiless", [True, False])
def test_an_error_of_the_upstreams_is_told_as_one(bodiless: bool) -> None:
    """Without a body it takes ours only in the head's answer."""
    relayed = _Relayed(stream=False)
    relayed.take(_head("503", end=bodiless))
    if not bodiless:
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), b"busy", True))
    (head, *rest) = relayed.said[2:]
    common = head.response_headers.response
    body = common.body_mutation.body if bodiless else relayed.body
    assert relayed.state.finished and json.loads(body)["error"]["type"] == "server_error"
    assert bool(rest) != bodiless
    assert (common.status == pb.CommonResponse.CONTINUE_AND_REPLACE) == bodiless


def _records(said: list[pb.ProcessingResponse]) -> list[pb.TokenUsage | None]:
    """The token records that Envoy got with the parts of the body, None for a part without one."""
    parts = [one for one in said if one.WhichOneof("response") == "response_body"]
    assert all(set(one.typed_dynamic_metadata) <= {"envoy.ai.token_usage"} for one in parts)
    return [
        pb.TokenUsage.FromString(found.value)
        if (found := one.typed_dynamic_metadata.get("envoy.ai.token_usage"))
        else None
        for one in parts
    ]


def test_a_long_stream_tells_envoy_its_tokens_so_far() -> None:
    """Every five seconds one part has an estimate, and the last part of a completed stream the upstream's counts."""
    relayed = _Relayed(text="x" * 4000)
    relayed.take(_head())
    word = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"word " * 80)
    for _ in range(12):
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), word))
        relayed.now += 1
    running = _records(relayed.said)
    estimates = [one for one in running if one is not None]
    assert [number for number, one in enumerate(running) if one is not None] == [5, 10]
    assert {one.extraction_status for one in estimates} == {pb.TokenUsage.PARTIAL}
    assert all(one.input_tokens.value >= 1000 and one.model == "m" for one in estimates)
    first, second = (one.output_tokens.value for one in estimates)
    assert 0 < first < second
    end = (
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\ndata: [DONE]\n\n'
    )
    stop = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), stop + end, end=True))
    *_, last = [one for one in _records(relayed.said) if one is not None]
    assert last.extraction_status == pb.TokenUsage.COMPLETE and last.api_protocol == pb.TokenUsage.OPENAI_RESPONSES
    assert (last.input_tokens.value, last.output_tokens.value, last.total_tokens.value) == (7, 5, 12)


@pytest.mark.parametrize("tries", [1, 3])
def test_a_head_is_waited_for_as_long_as_its_upstreams_may_take(tries: int) -> None:
    relayed = _Relayed(tries=tries)
    relayed.pass_time(tries * _TIMES.head - 0.1)
    assert not relayed.state.finished
    assert relayed.state.next_due() == 1000.0 + tries * _TIMES.head
    relayed.pass_time(0.1)
    assert relayed.state.finished


def test_what_is_due_next_depends_on_how_far_it_is() -> None:
    """And the state reports a nearer due time, or the driver would wait for the old one."""
    relayed = _Relayed(end_seconds=0.5)
    state, begun = relayed.state, relayed.now
    assert state.next_due() == begun + _TIMES.head and not state.due_changed
    relayed.now += 1
    state.hear(relayed.now)
    assert state.next_due() == relayed.now + _TIMES.head, "Envoy has read the request only now"
    relayed.take(_head())
    # Nearer than the head's: the silence, or the exchange's own limits.
    assert state.next_due() <= relayed.now + _TIMES.idle and state.due_changed
    state.due_changed = False
    relayed.now += 1
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[:80]))
    assert state.next_due() == relayed.now + _TIMES.keepalive and state.due_changed
    state.due_changed = False
    relayed.now += 1
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[80:200]))
    assert state.next_due() == relayed.now + _TIMES.keepalive and not state.due_changed
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[200:]))
    assert state.next_due() == relayed.now + 0.5 and state.due_changed and not state.finished
    relayed.state.pass_time(relayed.now + 0.4)
    relayed.now += 0.5
    relayed.answer()
    assert state.finished


def test_a_head_alone_changes_nothing_for_a_response_that_is_one_piece() -> None:
    relayed = _Relayed(stream=False)
    relayed.take(_head())
    relayed.state.due_changed = False
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), b'{"choices":[{"message":{"content":"hi"}}]}'))
    assert not relayed.state.due_changed and relayed.state.next_due() > relayed.now + _TIMES.keepalive


@pytest.mark.parametrize(
    ("bodies", "reason"),
    [
        (None, CancelReason.CLIENT_GONE),
        ([], CancelReason.CONNECTION_ENDED),
        ([False], CancelReason.CONNECTION_ENDED),
        ([True], CancelReason.CLIENT_GONE),
    ],
)
def test_who_ended_it_early_is_known_before_the_head_and_behind_the_body(
    bodies: list[bool] | None, reason: CancelReason
) -> None:
    relayed = _Relayed()
    if bodies is not None:
        relayed.take(_head())
    for end in bodies or ():
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM[:80], end))
    assert relayed.state.reason_of_the_end is reason


@pytest.mark.parametrize(("words", "told"), [(100, "idle"), (3000, "does not read")])
def test_a_silence_behind_more_than_envoy_holds_may_be_the_clients(words: int, told: str) -> None:
    relayed = _Relayed()
    relayed.take(_head())
    for _ in range(words):
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'))
    relayed.pass_time(_TIMES.idle - 0.1)
    assert not relayed.state.finished
    relayed.pass_time(0.1)
    assert relayed.state.finished and relayed.state.finish is not None
    failed = next(event for event in parse_sse(relayed.body) if event["type"] == "response.failed")
    assert (told in str(failed)) or failed["response"]["error"]["code"]


@pytest.mark.parametrize("trailers", [False, True])
def test_a_large_answer_goes_out_in_parts_with_one_end(trailers: bool) -> None:
    relayed = _Relayed(stream=False)
    relayed.take(_head())
    body = json.dumps({"choices": [{"message": {"content": "x" * 600_000}, "finish_reason": "stop"}]}).encode()
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), body, not trailers))
    if trailers:
        relayed.take(Received(MessageKind.RESPONSE_TRAILERS))
    parts = [one for one in relayed.said[2:] if one.WhichOneof("response") == "response_body"]
    ends = [one.response_body.response.body_mutation.streamed_response.end_of_stream for one in parts]
    assert ends == [False, False, not trailers]
    # Only the last part says how it ended.
    assert [("status" in one.dynamic_metadata.fields["antiphon"].struct_value.fields) for one in parts] == [
        *(False, False, True)
    ]
    assert (relayed.kinds[-1] == "response_trailers") == trailers and relayed.state.finished
    assert json.loads(relayed.body)["output"][0]["content"][0]["text"] == "x" * 600_000


def test_of_the_upstreams_headers_only_those_about_the_account_stay() -> None:
    relayed = _Relayed()
    given = ((":status", "200"), *_SSE, ("x-ratelimit-limit", "1"), ("x-own", "2"), ("date", "today"))
    relayed.take(Received(MessageKind.RESPONSE_HEADERS, given))
    relayed.take(Received(MessageKind.RESPONSE_BODY, (), _STREAM, True))
    mutation = next(one for one in relayed.said if one.WhichOneof("response") == "response_headers")
    changed = mutation.response_headers.response.header_mutation
    assert set(changed.remove_headers) == {"x-own", "date"}
    assert {one.header.key: one.header.raw_value for one in changed.set_headers}[":status"] == b"200"
    assert {one.header.key: one.header.raw_value for one in changed.set_headers}["x-request-id"] == b"req_1"


@pytest.mark.parametrize("status", ["", "20", "2000", "2x0", "\u0662\u0660\u0660"])
def test_a_head_without_a_status_of_three_digits_is_not_envoys(status: str) -> None:
    with pytest.raises(ProtocolError, match=r":status"):
        _Relayed().take(_head(status))
    with pytest.raises(ProtocolError, match=r":status"):
        local_reply(Received(MessageKind.RESPONSE_HEADERS), "req_1")


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (403, "invalid_request_error", "permission_denied"),
        (408, "invalid_request_error", "request_timeout"),
        (429, "rate_limit_error", "rate_limit_exceeded"),
        (499, "invalid_request_error", None),
        (500, "server_error", None),
        (503, "server_error", None),
    ],
)
def test_what_envoy_answers_itself_becomes_an_error_object(status: int, kind: str, code: str | None) -> None:
    headers, body = local_reply(_head(str(status)), "req_1")
    assert headers == (
        (":status", str(status)),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("x-request-id", "req_1"),
    )
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == (kind, code)


class _Stream:
    """A transport's stream that has room for so many messages."""

    def __init__(self, room: int) -> None:
        self.sent: list[bytes] = []
        self._room = room

    def receive_now(self) -> bytes | None:
        return None

    def send_now(self, message: bytes) -> bool:
        self.sent.append(message)
        return len(self.sent) < self._room


@pytest.mark.parametrize(("room", "at_once"), [(9, True), (1, False)])
def test_what_can_be_said_at_once_needs_nobody_to_wait(room: int, at_once: bool) -> None:
    relayed = _Relayed()
    stream = _Stream(room)
    outbox = Outbox(stream)  # type: ignore[arg-type]
    assert relayed.state.say(outbox, relayed.now) and not outbox.answered, "there is nothing to say yet"
    relayed.state.receive(_head(), relayed.now)
    relayed.state.receive(Received(MessageKind.RESPONSE_BODY, (), _STREAM[:200]), relayed.now)
    assert relayed.state.say(outbox, relayed.now) is at_once
    assert outbox.full is not at_once and len(stream.sent) == (2 if at_once else 1)
    assert len(relayed.state.outgoing) == (0 if at_once else 1)


def test_a_body_in_parts_is_left_to_who_can_wait() -> None:
    relayed = _Relayed(stream=False)
    stream = _Stream(100)
    relayed.state.receive(_head(), relayed.now)
    body = json.dumps({"choices": [{"message": {"content": "x" * 600_000}, "finish_reason": "stop"}]}).encode()
    relayed.state.receive(Received(MessageKind.RESPONSE_BODY, (), body, True), relayed.now)
    assert not relayed.state.say(Outbox(stream), relayed.now)  # type: ignore[arg-type]
    assert not stream.sent and len(list(relayed.state.rest or ())) == 3


def test_only_an_upstream_that_floods_lets_others_go_first() -> None:
    relayed = _Relayed()
    assert not relayed.state.receive(_head(), relayed.now)
    few = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    assert not relayed.state.receive(Received(MessageKind.RESPONSE_BODY, (), few), relayed.now)


def test_an_action_that_must_wait_is_done_before_the_end_and_once() -> None:
    relayed = _Relayed(store=True)
    stream = _Stream(100)
    outbox = Outbox(stream)  # type: ignore[arg-type]
    relayed.state.receive(_head(), relayed.now)
    relayed.state.receive(Received(MessageKind.RESPONSE_BODY, (), _STREAM, True), relayed.now)
    assert not relayed.state.say(outbox, relayed.now) and not stream.sent
    assert isinstance(relayed.state.answer(relayed.now), SaveResponse)
    assert relayed.state.answer(relayed.now) is None, "it is under way"


@pytest.mark.parametrize("begun", [False, True])
def test_a_native_answer_that_falls_silent_is_cut_behind_what_came(begun: bool) -> None:
    """What has begun cannot become an error any more; what has not is one."""
    rule = ModelRule("m", ModelRoute(PROFILES["generic"], upstream="other", mode="native"))
    relayed = _Relayed(routes=ModelRoutes(ModelRoute(PROFILES["generic"]), (rule,)))
    relayed.take(_head())
    if begun:
        relayed.take(Received(MessageKind.RESPONSE_BODY, (), b"event: a\ndata: {}\n\n"))
    relayed.state.due_changed = False
    relayed.pass_time(_TIMES.idle + 1)
    assert relayed.state.finished
    if begun:
        assert relayed.state.cut == "the upstream stopped sending"
        assert relayed.body.startswith(b"event: a") and b"keep-alive" not in relayed.body
        streamed = [one.response_body.response.body_mutation.streamed_response for one in relayed.said]
        assert not any(part.end_of_stream for part in streamed)
    else:
        (answer,) = relayed.said[2:]
        assert answer.immediate_response.status.code == 504 and not relayed.state.cut
