"""A chunk or completion, read tolerantly.

Lives here: the fast typed decoder, and the slow path for what it refuses: wrong types, content as an array of
parts or as an object, invalid UTF-8, lone surrogates. Not here: what a chunk leads to (`chat_stream.py`).

Invariant: after `read_chunk` every text field is None or a raw, valid JSON string; nothing raises but `NotAChunk`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from antiphon.types.chat import Choice, Chunk, CustomDelta, Delta, FunctionDelta, ToolCallDelta
from antiphon.types.json import ABSENT, decode_any, encode, fragment_of, quoted

_decode: Final = msgspec.json.Decoder(Chunk).decode

_TEXT_OR_NULL: Final = tuple(b'"n')


class NotAChunk(ValueError):
    """The data is no JSON object."""


def read_chunk(data: bytes) -> Chunk:
    """Decode a chunk. Raises `NotAChunk` when the data is no JSON object."""
    try:
        return decode_chunk(data)
    except NotAChunk:
        pass
    try:
        value = decode_any(data)
        if isinstance(value, dict):
            return _chunk(value)
    except (ValueError, RecursionError):
        raise NotAChunk("not JSON, or nested too deeply") from None
    raise NotAChunk("not a JSON object")


def decode_chunk(data: bytes) -> Chunk:
    """Decode a chunk in which everything has the type it should have. Raises `NotAChunk` for any other."""
    if data.isascii() or is_utf8(data):
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            for choice in chunk.choices or ():
                if not _plain(choice.delta) or (choice.message is not None and not _plain(choice.message)):
                    break
            else:
                return chunk
    raise NotAChunk("not a chunk as it should be")


def fragment(value: Raw) -> bytes:
    """The fragment of a text field; empty when absent, null or the empty string."""
    if value is ABSENT:
        return b""
    data = bytes(value)
    return data[1:-1] if data[:1] == b'"' else b""


def read_transcript(data: bytes) -> bytes:
    """What an answer in sound says, as a fragment: Responses has no part for the sound itself."""
    try:
        audio = decode_any(data)
    except ValueError:
        return b""
    transcript = audio.get("transcript") if isinstance(audio, dict) else None
    return fragment_of(transcript) if isinstance(transcript, str) else b""


def is_utf8(data: bytes) -> bool:
    """Whether these bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(delta: Delta | None) -> bool:
    """Whether every text field is a string or null, as the fast path needs it."""
    if delta is None:
        return True
    # Most are absent in most chunks, and an absent one is always the same object.
    for value in (delta.content, delta.refusal, delta.reasoning_content, delta.reasoning):
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
    for call in delta.tool_calls or ():
        value = call.function.arguments if call.function is not None else ABSENT
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
        value = call.custom.input if call.custom is not None else ABSENT
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
    return True


def _chunk(value: dict[str, Any]) -> Chunk:
    choices = value.get("choices")
    return Chunk(
        choices=[_choice(choice) for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else None,
        usage=_raw(value.get("usage")),
        x_groq=_raw(value.get("x_groq")),
        error=_raw(value.get("error")),
        citations=_raw(value.get("citations")),
        search_results=_raw(value.get("search_results")),
        service_tier=_str(value.get("service_tier")),
        object=_str(value.get("object")),
    )


def _choice(value: dict[str, Any]) -> Choice:
    delta, message = value.get("delta"), value.get("message")
    return Choice(
        index=_int(value.get("index")),
        delta=_delta(delta) if isinstance(delta, dict) else None,
        message=_delta(message) if isinstance(message, dict) else None,
        finish_reason=_str(value.get("finish_reason")),
        finish_details=_raw(value.get("finish_details")),
        text=_text(value.get("text")),
        logprobs=_raw(value.get("logprobs")),
        error=_raw(value.get("error")),
    )


def _delta(value: dict[str, Any]) -> Delta:
    content, thinking = _content(value.get("content"))
    reasoning = _text(value.get("reasoning_content"))
    if not fragment(reasoning):
        reasoning = thinking
    calls = value.get("tool_calls")
    legacy = value.get("function_call")
    return Delta(
        content=content,
        refusal=_text(value.get("refusal")),
        reasoning_content=reasoning,
        reasoning=_text(value.get("reasoning")),
        reasoning_details=_raw(value.get("reasoning_details")),
        tool_calls=[_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None,
        function_call=_function(legacy) if isinstance(legacy, dict) else None,
        annotations=_raw(value.get("annotations")),
        audio=_raw(value.get("audio")),
    )


def _content(value: Any) -> tuple[Raw, Raw]:
    """Content as text and thinking: a string, an array of parts (seen: mistral), or parsed JSON (seen: cloudflare)."""
    if value is None or isinstance(value, str):
        return _text(value), ABSENT
    if not isinstance(value, list):
        return quoted(fragment_of(encode(value).decode())), ABSENT
    text, thinking = [], []
    for part in value:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            pieces = inner if isinstance(inner, list) else [inner]
            for piece in pieces:
                words = piece.get("text") if isinstance(piece, dict) else piece
                if isinstance(words, str):
                    thinking.append(words)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text.append(part["text"])
    return _text("".join(text)), _text("".join(thinking))


def _call(value: dict[str, Any]) -> ToolCallDelta:
    function, custom = value.get("function"), value.get("custom")
    return ToolCallDelta(
        index=_int(value.get("index")),
        id=_str(value.get("id")),
        function=_function(function) if isinstance(function, dict) else None,
        custom=CustomDelta(name=_str(custom.get("name")), input=_text(custom.get("input")))
        if isinstance(custom, dict)
        else None,
        extra_content=_raw(value.get("extra_content")),
    )


def _function(value: dict[str, Any]) -> FunctionDelta:
    arguments = value.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        # Arguments as an object instead of JSON in a string.
        arguments = encode(arguments).decode()
    return FunctionDelta(name=_str(value.get("name")), arguments=_text(arguments))


def _text(value: Any) -> Raw:
    return quoted(fragment_of(value)) if isinstance(value, str) else ABSENT


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _raw(value: Any) -> Raw:
    """What was decoded leniently has no surrogates and no types but JSON's, so that it can be encoded."""
    return ABSENT if value is None else Raw(encode(value))
