"""Answers with everything they can hold: any cut, streamed or whole, they say the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.sealing import Sealer
from tests.support.effort import examples
from tests.support.exchanges import run
from tests.support.judge import check_stream, parse_sse

_KEYS = Sealer([b"a key for the tests"], random_bytes=lambda size: b"\x07" * size)
_JSON = (("content-type", "application/json"),)

_PIECE = st.sampled_from(["<think>", "</think>", "<", "</th", ">", "\n", " ", "a", "é😀", '"\\', "[1]", "[2]"])
_CONTENT = st.lists(_PIECE, max_size=10).map("".join)
_TOKEN = st.fixed_dictionaries(
    {"token": st.sampled_from(["a", "é", "<think>"]), "logprob": st.floats(-9, 0) | st.integers(-9, 0)},
    optional={"bytes": st.none() | st.just([97]), "top_logprobs": st.just([]) | st.none()},
)
_LOGPROBS = st.none() | st.fixed_dictionaries({"content": st.none() | st.lists(_TOKEN, max_size=3)})
_CITED = st.fixed_dictionaries(
    {"type": st.just("url_citation"), "url": st.sampled_from(["https://a.test", "https://b.test"])},
    optional={"start_index": st.integers(-1, 5), "end_index": st.integers(-1, 5), "title": st.none() | st.just("A")},
)
_DETAIL = st.sampled_from(
    [
        {"type": "reasoning.text", "text": "so", "index": 0},
        {"type": "reasoning.text", "signature": "sig", "index": 0},
        {"type": "reasoning.encrypted", "data": "opaque", "index": 1},
    ]
)
_CALL = st.fixed_dictionaries(
    {"index": st.integers(0, 2), "function": st.fixed_dictionaries({"name": st.just("f"), "arguments": st.just("{}")})},
    optional={"id": st.sampled_from(["a", "b"]), "extra_content": st.just({"google": {"thought_signature": "s"}})},
)
_DELTA = st.fixed_dictionaries(
    {},
    optional={
        "content": _CONTENT | st.none(),
        "reasoning": st.sampled_from(["hm", "", None]),
        "reasoning_details": st.lists(_DETAIL, max_size=2),
        "annotations": st.lists(_CITED, max_size=2),
        "tool_calls": st.lists(_CALL, max_size=1),
        "refusal": st.sampled_from(["no", "", None]),
        "audio": st.just({"transcript": "said"}) | st.none(),
    },
)
_CHUNK = st.tuples(_DELTA, _LOGPROBS, st.sampled_from([None, None, "stop", "length", "tool_calls"])).map(
    lambda made: {
        "choices": [{"index": 0, "delta": made[0], "logprobs": made[1], "finish_reason": made[2]}],
        "citations": ["https://a.test"],
    }
)
_REQUEST = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "mai-ds-r1"]), "input": st.just("hi")},
    optional={
        "include": st.just(["message.output_text.logprobs", "reasoning.encrypted_content"]),
        "reasoning": st.just({"summary": "auto"}),
        "store": st.just(False),
        "tools": st.just([{"type": "function", "name": "f"}]),
    },
)


def _sse(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


@settings(max_examples=examples(50), deadline=None)
@given(_REQUEST, st.lists(_CHUNK, max_size=6), st.lists(st.integers(0, 3000), max_size=5), st.booleans())
def test_streamed_cut_and_whole_answers_are_the_same(
    request: dict[str, Any], chunks: list[dict[str, Any]], places: list[int], padded: bool
) -> None:
    """Legal grammar, the same bytes for any cut, the JSON answer equal to the fold of the stream."""
    body = _sse(chunks)
    streamed = {**request, "stream": True, "stream_options": {"include_obfuscation": padded}}
    whole = run(streamed, [body], sealer=_KEYS)
    assert run(streamed, _cut(body, places), sealer=_KEYS).body == whole.body
    final = check_stream(parse_sse(whole.body))
    single = run(request, [body], sealer=_KEYS)
    assert single.head is not None
    if final["status"] == "failed":
        assert single.head.status >= 400
    else:
        # Padding takes ids of its own; nothing else may differ.
        assert padded or single.json == final


def _said(response: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (item["type"], "".join(part["text"] for part in item.get("content", []))) for item in response.get("output", ())
    ]


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(["m", "mai-ds-r1"]), _CONTENT, st.lists(st.integers(0, 99), max_size=6))
def test_tags_are_found_wherever_the_chunks_end(model: str, content: str, places: list[int]) -> None:
    marks = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    pieces = [content[start:end] for start, end in itertools.pairwise(marks)]
    chunks: list[Any] = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    answer = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    streamed = run({"model": model, "input": "hi", "stream": True}, [_sse(chunks)])
    whole = run({"model": model, "input": "hi"}, [json.dumps(answer).encode()], headers=_JSON)
    assert _said(check_stream(parse_sse(streamed.body))) == _said(whole.json)
