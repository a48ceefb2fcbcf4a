"""What is recognised by its bytes leads to the bytes that reading it in full leads to."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.alike import TOOLS, compared, delta_of
from tests.support.effort import examples
from tests.support.recordings import Recording, all_recordings, cut

_RECORDINGS = [recording for recording in all_recordings() if recording.stream]


@pytest.mark.parametrize("recording", _RECORDINGS, ids=lambda recording: recording.name)
@pytest.mark.parametrize("how", ["whole", "network", "recut-1"])
def test_recordings(recording: Recording, how: str) -> None:
    compared(cut(recording.body, how, recording.reads), tools=TOOLS)


# Whole families of chunks: each value stands for one way in which servers write them.
_TEXT = st.sampled_from(
    [
        "a",
        "a",
        " b",
        "",
        "\n\n",
        '"',
        "\\",
        "{",
        "{}",
        '{"x":',
        "1}",
        "ä",
        "\u2028",
        "😀",
        "\ud83d",
        "data: ",
        "<think>",
    ]
)
_AROUND = st.sampled_from(
    [
        {},
        {},
        {},
        {"id": "1", "created": 1, "usage": None},
        {"id": "1", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}},
        {"error": {"message": "no"}},
        {"service_tier": "flex"},
        {"text": '"content":"a"'},
    ]
)


_KINDS = ("text", "texts", "reasoning", "named", "both", "begin", "custom", "arguments", "repeated", "details")
_RUN = st.tuples(
    st.sampled_from((*_KINDS, *_KINDS, "refusal", "sound", "end")),
    st.integers(0, 1),
    _AROUND,
    st.sampled_from([None] * 8 + ["stop", "length"]),
    st.lists(_TEXT, min_size=1, max_size=6),
)
_FRAMES = st.sampled_from(["data: %s\n\n", "data:%s\n\n", "data: %s\r\n\r\n", ": x\n\ndata: %s\n\n", "data: %s\n"])


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(_RUN, max_size=6),
    _FRAMES,
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 5000), max_size=12),
    st.sampled_from([{}, {"include": ["message.output_text.logprobs"]}, {"reasoning": {"summary": "auto"}}]),
    st.sampled_from([1 << 20, 9]),
)
def test_any_stream(
    runs: list[tuple[str, int, dict[str, Any], str | None, list[str]]],
    frame: str,
    spaced: bool,
    escaped: bool,
    places: list[int],
    request: dict[str, Any],
    most: int,
) -> None:
    body = b""
    for kind, index, around, finish, texts in runs:
        for text in texts:
            choice = {"index": 0, "delta": delta_of(kind, text, index), "finish_reason": finish}
            chunk = {**around, "choices": [choice]}
            separators = None if spaced else (",", ":")
            body += (frame % json.dumps(chunk, separators=separators, ensure_ascii=escaped)).encode(
                errors="surrogatepass"
            )
    body += b"data: [DONE]\n\n"
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    pieces = [body[start:end] for start, end in itertools.pairwise(marks)]
    compared(pieces, tools=TOOLS, most=most, **request)
