"""Parses `multipart/form-data` incrementally, in chunks of any size.

This module splits a body into parts (RFC 2046, RFC 7578), and reads the headers of a part. The endpoints (`files.py`)
decide which fields they accept.

The decoder emits content as soon as the content cannot be the beginning of a boundary. Therefore the decoder's buffer
contains at most one chunk and one boundary, even if a part of the form is large.

Antiphon uses no library for this task. python-multipart (0.0.34) accepts a form that ends in the middle. The library
multipart (2.0.1) does not support `filename*` (RFC 8187), names in Latin-1 and a preamble. The result of that library
for a malformed body depends on how the body was split into chunks.

Invariant: the result depends only on the bytes, not on the sizes of the chunks. The result is the list of parts or an
`InvalidRequest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from antiphon.errors import InvalidRequest

_MAX_HEAD = 8 * 1024
_MAX_PREAMBLE = 16 * 1024
_MAX_PARTS = 64
_MAX_BOUNDARY = 200

_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)")
_ENCODINGS = ("binary", "8bit", "7bit")


@dataclass(frozen=True, slots=True)
class FormPart:
    """The event for the beginning of a part, with the part's headers.

    `filename` is None for a plain field. `media_type` is empty if the part has no content type.
    """

    name: str
    filename: str | None
    media_type: str


@dataclass(frozen=True, slots=True)
class PartData:
    """A chunk of the current part's content, never empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The event for the end of the current part."""


FormEvent = FormPart | PartData | PartEnd


class _FormState(Enum):
    PREAMBLE = auto()
    HEAD = auto()
    BODY = auto()
    EPILOGUE = auto()


def boundary(content_type: str | None) -> bytes:
    """Return the boundary of a form, from the value of its header `content-type`.

    Raises `InvalidRequest`. The status is 415 (`unsupported_content_type`) if the content type is not
    `multipart/form-data`.
    """
    kind, _, _ = (content_type or "").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise InvalidRequest(
            "The request body must be multipart/form-data.", code="unsupported_content_type", status=415
        )
    found = _parameters(content_type or "").get("boundary", "")
    if not 0 < len(found) <= _MAX_BOUNDARY or not found.isascii() or "\r" in found or "\n" in found:
        raise _broken("the content-type header of the request has no valid boundary")
    return found.encode()


class FormDecoder:
    """Splits one body into parts. The caller passes each chunk to `feed`, and then calls `finish`.

    For example, the events of a form with one field are `FormPart("purpose", None, "")`, `PartData(b"batch")` and
    `PartEnd()`.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # A delimiter begins with a line break, but the first boundary may be at the very start of the body.
        self._buffer = bytearray(b"\r\n")
        self._state = _FormState.PREAMBLE
        self._parts = 0

    def feed(self, data: bytes) -> list[FormEvent]:
        """Parse the next chunk. Returns the events that the chunk completes. Raises `InvalidRequest`."""
        self._buffer += data
        events: list[FormEvent] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> None:
        """End the body. Raises `InvalidRequest` if the form is incomplete."""
        if self._state is not _FormState.EPILOGUE:
            raise _broken("the form ends before its last boundary")

    def _step(self, events: list[FormEvent]) -> bool:
        """Parse the next element of the form. Returns False if the buffer holds too few bytes for this element."""
        if self._state is _FormState.HEAD:
            return self._read_head(events)
        if self._state is _FormState.EPILOGUE:
            self._buffer.clear()
            return False
        place = self._buffer.find(self._delimiter)
        in_body = self._state is _FormState.BODY
        found = place >= 0
        if not found:
            # The last bytes may be the beginning of a boundary, so they stay in the buffer.
            place = len(self._buffer) - len(self._delimiter) + 1
        if not in_body and place > _MAX_PREAMBLE:
            raise _broken("the form does not begin with its boundary")
        if not found:
            if in_body and place > 0:
                events.append(PartData(bytes(self._buffer[:place])))
                del self._buffer[:place]
            return False
        if in_body:
            if place:
                events.append(PartData(bytes(self._buffer[:place])))
            events.append(PartEnd())
        del self._buffer[: place + len(self._delimiter)]
        self._state = _FormState.HEAD
        return True

    def _read_head(self, events: list[FormEvent]) -> bool:
        """Parse the bytes after a boundary: the two dashes after the last boundary, or the headers of the next part.
        Returns False if the buffer holds too few bytes."""
        if self._buffer[:2] == b"--":
            self._state = _FormState.EPILOGUE
            return True
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise _broken("the headers of a part are too long")
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        if end > _MAX_HEAD or lines[0].strip(b" \t"):
            raise _broken("the line after a boundary is not valid")
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _broken(f"the form has more than {_MAX_PARTS} parts")
        events.append(_read_part(lines[1:]))
        del self._buffer[: end + 4]
        self._state = _FormState.BODY
        return True


def _read_part(lines: list[bytes]) -> FormPart:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _broken("a part has a header without a colon")
        headers[match[1].decode().lower()] = _decode(match[2].rstrip())
    disposition = headers.get("content-disposition", "")
    given = _parameters(disposition)
    if disposition.partition(";")[0].strip().lower() != "form-data" or "name" not in given:
        raise _broken("a part has no field name")
    if headers.get("content-transfer-encoding", "binary").lower() not in _ENCODINGS:
        raise _broken("a part has a content-transfer-encoding; send the part without this header")
    filename = given.get("filename")
    if "filename*" in given:
        filename = _extended(given["filename*"]) or filename
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return FormPart(given["name"], filename, media_type)


def _parameters(value: str) -> dict[str, str]:
    """Return the parameters of a header value. Their names are in lower case. If a name occurs twice, the first value
    counts."""
    found: dict[str, str] = {}
    for name, text in _PARAMETER.findall(value):
        if text.startswith('"'):
            # Clients escape only quotes in file names. A backslash in a Windows path is not escaped.
            text = text[1:-1].replace('\\"', '"')
        found.setdefault(name.lower(), text.strip())
    return found


def _extended(value: str) -> str | None:
    """Decode a value that begins with its character set (RFC 8187), like `UTF-8''na%C3%AFve.txt`. Returns None if the
    value is invalid."""
    charset, _, rest = value.partition("'")
    text = unquote_to_bytes(rest.partition("'")[2])
    if not text or charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    return _decode(text)


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _broken(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not a valid form: {problem}.", code="invalid_body")
