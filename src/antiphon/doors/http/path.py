"""Normalizes a request target before the router compares it with routes.

The generated Envoy configuration applies the same normalization (`normalize_path`, `merge_slashes`, escaped slashes
rejected). So a path has the same meaning in Envoy and in the sidecar, however a client spells it.

Invariant: a normalized path has no empty, `.` or `..` segment, and no escape of an unreserved character.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from antiphon.errors import InvalidRequest

_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_MAX_FIELDS: Final = 200

Query = tuple[tuple[str, str], ...]
"""The decoded name-value pairs of a query, in order."""


def split_target(target: str) -> tuple[str, Query]:
    """Return the normalized path and the decoded query of a request target. Raises `InvalidRequest` (400)."""
    rest = _ABSOLUTE.sub("", target, count=1) if target[:4].lower() == "http" else target
    rest = rest.partition("#")[0]
    raw_path, _, raw_query = rest.partition("?")
    try:
        query = tuple(parse_qsl(raw_query, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise InvalidRequest("Too many query parameters.", code="invalid_url") from None
    return _normalise(raw_path or "/"), query


def _normalise(path: str) -> str:
    if path == "*":
        return path
    if not path.startswith("/"):
        raise InvalidRequest("The request target is not a path.", code="invalid_url")
    path = _ESCAPE.sub(_unescape, path).replace("\\", "/")
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    # A trailing slash stays in the path, because `/v1/responses/` is not a path of the API.
    slash = "/" if kept and (path.endswith(("/", "/.", "/.."))) else ""
    return "/" + "/".join(kept) + slash


def _unescape(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    if char in "/\\":
        raise InvalidRequest("Escaped slashes are not allowed in a path.", code="invalid_url")
    if char == "\0":
        raise InvalidRequest("The path contains a null character.", code="invalid_url")
    return char if char in _UNRESERVED else match[0].upper()
