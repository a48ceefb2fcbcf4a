"""Defines the endings of an upstream's answer, and reads the servers' finish reasons.

Lives here: the endings and the many spellings of `finish_reason`. Not here: choosing the ending of an answer
(`stream.py`), the response that the client gets (`engine/exchange/client_answer.py`).

Invariant: `plain_finish` returns lower case, and maps every known name of a cut to Chat Completions' name.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from antiphon.errors import ApiError
from antiphon.translation.answer.upstream_errors import as_event_failure
from antiphon.translation.values import Ending
from antiphon.types.json import decode_object

# Other names for a cut answer, from `finish_details` (old vision models), Mistral, and gateways before Gemini or
# Claude.
_FINISHES: Final = {
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "safety": "content_filter",
    "recitation": "content_filter",
}


def failed(message: str, code: str = "server_error") -> Ending:
    """The ending of a failed answer, with the code and message that the client gets."""
    return Ending("failed", code=code, message=message)


def reported(error: ApiError) -> Ending:
    """The ending for an error that the upstream put into its answer."""
    code, message = as_event_failure(error)
    return Ending("failed", code=code, message=message, error=error)


def ending_by(finish: str) -> Ending:
    """The ending that a finish reason of Chat Completions means."""
    if finish == "length":
        return Ending("incomplete", reason="max_output_tokens")
    if finish == "content_filter":
        return Ending("incomplete", reason="content_filter")
    if finish == "error":
        return failed("The upstream reported an error.")
    return Ending("completed")


def plain_finish(reason: str) -> str:
    """The name that Chat Completions has for this finish reason. Some servers send the reason in upper case."""
    reason = reason.lower()
    return _FINISHES.get(reason, reason)


def finish_of(details: Raw) -> str:
    """The finish reason in `finish_details`, which old vision models send. Empty if `finish_details` names no
    reason."""
    kind = decode_object(bytes(details)).get("type")
    return kind if isinstance(kind, str) else ""
