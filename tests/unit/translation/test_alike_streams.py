"""Streams whose chunks look alike: read quickly they lead to the bytes that reading each in full leads to."""

from __future__ import annotations

import json

import pytest

from tests.support.alike import TOOLS, compared, delta_of

# A run of each kind, one chunk for each text.
_WALKS: dict[str, list[tuple[str, int, list[str]]]] = {
    "all arguments again": [("begin", 0, [""]), ("arguments", 0, ['{"x":', "1", "}", '{"x":1}'])],
    "a call that was whole": [
        ("begin", 0, [""]),
        ("arguments", 0, ["{}"]),
        ("begin", 1, [""]),
        ("arguments", 1, ['{"x"']),
        ("arguments", 0, ["1", "2", "3"]),
        ("arguments", 1, [":1", "}"]),
    ],
    "text inside a call": [
        ("begin", 0, [""]),
        ("arguments", 0, ['{"x":']),
        ("text", 0, ["a", "b"]),
        ("arguments", 0, ["1", "2", "}"]),
        ("begin", 1, [""]),
        ("arguments", 1, ["{", "}"]),
    ],
    "blanks behind a call": [("begin", 0, [""]), ("arguments", 0, ["{", "}"]), ("text", 0, [" ", "\n", "a", "b"])],
    "thinking in tags": [("text", 0, ["<think>", "a", "b", "</th", "ink>", "c", "d"])],
    "a custom tool": [("custom", 0, [""]), ("arguments", 0, ['{"in', 'put":', '"a', "b", "c", '"}'])],
    "reasoning, then text": [
        ("reasoning", 0, ["a", "b", "c"]),
        ("texts", 0, ["d", "e", "f"]),
        ("named", 0, ["g", "h"]),
    ],
    "details without text": [("text", 0, ["a", "b"]), ("details", 0, ["", ""]), ("text", 0, ["c", "d"])],
    "behind the end": [("text", 0, ["a", "b"]), ("done", 0, [""]), ("text", 0, ["c", "d"])],
    "nothing": [("text", 0, ["a", "b", "", "", "c"])],
    "much": [("text", 0, ["aaaa", "bbbb", "cccc", "dddd"])],
    "much reasoning": [("reasoning", 0, ["aaaa", "bbbb", "cccc", "dddd"])],
    "many arguments": [("begin", 0, [""]), ("arguments", 0, ["{", "aaaa", "bbbb", "cccc"])],
}


@pytest.mark.parametrize("name", _WALKS)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("most", [1 << 20, 14, 9])
@pytest.mark.parametrize("size", [1 << 20, 200, 1, 0])
def test_what_looks_alike(name: str, most: int, size: int, hidden: bool) -> None:
    """`size`: of the pieces in which it comes; 0: a chunk each."""
    chunks = [
        b"data: [DONE]\n\n"
        if kind == "done"
        else b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta_of(kind, text, index)}]}).encode()
        for kind, index, texts in _WALKS[name]
        for text in texts
    ]
    chunks += [b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"]
    body = b"".join(chunks)
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if size else chunks
    compared(pieces, tools=TOOLS, most=most, hidden=hidden)
