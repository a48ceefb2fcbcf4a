"""What a request leaves behind when it is queued, and what a worker makes of that again.

Lives here: which requests can run without their client, the job's payload, the queued response's record. Not here: the
order of things (`exchange.py`), who keeps and runs jobs.

Invariants: no credential of a client is ever part of a job; a response that is run again has the id and the time it was
queued with. (Its input is stored once, when it is queued.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw

from antiphon.engine.actions import Enqueue, RequestHead, ResponseRecord, StoredItem
from antiphon.engine.jobs import JobRequest
from antiphon.errors import InvalidRequest
from antiphon.types.json import encode
from antiphon.types.response import Response
from antiphon.types.tools import Tool
from antiphon.types.transport import Headers

__all__ = ["QueuedResponse", "check_background", "make_enqueue"]

# Parts of the names of headers that carry credentials.
_SECRETS = ("auth", "key", "token", "secret", "cookie", "password", "credential")


@dataclass(frozen=True, slots=True)
class QueuedResponse:
    """What was settled when the response was queued. `first_number` is where its stream goes on."""

    id: str
    created_at: float
    first_number: int


def check_background(
    head: RequestHead, kept: frozenset[str], tools: Sequence[Tool], *, available: bool, passthrough: bool
) -> None:
    """Whether the request can run without its client. `kept` are the headers that its model call takes along.

    Raises `InvalidRequest`.
    """
    message = None
    if not available:
        message = "Background responses are not available on this server; leave 'background' out."
    elif passthrough and head.header("authorization"):
        message = (
            "A background response runs without its client, and this server keeps no client's credentials: it needs "
            "credentials of its own for the upstream ('upstream.auth' 'inject' or 'none' in the settings)."
        )
    else:
        for name, _ in head.headers:
            if name in kept and any(part in name for part in _SECRETS):
                message = (
                    f"A background response runs without its client, and this server keeps no client's credentials: "
                    f"the header '{name}' cannot go along."
                )
        for tool in tools:
            if tool.type == "mcp" and _opens(tool):
                message = (
                    f"A background response runs without its client, and this server keeps no client's credentials: "
                    f"leave 'authorization' and 'headers' of the MCP server '{(tool.server_label or '')[:64]}' out, "
                    f"and use a connector of the gateway's ('connector_id')."
                )
    if message is not None:
        raise InvalidRequest(message, param="background", code="unsupported_parameter")


class _Opening(msgspec.Struct):
    authorization: str | None = None
    headers: Raw | None = None


def _opens(tool: Tool) -> bool:
    """Whether a declaration holds what opens a server; one that cannot be read is refused when it is prepared."""
    try:
        found = msgspec.json.decode(tool.source, type=_Opening)
    except msgspec.DecodeError:
        return True
    return bool(found.authorization) or (found.headers is not None and bytes(found.headers) not in (b"null", b"{}"))


def make_enqueue(
    response: Response,
    head: RequestHead,
    body: bytes,
    items: tuple[StoredItem, ...],
    headers: Headers,
    events: bytes,
    conversation_id: str | None,
) -> Enqueue:
    """The queued response and its job. `headers` are what the model call takes along of the client's."""
    record = ResponseRecord(
        id=response.id,
        owner=head.owner,
        previous_response_id=response.previous_response_id,
        status="queued",
        model=response.model,
        created_at=response.created_at,
        completed_at=None,
        body=encode(msgspec.structs.replace(response, output=UNSET, status="queued")),
        input_items=items,
        output_items=(),
        conversation_id=conversation_id,
    )
    request = JobRequest(Raw(body.strip()), list(headers), response.created_at, head.request_id)
    return Enqueue(record, encode(request), events)
