"""Chunks in odd forms: read as what they mean, or passed over in part, never an exception but `NotAChunk`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.answer.chunk import NotAChunk, fragment, read_chunk, read_transcript
from antiphon.types.chat import Delta
from antiphon.types.json import text_of


def _delta(**delta: Any) -> Delta:
    read = read_chunk(json.dumps({"choices": [{"delta": delta}]}).encode())
    assert read.choices is not None and read.choices[0].delta is not None
    return read.choices[0].delta


@pytest.mark.parametrize("data", [b"", b"[DONE]", b'{"choices":', b"[]", b'"text"', b"5", b"null", b"\xff"])
def test_what_is_no_object_is_no_chunk(data: bytes) -> None:
    with pytest.raises(NotAChunk):
        read_chunk(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"choices":[{"delta":{"content":"\xc3\xa9"}}]}', "é"),
        # Bytes that are no text, and half of a pair of surrogates.
        (b'{"choices":[{"delta":{"content":"a\xffb"}}]}', "a\ufffdb"),
        (b'{"choices":[{"delta":{"content":"a\\ud83db"}}]}', "a\ufffdb"),
        (b'{"choices":[{"delta":{"content":"a"},"index":"0"}],"object":5}', "a"),
    ],
)
def test_text_is_text_whatever_bytes_it_came_in(data: bytes, text: str) -> None:
    (choice,) = read_chunk(data).choices or []
    assert choice.delta is not None and text_of(fragment(choice.delta.content)) == text


@pytest.mark.parametrize(
    ("content", "text", "thoughts"),
    [
        (["a", {"type": "text", "text": "b"}], "ab", ""),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}], "b", "hm"),
        ([{"type": "thinking", "thinking": ["h", {"text": "m"}, {"text": None}, 5]}], "", "hm"),
        ([{"type": "image_url", "image_url": "x"}, {"type": "text", "text": 5}, 7, None, {"text": "c"}], "c", ""),
        ([], "", ""),
        ({"a": [1]}, '{"a":[1]}', ""),
        (5, "5", ""),
    ],
)
def test_content_that_is_no_string_is_text_and_thoughts(content: Any, text: str, thoughts: str) -> None:
    delta = _delta(content=content)
    assert (text_of(fragment(delta.content)), text_of(fragment(delta.reasoning_content))) == (text, thoughts)


def test_reasoning_of_its_own_goes_before_thoughts_in_the_content() -> None:
    delta = _delta(content=[{"type": "thinking", "thinking": "hm"}], reasoning_content="so")
    assert text_of(fragment(delta.reasoning_content)) == "so"


def test_empty_reasoning_does_not_hide_thoughts_in_the_content() -> None:
    delta = _delta(content=[{"type": "thinking", "thinking": "hm"}], reasoning_content="")
    assert text_of(fragment(delta.reasoning_content)) == "hm"


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        ({"function": {"name": "f", "arguments": {"x": 1}}}, "f", '{"x":1}'),
        ({"function": {"name": "f", "arguments": None}, "index": "0"}, "f", ""),
        ({"function": {"name": 5, "arguments": "{}"}}, None, "{}"),
        ({"type": "custom", "custom": {"name": "c", "input": 5}}, "c", ""),
        ({"type": "custom", "custom": {"name": "c", "input": "text"}, "index": []}, "c", "text"),
    ],
)
def test_calls_keep_what_of_them_can_be_read(call: dict[str, Any], name: str | None, text: str) -> None:
    (read,) = _delta(tool_calls=[call]).tool_calls or []
    if read.function is not None:
        assert (read.function.name, text_of(fragment(read.function.arguments))) == (name, text)
    else:
        assert read.custom is not None
        assert (read.custom.name, text_of(fragment(read.custom.input))) == (name, text)


@pytest.mark.parametrize(
    ("value", "choices"),
    [
        ({"choices": [5, {"delta": None, "index": "0"}, {"delta": 5, "finish_reason": 5}]}, 2),
        ({"choices": {}}, None),
        ({"choices": "x", "service_tier": 5, "object": None}, None),
        ({"choices": [{"delta": {"tool_calls": [5], "function_call": "f"}, "index": True}]}, 1),
    ],
)
def test_members_of_other_types_are_absent(value: dict[str, Any], choices: int | None) -> None:
    chunk = read_chunk(json.dumps(value).encode())
    assert chunk.service_tier is None and chunk.object is None
    assert (None if chunk.choices is None else len(chunk.choices)) == choices
    for choice in chunk.choices or ():
        assert choice.index is None and choice.finish_reason is None
        assert choice.delta is None or (not choice.delta.tool_calls and choice.delta.function_call is None)


def test_numbers_that_no_json_can_hold_are_null() -> None:
    """Python's own writer of JSON makes them; whatever is kept of a chunk is JSON again."""
    chunk = read_chunk(b'{"choices":[],"usage":{"prompt_tokens":NaN,"x":Infinity}}')
    assert bytes(chunk.usage) == b'{"prompt_tokens":null,"x":null}'


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (b'{"id":"a","transcript":"Hi \\ud83d\\ude00"}', "Hi 😀"),
        (b'{"id":"a","data":"AAAA"}', ""),
        (b'{"transcript":5}', ""),
        (b'"sound"', ""),
        (b"{", ""),
    ],
)
def test_of_sound_the_transcript_is_text(audio: bytes, text: str) -> None:
    assert text_of(read_transcript(audio)) == text
