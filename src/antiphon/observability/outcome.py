"""Builds the one log line of a response. The line is a warning unless the response succeeded or its client caused the
failure.

This module chooses the level, the common fields, and one short piece of advice about a failure for the operator. The
servers write the line at the end of a response. The module also has the hint about a failed request, which the
console's page of the request and `antiphon show` print. Longer instructions for operators are in the documentation, not
here.

Invariant: a failed response writes one line at `warning` with a cause, unless the client caused the failure. All
durations are in seconds. A failure gets at most one piece of advice. `advice_for` first checks for a missing listener
of Envoy, then the code, the upstream's status and the operation. A client's mistake gets no advice, because the client
has the error message. `hint_for` also explains mistakes of clients. Many requests that Antiphon refuses for lack of
capacity share one line (`repeated_failures.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from antiphon.engine.exchange.failure import Failure, Fault
from antiphon.engine.ports.callers import CLAIMED, Caller
from antiphon.engine.ports.journal import Detail, Entry
from antiphon.types.transport import NO_MODEL_DOOR

_RATE_LIMIT = "the upstream's rate limit is reached: raise the limit there, or add an upstream to models[].upstream"
_BY_CODE = {
    "upstream_unreachable": "check that the upstream runs and that its url is right; 'antiphon doctor' tests it",
    "upstream_timeout": "the upstream is slow: check it, or raise timeouts.head, timeouts.idle or timeouts.response",
    "upstream_cut": (
        "the upstream closed the connection early: read its log, and check the time limits of proxies in front of it"
    ),
    "upstream_error": "the upstream reported an error: read its log at the time of this request",
    "upstream_too_large": "raise limits.upstream_body_bytes if the model's answers should be that large",
    "upstream_invalid": (
        "the answer does not come from a Chat Completions server, but perhaps from a proxy: check the upstream's url"
    ),
    "upstream_credentials_refused": "the upstream refuses the configured key: check the upstream's api_key",
    "endpoint_picker_unavailable": (
        "check that the picker runs at envoy.endpoint_picker.address, and check envoy.endpoint_picker.tls"
    ),
    "endpoint_picker_timeout": "the picker is slow or queues requests: read its log",
    "no_endpoint_picked": "check that the picker's pool has a ready server",
    "rate_limit_exceeded": _RATE_LIMIT,
    "insufficient_quota": "the account at the upstream has no quota left: add credit there, or use another account",
    "server_is_overloaded": (
        "the upstream is overloaded: add capacity to it, or add another upstream to models[].upstream"
    ),
    "models_not_listed": (
        "check that the upstream's url ends in /v1; if the upstream lists no models, name them in upstream.models"
    ),
    "upstream_misconfigured": (
        "the upstream has no such path: check that its url ends in /v1; 'antiphon doctor' tests it"
    ),
    "insufficient_storage": (
        "free space on the disk of the data folder or of PostgreSQL; writing then resumes without a restart"
    ),
    "storage_locked": (
        "another process holds a lock in the database: look for a backup, or a shell with an open transaction"
    ),
    "storage_timed_out": (
        "the store is slow or locked: see the field cause (timeouts.save, timeouts.read, state.deadline, blobs.seconds)"
    ),
    "storage_unavailable": (
        "see the field cause: start PostgreSQL, repair its network, or restore the data folder's files; then restart"
    ),
    "storage_read_only": (
        "give this user write access to the data folder; with PostgreSQL, name the primary in state.url"
    ),
    "storage_sealed": "append the key that sealed the state to sealing.keys",
    "content_elsewhere": "set blobs.url to a bucket that all machines share, or route a client to the same machine",
    "storage_failed": "see the field cause; if the database is damaged, restore a backup (antiphon admin restore)",
    "tool_timeout": "the tool does not answer: check its server, or raise tools.seconds",
    "mcp_server_failed": (
        "check that the MCP server runs, and check its url and headers in mcp.connectors; the model server is not the "
        "cause"
    ),
    "shutting_down": "the process is stopping, and clients retry; if it cut a running response, raise timeouts.drain",
}
_BY_UPSTREAM_STATUS = {
    401: "the upstream refuses the key: with auth passthrough it is the client's key, otherwise check api_key",
    403: "the upstream's account lacks the permission: check its rights",
    404: "the upstream has no such path: check that its url ends in /v1",
    429: _RATE_LIMIT,
}
_BY_OPERATION = {
    "restart": (
        "more processes died while they ran this response than background.attempts allows: find out why they die"
    ),
}

_NO_SUCH = "the object was deleted, has expired, belongs to another owner, or never existed on this server"
_HINTS = {
    "previous_response_not_found": (
        "the response was deleted, has expired (retention), was sent with store: false, or belongs to another owner; "
        "the client must start a new thread"
    ),
    "model_not_found": (
        "this server does not serve the model, or the client's key does not allow it; GET /v1/models lists the models "
        "of a key"
    ),
    "missing_api_key": (
        "the client sent no API key: it must send one as 'Authorization: Bearer KEY'; this server accepts the keys of "
        "owner.keys and owner.api_keys"
    ),
    "invalid_api_key": (
        "the key is not in owner.keys or owner.api_keys, or is revoked or expired; add the key, or correct the client"
    ),
    "context_length_exceeded": (
        "the input with its history is longer than the model's context; the client must send less or start a new "
        "thread, or use truncation: auto or context_management with the setting models[].context_tokens"
    ),
    "unsupported_tool": (
        "this server does not run the tool; enable the tool in the settings, or remove it from the client's request"
    ),
    "request_too_large": (
        "the request exceeds the limit that the message names; the client must send less, or an operator must raise "
        "the limit (limits.request_body_bytes)"
    ),
    "file_not_found": f"no file of this owner has the id: {_NO_SUCH}; the client must upload the file again",
    "conversation_not_found": (
        f"no conversation of this owner has the id: {_NO_SUCH}; the client must create a new conversation"
    ),
    "not_found": f"no object of this owner has the id: {_NO_SUCH}",
    "cancelled_by_operator": "a user of the console cancelled the request",
    "client_gone": "the client closed the connection; check the client's timeouts",
    "connection_ended": (
        "the client closed the connection, or the upstream broke off its answer: check the client's timeouts and the "
        "upstream's log"
    ),
}
_MODEL_REFUSED = (
    "the client must use a model that GET /v1/models lists for its key, or an operator must change what the cause names"
)
_MODEL_UNKNOWN_THERE = (
    "the upstream does not know the model: the client must use another model, or an operator must correct "
    "models[].model or models[].upstream"
)
_LIMIT = (
    "a limit of this server refused the request, not the model server: the message names the limit and says whether a "
    "retry can help; an operator may raise the limit"
)
_REFUSED_BY_UPSTREAM = (
    "the upstream refused the request because of its content: the client must change what the upstream's message names"
)
_REFUSED_UNREAD = (
    "the upstream refused the request because of its content; only the client has the upstream's message, because that "
    "message may quote the request"
)
_UPSTREAM_FAILED = "the upstream failed: read its log at the time of this request"
_OURS = "Antiphon failed: read its log lines with this request id"

_FAULTS = {
    "none": "",
    "client": "the client",
    "upstream": "the upstream",
    "ours": "Antiphon or its store",
    "unknown": "the client or the upstream",
}
_CANCELLED_BY = {
    "client_gone": "the client, which disconnected",
    "cancelled_by_operator": "a user of the console, who cancelled the request",
}

_MODEL_DOOR = "check that Envoy runs as the same user, with the listener model_door at the path of sidecar.model_door"


class Ended(NamedTuple):
    """The facts about a response when it ends."""

    seconds: float
    outcome: str
    failure: Failure | None
    model: str
    response_id: str
    fell_back: bool
    unknown: bool
    left_out: Sequence[str]
    streamed: tuple[float, float | None] | None
    known: Mapping[str, object]
    queued: bool
    """Whether the request queued a background response."""


def advice_for(failure: Failure) -> str:
    """Return the advice about a failure, or an empty text."""
    if failure.fault not in ("upstream", "ours"):
        return ""
    if NO_MODEL_DOOR in failure.cause:
        return _MODEL_DOOR
    return (
        _BY_CODE.get(failure.code)
        or _BY_UPSTREAM_STATUS.get(failure.upstream_status)
        or _BY_OPERATION.get(failure.operation)
        or (_UPSTREAM_FAILED if failure.fault == "upstream" else "")
    )


def hint_for(entry: Entry) -> str:
    """Return what a person who looks at this failed request should know or do, or an empty text. If the failure has
    advice for the operator, the hint is this advice. Unlike `advice_for`, this function also explains failures that the
    client caused."""
    fault, detail = entry.fault, entry.detail
    if not fault or fault == "none":
        return ""
    if detail.advice:
        return detail.advice
    told, answered = _HINTS.get(entry.code, ""), detail.upstream_status
    if entry.code == "model_not_found" and (answered or _says_more(detail)):
        return _MODEL_UNKNOWN_THERE if answered else _MODEL_REFUSED
    if entry.code == "client_gone" and (silent := _silent_upstream(entry)):
        return silent
    if entry.code == "invalid_api_key" and answered:
        told = ""
    if fault == "client" and not told:
        if answered:
            return _REFUSED_BY_UPSTREAM if detail.message else _REFUSED_UNREAD
        return _LIMIT if entry.status == 429 else ""
    if fault in ("upstream", "ours"):
        # An earlier version may have written this entry, without the advice that this version has.
        who: Fault = "upstream" if fault == "upstream" else "ours"
        failure = Failure(who, detail.cause, entry.status, entry.code, detail.operation, "", answered)
        return advice_for(failure) or told or (_OURS if fault == "ours" else "")
    return told


def blamed(entry: Entry) -> str:
    """Return who or what caused the failure of this request, in words. The text is empty for a success."""
    fault, detail = entry.fault, entry.detail
    if fault == "cancelled":
        return _CANCELLED_BY.get(entry.code, "a cancellation")
    if fault == "client" and not detail.upstream_status:
        if entry.code == "model_not_found" and _says_more(detail):
            return "a setting of this server"
        if entry.status == 429:
            return "a limit of this server, which the message names"
    if entry.code == "mcp_server_failed" and ": " in detail.cause:
        return detail.cause.partition(": ")[0]
    return _FAULTS.get(fault, fault)


def _says_more(detail: Detail) -> bool:
    """Whether the entry has a cause that the client's error message does not tell."""
    return bool(detail.cause) and detail.cause != detail.message


