"""What is nested deeper than a reader can follow: a request is refused, and of an answer that part is passed over.

How deep that is depends on the interpreter and on who reads, so most of these are nested deeper than any of them goes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from antiphon.engine.exchange.phase import refused_for
from antiphon.errors import InvalidRequest
from antiphon.translation.answer.chunk import (
    Annotations,
    NotAChunk,
    ReasoningDetails,
    finish_of,
    read_chunk,
    read_logprobs,
    read_transcript,
)
from antiphon.translation.chat.call_items import hosted_call
from antiphon.translation.request.checks import read_value
from antiphon.translation.request.parameters import read_parameter
from antiphon.translation.token_usage import read_groq_usage, read_usage
from antiphon.types.items import InputItem
from tests.support.exchanges import JSON, run

_DEEP = b"[" * 100_000 + b"]" * 100_000


def test_a_member_of_a_request_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest) as told:
        read_value("metadata", msgspec.json.Decoder(dict[str, list[Any]]), Raw(b'{"a":%b}' % _DEEP))
    assert (told.value.param, told.value.code) == ("metadata", "invalid_value") and "deeply" in told.value.message
    with pytest.raises(InvalidRequest) as told:
        read_parameter("chat_template_kwargs", Raw(b'{"a":%b}' % _DEEP))
    assert told.value.param == "chat_template_kwargs"


def test_what_was_wrong_with_a_request_stays_what_it_was() -> None:
    wrong = InvalidRequest("no", param="input")
    assert refused_for(wrong) is wrong
    assert refused_for(RecursionError()).status == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","input":"hi","tools":[{"type":"function","name":"f","parameters":{"a":%s}}]}',
        '{"model":"m","input":"hi","tools":[{"type":"custom","name":"f","format":{"type":"text","a":%s}}]}',
        '{"model":"m","input":[{"role":"user","content":"x"},{"type":"additional_tools","role":"developer","tools":'
        '[{"type":"function","name":"f","parameters":{"a":%s}}]}]}',
        '{"model":"m","input":[{"role":"user","content":"x"},{"type":"web_search_call","id":"ws_1","action":{"a":%s}}]}',
    ],
)
def test_around_the_depth_at_which_readers_give_up_every_request_is_served_or_refused(body: str) -> None:
    """One reader takes in what is too deep for the next, which is called from further down."""
    answer = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
    statuses = set()
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit() + 5):
        outcome = run((body % ("[" * depth + "]" * depth)).encode(), [answer], headers=JSON)
        assert outcome.head is not None
        statuses.add(outcome.head.status)
    assert statuses <= {200, 400} and 200 in statuses


_PASSED_OVER: dict[str, tuple[Callable[[Raw], object], object]] = {
    "usage": (read_usage, None),
    "usage of groq": (lambda data: read_groq_usage(bytes(data)), None),
    "log probabilities": (read_logprobs, []),
    "finish details": (finish_of, ""),
    "a transcript": (lambda data: read_transcript(bytes(data)), b""),
    "reasoning details": (lambda data: ReasoningDetails().receive(data), b""),
}


@pytest.mark.parametrize("name", _PASSED_OVER)
def test_a_part_of_an_answer_is_passed_over(name: str) -> None:
    read, nothing = _PASSED_OVER[name]
    assert read(Raw(_DEEP)) == nothing


def test_annotations_that_cannot_be_read_are_none() -> None:
    annotations = Annotations()
    annotations.receive(Raw(_DEEP))
    annotations.receive_sources(Raw(_DEEP), Raw(_DEEP))
    assert annotations.place("as it stands there [1]") == []


def test_a_chunk_is_none() -> None:
    with pytest.raises(NotAChunk):
        read_chunk(b'{"choices":%b}' % _DEEP)


def test_arguments_that_cannot_be_read_are_told_as_they_are() -> None:
    text = _DEEP.decode()
    item = {"type": "mcp_call", "id": "mcp_1", "name": "roll", "server_label": "dice", "arguments": text}
    _, name, arguments, _ = hosted_call(InputItem(id="mcp_1", source=Raw(json.dumps(item).encode())), 0)
    assert name == "dice__roll" and json.loads(b'"%b"' % arguments) == json.dumps(
        {"invalid_arguments": text}, separators=(",", ":")
    )
