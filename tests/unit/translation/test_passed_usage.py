"""Usage of what passes untouched: the upstream's own count, and nobody's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.token_usage import (
    add_usage,
    read_groq_usage,
    read_usage,
    usage_object,
    usage_of_answer,
    usage_of_stream,
    with_reasoning,
)
from antiphon.types.json import raw

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


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2, 7, 0, 0, 0)),
        ({"input_tokens": 5, "output_tokens": 2}, (5, 2, 7, 0, 0, 0)),
        ({"prompt_tokens": 5, "input_tokens": 6, "completion_tokens": 2, "output_tokens": 3}, (5, 2, 7, 0, 0, 0)),
        ({"prompt_tokens": 5}, (5, 0, 5, 0, 0, 0)),
        ({"completion_tokens": 2}, (0, 2, 2, 0, 0, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 9}, (5, 2, 9, 0, 0, 0)),
        ({"prompt_tokens": 5, "total_tokens": 0}, (5, 0, 0, 0, 0, 0)),
        # The details first, then the flat spellings in their order.
        (
            {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 3}},
            (5, 0, 5, 1, 3, 0),
        ),
        ({"prompt_tokens": 5, "input_tokens_details": {"cached_tokens": 1}}, (5, 0, 5, 1, 0, 0)),
        (
            {
                "prompt_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 5},
                "prompt_cache_hit_tokens": 1,
                "cache_write_tokens": 1,
            },
            (9, 0, 9, 0, 0, 0),
        ),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 1, "cached_tokens": 2}, (9, 0, 9, 1, 0, 0)),
        ({"prompt_tokens": 9, "cached_tokens": 2, "cache_read_input_tokens": 3}, (9, 0, 9, 2, 0, 0)),
        ({"prompt_tokens": 9, "cache_read_input_tokens": 3}, (9, 0, 9, 3, 0, 0)),
        ({"prompt_tokens": 9, "cache_write_tokens": 4, "cache_creation_input_tokens": 5}, (9, 0, 9, 0, 4, 0)),
        ({"prompt_tokens": 9, "cache_creation_input_tokens": 5}, (9, 0, 9, 0, 5, 0)),
        ({"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}, (0, 9, 9, 0, 0, 6)),
        (
            {"completion_tokens": 9, "output_tokens_details": {"reasoning_tokens": 6}, "reasoning_tokens": 7},
            (0, 9, 9, 0, 0, 6),
        ),
        ({"completion_tokens": 9, "reasoning_tokens": 7}, (0, 9, 9, 0, 0, 7)),
        # What is no count is none, and the others count.
        ({"prompt_tokens": 5, "completion_tokens": "2", "total_tokens": -1}, (5, 0, 5, 0, 0, 0)),
        ({"prompt_tokens": 5.0, "completion_tokens": True, "prompt_tokens_details": []}, (5, 0, 5, 0, 0, 0)),
        ({"prompt_tokens": 2**53 - 1, "completion_tokens": 2**53}, (2**53 - 1, 0, 2**53 - 1, 0, 0, 0)),
        ({"prompt_tokens": "5", "completion_tokens": 0}, (0, 0, 0, 0, 0, 0)),
        ({"total_tokens": 5}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_count_is_found_under_each_of_its_names(said: Any, counts: tuple[int, ...] | None) -> None:
    expected = None if counts is None else usage_object(*counts)
    assert read_usage(raw(said)) == expected
    assert read_groq_usage(json.dumps({"usage": said}).encode()) == expected


def test_a_usage_that_is_no_object_is_none() -> None:
    assert read_groq_usage(b'{"usage":[1]}') is None and read_groq_usage(b"{}") is None


def test_the_usage_of_two_calls_is_the_sum_of_each_count() -> None:
    one, other = usage_object(1, 2, 3, 4, 5, 6), usage_object(10, 20, 30, 40, 50, 60)
    assert add_usage(one, other) == usage_object(11, 22, 33, 44, 55, 66)
    assert add_usage(one, None) == one


@pytest.mark.parametrize(
    ("counted", "written", "reasoned", "told"), [(0, 100, 25, 5), (7, 100, 25, 7), (0, 100, 0, 0), (0, 0, 0, 0)]
)
def test_reasoning_that_nobody_counted_is_estimated(counted: int, written: int, reasoned: int, told: int) -> None:
    usage = with_reasoning(usage_object(9, 20, 29, 0, 0, counted), written, reasoned)
    assert usage == usage_object(9, 20, 29, 0, 0, told)