def _silent_upstream(entry: Entry) -> str:
    """Return the hint about a client that disconnected before the upstream of the last model call sent anything. The
    text is empty if no model call was in progress, or if the upstream had sent bytes."""
    calls = [span for span in entry.detail.spans if span.kind == "call"]
    last = max(calls, key=lambda span: span.start, default=None)
    if last is None or any(last.facts.get(name) for name in ("head", "first", "status")):
        return ""
    nothing = "had sent nothing" if len(calls) == 1 else "had sent nothing for the last model call"
    return (
        f"the client disconnected after {entry.seconds:.1f} s. Until then the upstream '{last.name}' {nothing}. "
        "Check the upstream first, then the client's timeout"
    )


def with_cause(failure: Failure | None, outcome: str | None) -> Failure | None:
    """Return `failure`. If `failure` is None although the outcome is `failed` or `error`, return a generic failure."""
    if failure is None and outcome in ("failed", "error"):
        return Failure("ours", "no cause was recorded", operation="unknown")
    return failure


def caller_fields(caller: Caller) -> dict[str, str]:
    """Return the log fields with a caller's client key and team. If the owner comes from a token, a further field has
    the owner's full name. A field is empty if the caller has no such value."""
    # The line shows only the first characters of an owner id, and ids that come from tokens often begin alike. If the
    # caller's name is unknown, use the owner id without its prefix.
    name = (caller.name or caller.owner[len(CLAIMED) :]) if caller.owner.startswith(CLAIMED) else ""
    return {"owner_name": name, "key": caller.key_id, "team": caller.team}


def write_outcome(
    log: Any, event: str, failure: Failure | None, seconds: float, known: dict[str, Any], *, warn: bool = False
) -> None:
    """Write the log line of a response or request, without empty fields. `warn` is True when a part of the request is
    unknown to Antiphon; the line is then a warning."""
    failure = with_cause(failure, known.get("outcome"))
    level = logging.WARNING if warn else logging.INFO
    if failure is not None and failure.counted:
        level = logging.DEBUG
    elif failure is not None and failure.loud:
        level = logging.WARNING
    # `bind` resolves structlog's lazy logger once per line.
    bound = log.bind()
    if not bound.is_enabled_for(level):
        return
    # Add the fields to the context directly, because structlog would copy keyword arguments four times.
    bound = bound.bind()
    told = structlog.get_context(bound)
    if failure is not None:
        told.update(failure.fields())
        if advice := advice_for(failure):
            told["advice"] = advice
    for name, value in known.items():
        if value:
            told[name] = value
    told["seconds"] = round(seconds, 6)
    bound.log(level, event)
