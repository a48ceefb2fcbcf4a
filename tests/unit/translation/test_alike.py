"""What chunks have in common: when it is learned, and what is cut out by it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.answer.alike import Alike, learn
from antiphon.translation.answer.chunk import read_chunk
from antiphon.translation.events.open_items import TextOf
from antiphon.translation.splice import cut


def _chunk(delta: dict[str, Any], choice: dict[str, Any] | None = None, **around: Any) -> bytes:
    return json.dumps({"id": "1", "choices": [{"index": 0, "delta": delta, **(choice or {})}], **around}).encode()


def _call(**fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": "a"}, **fields}]}


def _cut(alike: Alike, data: bytes) -> tuple[list[bytes], int]:
    return cut(data, alike.before, alike.behind, b"")


def _learn(payload: bytes, text_of: TextOf, frame: bytes = b"data: %b\n\n") -> Alike | None:
    return learn(frame % payload, payload, read_chunk(payload), text_of)


@pytest.mark.parametrize(
    ("text_of", "payload"),
    [
        (TextOf.MESSAGE, _chunk({"content": "a"})),
        (
            TextOf.MESSAGE,
            _chunk({"content": "a", "role": "assistant", "reasoning": None, "tool_calls": []}, usage=None),
        ),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"finish_reason": None, "logprobs": None}, service_tier="default")),
        (TextOf.MESSAGE, _chunk({"content": "a"}, usage={"prompt_tokens": 1})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, x={"content": "b"}, y='"content": "a"')),
        (TextOf.MESSAGE, _chunk({"content": "a"}).replace(b": ", b":")),
        (TextOf.REASONING, _chunk({"reasoning_content": "a", "content": None})),
        (TextOf.REASONING, _chunk({"reasoning": "a", "content": ""})),
        (TextOf.CALL, _chunk(_call())),
        (TextOf.CALL, _chunk({**_call(id=None, type="function"), "content": None})),
    ],
)
@pytest.mark.parametrize("frame", [b"data: %b\n\n", b"data:%b\n\n", b"data: %b\r\n\r\n", b": x\n\ndata: %b\n\nda"])
def test_chunks_of_one_text_are_learned(text_of: TextOf, payload: bytes, frame: bytes) -> None:
    alike = _learn(payload, text_of, frame)
    assert alike is not None and alike.text_of is text_of
    one = alike.before + b"%b" + alike.behind
    assert _cut(alike, one % b"x") == ([b"x"], len(one % b"x"))
    stream = b"".join(one % text for text in (b"a", b"", rb"\"\u00e4\n", "ä".encode(), rb"\ud7ff"))
    assert _cut(alike, stream + b"data: {") == ([b"a", rb"\"\u00e4\n", "ä".encode(), rb"\ud7ff"], len(stream))


@pytest.mark.parametrize(
    ("text_of", "payload"),
    [
        (TextOf.REASONING, _chunk({"content": "a"})),
        (TextOf.MESSAGE, _chunk({"reasoning": "a"})),
        (TextOf.MESSAGE, _chunk({"content": ""})),
        (TextOf.MESSAGE, _chunk({"content": None})),
        (TextOf.MESSAGE, _chunk({"content": ["a"]})),
        (TextOf.MESSAGE, _chunk({"content": "a", "reasoning": "b"})),
        (TextOf.MESSAGE, _chunk({"content": "a", "refusal": "b"})),
        (TextOf.MESSAGE, _chunk({"content": "a", "audio": {"transcript": "b"}})),
        (TextOf.MESSAGE, _chunk({"content": "a", "annotations": [{}]})),
        (TextOf.MESSAGE, _chunk({"content": "a", "reasoning_details": [{}]})),
        (TextOf.MESSAGE, _chunk({"content": "a", "function_call": {"arguments": "b"}})),
        (TextOf.MESSAGE, _chunk({"content": "a", **_call()})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"index": 1})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"finish_reason": "stop"})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"finish_details": {"type": "stop"}})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"error": {"message": "no"}})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, {"message": {}})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, error={"message": "no"})),
        (TextOf.MESSAGE, _chunk({"content": "a"}, citations=["x"])),
        (TextOf.MESSAGE, _chunk({"content": "a"}, x_groq={"usage": {}})),
        (
            TextOf.MESSAGE,
            _chunk({"content": "a"}, x={"content": "a"}).replace(b'"choices"', b'"x":{"content": "a"},"choices"'),
        ),
        (TextOf.MESSAGE, b'{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}'),
        (TextOf.MESSAGE, b'{"choices":[{"delta":{"content":"b","content":"a","content":"b"}}]}'),
        (TextOf.MESSAGE, b'{"choices":[{"delta":{"content"  :"a"}}]}'),
        (TextOf.MESSAGE, b'{"id":"\xff","choices":[{"delta":{"content":"a"}}]}'),
        (TextOf.MESSAGE, b'{"x":NaN,"choices":[{"delta":{"content":"a"}}]}'),
        (TextOf.MESSAGE, b'{"choices":[]}'),
        (TextOf.MESSAGE, b"{}"),
        (TextOf.CALL, _chunk(_call(id="c"))),
        (TextOf.CALL, _chunk(_call(function={"name": "f", "arguments": "a"}))),
        (TextOf.CALL, _chunk(_call(function={"arguments": ""}))),
        (TextOf.CALL, _chunk(_call(function=None))),
        (TextOf.CALL, _chunk(_call(custom={"input": "a"}))),
        (TextOf.CALL, _chunk(_call(extra_content={"google": {}}))),
        (TextOf.CALL, _chunk({"tool_calls": _call()["tool_calls"] * 2})),
    ],
)
def test_no_others_are(text_of: TextOf, payload: bytes) -> None:
    assert _learn(payload, text_of) is None


@pytest.mark.parametrize(
    "frame", [b"data:  %b\n\n", b"event: x\n%b\n\n", b"data: %b\n", b"data: %b", b"data: %b\n\r\n"]
)
def test_nor_those_in_another_frame(frame: bytes) -> None:
    assert _learn(_chunk({"content": "a"}), TextOf.MESSAGE, frame) is None


@pytest.mark.parametrize(
    "text",
    [
        b'"',
        b"\\",
        rb"\x",
        rb"\u12",
        rb"\ud83d",
        rb"\ud83d\ude00",
        rb"\uDFFF",
        b"\n",
        b"\x1f",
        b"\xff",
        b"\xc3",
        b'a","b":"c',
    ],
)
def test_what_is_no_text_is_read_in_full(text: bytes) -> None:
    alike = _learn(_chunk({"content": "a"}), TextOf.MESSAGE)
    assert alike is not None
    one = alike.before + b"%b" + alike.behind
    assert _cut(alike, one % text) == ([], 0)
    assert _cut(alike, one % b"a" + one % text + one % b"b") == ([b"a"], len(one % b"a"))


def test_what_is_not_whole_waits() -> None:
    alike = _learn(_chunk({"content": "a"}), TextOf.MESSAGE)
    assert alike is not None
    one = alike.before + b"abc" + alike.behind
    assert [_cut(alike, one[:size]) for size in range(len(one))] == [([], 0)] * len(one)
    assert _cut(alike, b"data: {}\n\n" + one) == ([], 0)
    # A text's two halves are no text each, in which a letter is cut.
    halves = one.replace(b"abc", b"\xc3") + one.replace(b"abc", b"\xa4")
    assert _cut(alike, halves) == ([], 0)
