"""What an upstream's error means to a client.

Lives here: error bodies in all their shapes, the status a client gets, and the code of a failed response. Not here:
retries (Envoy's work).

Invariant: the outcome is always an OpenAI error object; no credential-like text of the upstream's is passed on whole
(messages are cut at 2,000 characters).
"""

from __future__ import annotations

import re
from typing import Any

from antiphon.errors import ApiError, UpstreamFailed, UpstreamTimedOut
from antiphon.types.json import decode_any
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault

__all__ = ["error_in_stream", "map_transport_error", "map_upstream_answer"]

_MOST = 2_000
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_SECRET = re.compile(r"\b(sk-|Bearer )[A-Za-z0-9_\-*.]{8,}", re.IGNORECASE)
_PASSED_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")

_CONTEXT = re.compile(
    r"context (length|size|window)|maximum context|too many (prompt )?tokens|prompt is too long|messages is too long",
    re.IGNORECASE,
)
_KNOWN_TYPES = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "insufficient_quota",
        "tokens",
        "requests",
        "server_error",
    }
)

# Behind Envoy a call that fails in transport comes back as Envoy's own answer, in these words.
_ENVOY_REPLIES = (
    (b"upstream connect error or disconnect/reset before headers", UpstreamFault.UNREACHABLE),
    (b"no healthy upstream", UpstreamFault.UNREACHABLE),
    (b"upstream request timeout", UpstreamFault.TIMED_OUT),
    (b"stream timeout", UpstreamFault.TIMED_OUT),
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def map_upstream_answer(status: int, headers: Headers, body: bytes) -> ApiError:
    """The error for an upstream's non-2xx answer: its status where that says something to the client, else 502."""
    for start, fault in _ENVOY_REPLIES:
        if body.startswith(start):
            return map_transport_error(UpstreamError(fault, "Envoy's local reply"))
    fields = _fields(body)
    passed = tuple((name, value) for name, value in headers if name in _PASSED_HEADERS)
    message = fields.get("message") or f"The upstream answered {status} without an explanation."
    code = fields.get("code")
    param = fields.get("param")
    if status == 404 and (code == "model_not_found" or "model" in message.lower()):
        return ApiError(
            message, status=404, type="invalid_request_error", code="model_not_found", param="model", headers=passed
        )
    if 400 <= status < 500:
        if _CONTEXT.search(message) and status in (400, 413, 422):
            code, param = "context_length_exceeded", "input"
        kind = fields.get("type", "")
        if kind not in _KNOWN_TYPES:
            kind = _TYPES.get(status, "invalid_request_error")
        return ApiError(message, status=status, type=kind, code=code, param=param, headers=passed)
    shown = status if status in (500, 502, 503, 504) else 502
    return ApiError(message, status=shown, type="server_error", code=code or "upstream_error", headers=passed)


def map_transport_error(error: UpstreamError) -> ApiError:
    """The error for a call that failed in transport."""
    if error.fault is UpstreamFault.TIMED_OUT:
        return UpstreamTimedOut("The upstream took too long to answer.", code="upstream_timeout")
    if error.fault is UpstreamFault.UNREACHABLE:
        return UpstreamFailed("The upstream cannot be reached.", code="upstream_unreachable")
    if error.fault is UpstreamFault.TOO_LARGE:
        return UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large")
    return UpstreamFailed("The upstream broke off its answer.", code="upstream_cut")


def error_in_stream(data: bytes) -> tuple[str, str]:
    """(code, message) for an error that came inside a 2xx answer."""
    fields = _fields(data)
    code = fields.get("code")
    kind = fields.get("type") or ""
    number = fields.get("number")
    if number == "429" or "rate_limit" in kind or code == "rate_limit_exceeded":
        code = "rate_limit_exceeded"
    return code or "server_error", fields.get("message") or "The upstream reported an error."


def _fields(body: bytes) -> dict[str, str]:
    """message, type, code, param and the numeric code, from any of the shapes seen."""
    try:
        value = decode_any(body)
    except ValueError:
        return {}
    found: dict[str, str] = {}
    outer: dict[str, Any] = value if isinstance(value, dict) else {}
    inner = outer.get("error", outer)
    if isinstance(inner, str):
        found["message"] = inner
        inner = outer
    elif not isinstance(inner, dict):
        inner = outer
    for source in (inner, outer):
        for name in ("message", "type", "code", "param"):
            text = source.get(name)
            if name == "code" and isinstance(text, int) and not isinstance(text, bool):
                found.setdefault("number", str(text))
            elif isinstance(text, str) and text:
                found.setdefault(name, text)
            elif name == "message" and isinstance(text, (dict, list)):
                found.setdefault(name, str(text))
    detail = outer.get("detail")
    if "message" not in found and detail is not None:
        found["message"] = detail if isinstance(detail, str) else str(detail)
    if "message" in found:
        found["message"] = _SECRET.sub("[redacted]", found["message"])[:_MOST]
    code = found.get("code")
    if code is not None and not _CODE.fullmatch(code):
        if code.isdigit():
            found.setdefault("number", code)
        del found["code"]
    return found
