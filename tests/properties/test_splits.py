"""The cut of the upstream's bytes never matters, and no bytes at all raise."""

from __future__ import annotations

import itertools
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.translation.answer.sse import SseDecoder
from tests.support.effort import examples
from tests.support.exchanges import run
from tests.support.judge import check_stream, parse_sse

_TEXT = st.text(max_size=12)
_FIELD = st.sampled_from(["data", "event", "id", "retry", "", "other"])
_END = st.sampled_from(["\n", "\r", "\r\n"])


@st.composite
def _event_streams(draw: st.DrawFn) -> bytes:
    """Text that is nearly always a legal event stream, with every line end."""
    lines = draw(st.lists(st.tuples(_FIELD, _TEXT, _END) | st.tuples(st.just(None), st.just(""), _END), max_size=12))
    text = ""
    for name, value, end in lines:
        value = value.replace("\n", "").replace("\r", "")
        text += (f"{name}: {value}" if name is not None else "") + end
    return text.encode("utf-8", "replace")


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


def _decode(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    decoder = SseDecoder(1 << 20)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [(event.type, event.data) for event in events + decoder.close()]


@given(_event_streams(), st.lists(st.integers(0, 500), max_size=8))
def test_any_cut_gives_the_same_events(data: bytes, places: list[int]) -> None:
    assert _decode(_cut(data, places)) == _decode([data])
    assert _decode([data[i : i + 1] for i in range(len(data))]) == _decode([data])
    # Between a carriage return and what follows it, which may be its line feed or not.
    assert _decode(re.findall(rb"[^\r]*\r|[^\r]+", data)) == _decode([data])


_CALL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | st.none(),
        "id": st.sampled_from(["a", "b", "", None]),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["f", "g", "", None]),
                "arguments": st.sampled_from(['{"x"', ":1}", "{}", "", None]),
            },
        ),
    },
)
_DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": _TEXT | st.none(),
        "reasoning_content": _TEXT | st.none(),
        "reasoning": _TEXT | st.none(),
        "refusal": _TEXT | st.none(),
        "tool_calls": st.lists(_CALL, max_size=2) | st.none(),
    },
)
_CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(
            st.fixed_dictionaries(
                {"delta": _DELTA},
                optional={
                    "index": st.just(0),
                    "finish_reason": st.sampled_from([None, "", "stop", "length", "tool_calls", "content_filter"]),
                },
            ),
            max_size=2,
        ),
        "usage": st.none() | st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9)}),
        "error": st.none() | st.just({"message": "no"}),
    },
)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(_CHUNK, max_size=8), st.lists(st.integers(0, 2000), max_size=6), st.booleans())
def test_any_chunks_make_a_legal_stream(chunks: list[dict[str, object]], places: list[int], done: bool) -> None:
    """Whatever a server streams: legal grammar, no gaps, fold equals the snapshot, any cut the same bytes."""
    body = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    body += b"data: [DONE]\n\n" if done else b""
    whole = run({"model": "m", "input": "hi", "stream": True}, [body])
    cut = run({"model": "m", "input": "hi", "stream": True}, _cut(body, places))
    assert cut.body == whole.body
    final = check_stream(parse_sse(whole.body))
    single = run({"model": "m", "input": "hi"}, [body])
    assert single.head is not None
    if final["status"] == "failed":
        assert single.head.status >= 400
    else:
        assert single.json == final


@settings(max_examples=examples(150), deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["text/event-stream", "application/json", "text/html", ""]))
def test_any_bytes_from_upstream_end_in_a_documented_failure(data: bytes, kind: str) -> None:
    outcome = run({"model": "m", "input": "hi", "stream": True}, [data], headers=(("content-type", kind),))
    assert outcome.finish is not None and outcome.finish.outcome in ("failed", "error")


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=120))
def test_any_request_bytes_are_a_400(data: bytes) -> None:
    outcome = run(data)
    assert outcome.head is not None and outcome.head.status == 400
    assert set(outcome.json["error"]) - {"request_id"} == {"message", "type", "param", "code"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("input", "tools", "tool_choice", "text", "reasoning", "metadata", "instructions", "stream", "temperature")


@settings(max_examples=examples(250), deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_any_field_values_are_served_or_refused(fields: dict[str, object]) -> None:
    """No value of any field raises: it is a call upstream or a 400 that names a field."""
    outcome = run({"model": "m", "input": "hi", **fields}, [b'{"choices":[{"message":{"content":"x"}}]}'])
    assert outcome.head is not None
    if outcome.head.status == 400:
        assert outcome.json["error"]["message"]
    else:
        assert outcome.calls
