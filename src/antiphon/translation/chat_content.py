"""Content parts of Responses items become chat content.

Lives here: strings and parts of messages and of tool outputs. Not here: which message they go into
(`chat_messages.py`).

Invariant: text is spliced, never decoded; a part that cannot be expressed is a 400 that names it.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.types.items import InputPart
from antiphon.types.json import ABSENT, encode, first, given, quoted

__all__ = ["joined_text", "message_content", "output_content"]

_PARTS = msgspec.json.Decoder(list[InputPart])
_EMPTY = Raw(b'""')
_TEXT = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def message_content(where: str, role: str, content: Raw) -> Raw:
    """The chat content of a message: a JSON string, or for users with more than text an array of parts."""
    if not given(content):
        raise InvalidRequest(
            f"Missing required parameter: '{where}.content'.",
            param=f"{where}.content",
            code="missing_required_parameter",
        )
    if first(content) == b'"':
        return content
    parts = _parts(f"{where}.content", content)
    if role == "assistant":
        return quoted(b"".join(_text(f"{where}.content[{n}]", part) for n, part in enumerate(parts)))
    if all(part.type in _TEXT for part in parts):
        if len(parts) == 1 or role != "user":
            return quoted(rb"\n".join(_text(f"{where}.content[{n}]", part) for n, part in enumerate(parts)))
    elif role != "user":
        raise InvalidRequest(
            f"Invalid '{where}.content': {role} messages take text only.",
            param=f"{where}.content",
            code="invalid_value",
        )
    if not parts:
        return _EMPTY
    return Raw(b"[%b]" % b",".join(bytes(_part(f"{where}.content[{n}]", part)) for n, part in enumerate(parts)))


def output_content(where: str, output: Raw) -> tuple[bytes, list[Raw]]:
    """A tool output as a text fragment, and the images in it as chat parts."""
    if not given(output):
        raise InvalidRequest(
            f"Missing required parameter: '{where}.output'.",
            param=f"{where}.output",
            code="missing_required_parameter",
        )
    data = bytes(output)
    if data[:1] == b'"':
        return data[1:-1], []
    if data[:1] == b"{":
        # An object instead of a string of JSON: the model gets the JSON.
        return encode(data.decode())[1:-1], []
    if data[:1] != b"[":
        raise InvalidRequest(
            f"Invalid type for '{where}.output': expected a string or a list of content parts.",
            param=f"{where}.output",
            code="invalid_type",
        )
    text, images = [], []
    for number, part in enumerate(_parts(f"{where}.output", output)):
        name = f"{where}.output[{number}]"
        if part.type in _TEXT:
            text.append(_text(name, part))
        else:
            images.append(_part(name, part))
    return rb"\n".join(text), images


def joined_text(where: str, content: Raw) -> bytes:
    """All text of a reasoning item's content or summary, as a fragment."""
    if first(content) != b"[":
        return b""
    parts = _parts(where, content)
    return rb"\n\n".join(_text(where, part) for part in parts if given(part.text))


def _parts(where: str, content: Raw) -> list[InputPart]:
    try:
        return _PARTS.decode(content)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        param = where + path.removesuffix("`").replace("[...]", "")
        raise InvalidRequest(
            f"Invalid type for '{param}': {problem[:1].lower()}{problem[1:].replace('`', '')}.",
            param=param,
            code="invalid_type",
        ) from None


def _text(where: str, part: InputPart) -> bytes:
    value = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT else ABSENT
    if first(value) != b'"':
        raise InvalidRequest(
            f"Invalid '{where}': a part of type {str(part.type)[:64]!r} cannot stand here, or its text is missing.",
            param=where,
            code="invalid_value",
        )
    return bytes(value)[1:-1]


def _part(where: str, part: InputPart) -> Raw:
    """One content part of a user message, as a chat part."""
    if part.type in _TEXT:
        return Raw(b'{"type":"text","text":"%b"}' % _text(where, part))
    if part.type == "input_image" and first(part.image_url) == b'"':
        detail = part.detail if part.detail in ("low", "high") else "auto"
        return Raw(
            b'{"type":"image_url","image_url":{"url":%b,"detail":"%b"}}' % (bytes(part.image_url), detail.encode())
        )
    if part.type == "input_file" and first(part.file_data) == b'"':
        name = encode(part.filename or "file")
        return Raw(b'{"type":"file","file":{"filename":%b,"file_data":%b}}' % (name, bytes(part.file_data)))
    if part.type in ("input_image", "input_file"):
        have = "image_url" if part.type == "input_image" else "file_data"
        raise InvalidRequest(
            f"Invalid '{where}': only '{have}' is supported here; files by id or URL are not available yet.",
            param=where,
            code="unsupported_parameter",
        )
    raise InvalidRequest(
        f"Invalid value for '{where}.type': {str(part.type)[:64]!r} is not supported in a message.",
        param=f"{where}.type",
        code="invalid_value",
    )
