"""Builds the one log line of a response. It is a warning unless the response succeeded or its client caused the
failure.

Lives here: the level and the common fields, and one short advice about a failure for the operator. Not here: when the
line is written (the servers), runbooks (docs).

Invariant: a failed response gives one line at `warning` with a cause, unless the client is known to be at fault. All
durations are seconds. A failure gets at most one advice, chosen in this order: a missing listener of Envoy, the code,
the upstream's status, the operation. A client's mistake gets none, because the client has the error message. (Requests
refused for lack of capacity share one line: `refusals.py`.)
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

from antiphon.engine.exchange.failure import Failure
from antiphon.types.transport import NO_MODEL_DOOR

_BY_CODE = {
    "upstream_unreachable": "is the upstream up, and its url right? antiphon doctor asks it",
    "upstream_timeout": "the upstream is slow: look at it, or raise timeouts.head, timeouts.idle or timeouts.response",
    "upstream_cut": "the upstream broke off: its own log says why, or a proxy in between has a time limit",
    "upstream_too_large": "raise limits.upstream_body_bytes if answers are meant to be as large",
    "upstream_invalid": "is its url that of a chat server? A proxy's page, or another kind of server, looks like this",
    "upstream_credentials_refused": "the upstream refuses the key that is set for it: look at its api_key",
    "endpoint_picker_unavailable": "is the picker up at envoy.endpoint_picker.address, and .tls as it serves?",
    "endpoint_picker_timeout": "the picker is slow, or holds requests back: its own log says why",
    "no_endpoint_picked": "has the picker's pool a server that is ready?",
    "rate_limit_exceeded": "the upstream's limit is reached: raise it there, or add an upstream to models[].upstream",
    "insufficient_quota": "the account at the upstream has run out",
    "server_is_overloaded": "the upstream is full: add another to models[].upstream, or capacity to it",
    "models_not_listed": "does the upstream's url end in /v1? If it lists no models, name them in upstream.models",
    "upstream_misconfigured": "the upstream lacks this path: does its url end in /v1? antiphon doctor checks it",
    "insufficient_storage": "make room on the disk of the data folder, or of PostgreSQL; writing goes on by itself",
    "storage_locked": "somebody else holds a lock in the database: a backup, or a shell with a transaction?",
    "storage_timed_out": "slow, or locked: see cause (timeouts.save, timeouts.read, state.deadline, blobs.seconds)",
    "storage_unavailable": "see cause: start PostgreSQL, open the way to it, put a data folder's files back; restart",
    "storage_read_only": "give this user the right to write the data folder; PostgreSQL: name the primary in state.url",
    "storage_sealed": "put the key that the state was sealed with into sealing.keys again, behind the first one",
    "content_elsewhere": "set blobs.url to a bucket that all machines share, or send a client to the same machine",
    "storage_failed": "do what the cause says; if the database is damaged, restore a backup (antiphon admin restore)",
    "tool_timeout": "the tool does not answer: look at its server, or raise tools.seconds",
    "shutting_down": "the process is stopping: clients retry; if it cut a running response, raise timeouts.drain",
}
_BY_UPSTREAM_STATUS = {
    401: "the upstream refuses the key: with auth: passthrough the key is the client's, else look at its api_key",
    403: "the upstream's account may not do this: look at its rights",
    404: "the upstream has no such path: does its url end in /v1?",
}
_BY_OPERATION = {
    "restart": "it ended with its process more often than background.attempts allows",
}

_MODEL_DOOR = "does Envoy run, as the same user, with the listener model_door at the path of sidecar.model_door?"


def advice_for(failure: Failure) -> str:
    """The advice, or an empty text."""
    if failure.fault not in ("upstream", "ours"):
        return ""
    if NO_MODEL_DOOR in failure.cause:
        return _MODEL_DOOR
    return (
        _BY_CODE.get(failure.code)
        or _BY_UPSTREAM_STATUS.get(failure.upstream_status)
        or _BY_OPERATION.get(failure.operation)
        or ""
    )


def with_cause(failure: Failure | None, outcome: str | None) -> Failure | None:
    """The failure; a failed response without one gets a generic failure."""
    if failure is None and outcome in ("failed", "error"):
        return Failure("ours", "no cause was noted", operation="unknown")
    return failure


def write_outcome(
    log: Any, event: str, failure: Failure | None, seconds: float, known: dict[str, Any], *, warn: bool = False
) -> None:
    """Write the line without empty fields. `warn`: a part of the request is unknown here."""
    failure = with_cause(failure, known.get("outcome"))
    level = logging.WARNING if warn else logging.INFO
    if failure is not None and failure.counted:
        level = logging.DEBUG
    elif failure is not None and failure.loud:
        level = logging.WARNING
    # Resolves structlog's lazy logger once per line.
    bound = log.bind()
    if not bound.is_enabled_for(level):
        return
    # Keyword arguments would be copied four times on their way.
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
