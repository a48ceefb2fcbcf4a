"""Usage of what passes untouched: the upstream's own count, and nobody's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.token_usage import usage_of_answer, usage_of_stream

_CHAT = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
_OURS = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2, "total_tokens": 7}


def _event(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"choices": [], "usage": _CHAT}, (5, 2)),
        ({"object": "list", "data": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}}, (9, 0)),
        ({"object": "response", "output": [], "usage": _OURS}, (5, 2)),
        ({"type": "response.completed", "response": {"usage": _OURS}}, (5, 2)),
        ({"usage": None, "response": {"usage": _OURS}}, (5, 2)),
        ({"type": "response.created", "response": {"usage": None}}, None),
        ({"type": "response.created", "response": {}}, None),
        ({"output": [{"usage": _OURS}], "tools": [{"parameters": {"usage": _OURS}}]}, None),
        ({"response": "usage"}, None),
        ([], None),
    ],
)
def test_an_answer_says_what_it_took_where_upstreams_say_it(answer: Any, tokens: tuple[int, int] | None) -> None:
    used = usage_of_answer(json.dumps(answer).encode())
    assert (None if used is None else (used.input_tokens, used.output_tokens)) == tokens


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"usage":%b' % (b"[" * 100_000)])
def test_what_is_no_answer_says_nothing(body: bytes) -> None:
    assert usage_of_answer(body) is None


def test_the_last_whole_event_that_counts_is_the_streams() -> None:
    first, last = {"usage": {**_CHAT, "prompt_tokens": 1}}, {"choices": [], "usage": _CHAT}
    whole = _event(first) + _event(last) + b': "usage"\n\ndata: [DONE]\n\n'
    for stream in (whole, whole + b'data: {"usage":{"prompt_tokens":99', whole + _event({"usage": None})):
        used = usage_of_stream(b"\n" + stream)
        assert used is not None and used.input_tokens == 5
    assert usage_of_stream(b"\ndata: [DONE]\n\n") is None and usage_of_stream(b"") is None


def test_the_end_of_an_event_is_not_taken_for_one() -> None:
    """What is behind the first line break of a piece is whole; what is before it may be anything."""
    assert usage_of_stream(b'data: {"usage":{"prompt_tokens":99}}\n\ndata: [DONE]\n\n') is None
