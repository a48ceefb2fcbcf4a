"""Sends a file's content as an HTTP answer: headers, byte ranges, and the body in chunks.

This module applies `Range` and the other rules of RFC 9110 to content that does not change. The module also sets the
headers that keep a browser from running an uploaded file. `files.py` finds the file and checks its owner.

The sidecar sends every file as an attachment, and the headers forbid the browser to guess its type. Only a few harmless
media types appear in the header `content-type`. Every other file (HTML, SVG, scripts, …) gets the type
`application/octet-stream`.

Invariant: an open file is closed exactly once, even if the answer is cut or the server reads no chunk.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from antiphon.api.endpoint import Route
from antiphon.api.http import ApiRequest, ApiResponse, Bytes, Parameter
from antiphon.engine.ports.files import OpenFile, StoredFile
from antiphon.errors import ApiError, StoreError
from antiphon.types.file_kinds import BYTES
from antiphon.types.transport import Headers

# The size of a chunk in bytes. A client that does not read its download occupies this much memory.
_PART = 64 * 1024
_HARMLESS = frozenset(
    {
        *("text/plain", "text/markdown", "text/csv", "application/json", "application/jsonl", "application/pdf"),
        *("image/png", "image/jpeg", "image/gif", "image/webp"),
    }
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)
_UNQUOTED = re.compile(r"[^A-Za-z0-9 !#$&+.^_`{}~()\[\],;=@-]")


def content_of(pattern: str) -> Route:
    """Return the route of a handler that sends the content of a file. The route accepts the header `Range`."""
    return Route(
        "GET",
        pattern,
        "Get the content of a file",
        Bytes,
        parameters=(Parameter("range", str, "The range of bytes to send, for example `bytes=0-99`.", "header"),),
        media="*/*",
        statuses=(206, 304),
        errors=(416,),
    )


class FileParts(AsyncIterator[bytes]):
    """Yields the bytes from the offset `start` up to `end` (exclusive) in chunks of at most 64 KiB.

    Each chunk is read when the caller requests it. The end of the iteration, or `aclose`, closes the file. Raises
    `StoreError` when the stored content is shorter than its recorded size.
    """

    def __init__(self, opened: OpenFile, start: int, end: int) -> None:
        self._opened = opened
        self._at = start
        self._end = end

    async def __anext__(self) -> bytes:
        limit = min(_PART, self._end - self._at)
        if limit <= 0:
            await self.aclose()
            raise StopAsyncIteration
        part = await self._opened.read(self._at, limit)
        if not part:
            raise StoreError("A stored file is truncated: it is shorter than its recorded size.")
        self._at += len(part)
        return part

    async def aclose(self) -> None:
        """Close the file."""
        await self._opened.aclose()


async def show_content(request: ApiRequest, opened: OpenFile) -> ApiResponse:
    """Return the answer with the whole file (200), or with the requested range (206), as RFC 9110 defines both.

    The answer is a 304 if `If-None-Match` has the file's ETag. A request for several ranges gets the whole file. The
    answer closes the file when its body ends. If the answer has no body, this function closes the file.

    Raises an `ApiError` (416, `invalid_range`) for a range outside the file.
    """
    file = opened.file
    handed_over = False
    try:
        headers = _headers(file)
        if _is_known(request, file):
            return ApiResponse(304, headers, b"")
        span = _span(request, file)
        if span is None:
            start, end, status = 0, file.size, 200
        else:
            (start, end), status = span, 206
            headers = (*headers, ("content-range", f"bytes {start}-{end - 1}/{file.size}"))
        headers = (("content-type", _shown_type(file)), ("content-length", str(end - start)), *headers)
        if request.method == "HEAD" or start == end:
            return ApiResponse(status, headers, b"")
        handed_over = True
        return ApiResponse(status, headers, b"", FileParts(opened, start, end))
    finally:
        if not handed_over:
            await opened.aclose()


def _headers(file: StoredFile) -> Headers:
    return (
        ("content-disposition", _attachment(file.name)),
        ("etag", _tag(file)),
        ("accept-ranges", "bytes"),
        ("cache-control", "private, no-cache"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    )


def _shown_type(file: StoredFile) -> str:
    return file.media_type if file.media_type in _HARMLESS else BYTES


def _attachment(name: str) -> str:
    """The header value `content-disposition` with the file name twice: in ASCII for every client, and complete as in
    RFC 6266."""
    plain = _UNQUOTED.sub("_", name)
    found = f'attachment; filename="{plain}"'
    return found if plain == name else f"{found}; filename*=UTF-8''{quote(name, safe='')}"


def _tag(file: StoredFile) -> str:
    return f'"{file.sha256}"'


def _is_known(request: ApiRequest, file: StoredFile) -> bool:
    given = request.header("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or _tag(file) in [tag.strip().removeprefix("W/") for tag in given.split(",")]


def _span(request: ApiRequest, file: StoredFile) -> tuple[int, int] | None:
    """Return the start and the exclusive end of the requested range. Returns None if the request has no range, several
    ranges or an invalid range. The client then gets the whole file."""
    given = request.header("range")
    match = _RANGE.fullmatch(given.strip()) if given is not None else None
    if match is None or match[0].endswith("=-"):
        return None
    condition = request.header("if-range")
    if condition is not None and condition.strip() != _tag(file):
        return None
    if not match[1]:
        start, end = max(0, file.size - int(match[2])), file.size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else file.size, file.size)
        if match[2] and int(match[2]) < int(match[1]):
            return None
    if start >= end:
        raise ApiError(
            f"The requested range is outside the file, which has {file.size} bytes.",
            status=416,
            type="invalid_request_error",
            code="invalid_range",
            headers=(("content-range", f"bytes */{file.size}"),),
        )
    return start, end
