"""Converts a background request into a stored job, and a job back into a request for a worker.

Lives here: which requests can run without their client, and the credentials that are kept with their jobs. Not here:
the job (`queued_request.py`), who keeps and runs jobs.

Invariants: no credential of a client is part of a job, but for what `background.client_credentials: seal` keeps: sealed
for its owner, in the job's row alone, so that it goes when the response is over, cancelled or deleted. A response that
is run again has the id and the time it was queued with. (Its input is stored once, when it is queued.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from antiphon.engine.ports.actions import RequestHead
from antiphon.errors import InvalidRequest, Unavailable, unsupported_parameter
from antiphon.sealing import Sealer
from antiphon.types.json import encode, given, try_decode
from antiphon.types.tools import ToolDeclaration
from antiphon.types.transport import Headers
from antiphon.types.views import QueuedCredentials

_JOB: Final = "job"
_CREDENTIALS: Final = msgspec.json.Decoder(QueuedCredentials)

# Parts of the names of headers that carry credentials.
_SECRETS: Final = ("auth", "key", "token", "secret", "cookie", "password", "credential")


@dataclass(frozen=True, slots=True)
class QueuedResponse:
    """What was settled when the response was queued. `first_number` is where its stream goes on."""

    id: str
    created_at: float
    first_number: int


def check_background(head: RequestHead, kept: frozenset[str], tools: Sequence[ToolDeclaration], *, seals: bool) -> None:
    """Whether the request can run without its client. `kept` are the headers that its model call takes along; `seals`:
    credentials among them can be kept.

    Raises `InvalidRequest`.
    """
    problem = ""
    for name, _ in head.headers:
        if name in kept and is_secret(name) and not seals:
            problem = f"the header '{name}' cannot go along ('background.client_credentials')."
    for tool in tools:
        if tool.type == "mcp" and _opens(tool):
            problem = (
                f"leave 'authorization' and 'headers' of the MCP server '{(tool.server_label or '')[:64]}' out, "
                f"and use a connector of the gateway's ('connector_id')."
            )
    if problem:
        raise unsupported_parameter(
            f"A background response runs without its client, and this server keeps no client's credentials: {problem}",
            "background",
        )


def credentials_of(head: RequestHead, kept: frozenset[str], *, passthrough: bool, keyless: bool) -> Headers:
    """The headers that the model call needs and nobody may keep but sealed."""
    return tuple(
        (name, value)
        for name, value in head.headers
        if (name == "authorization" and passthrough and not keyless) or (name in kept and is_secret(name))
    )


def check_keyless(keyless: bool | None, *, seals: bool) -> None:
    """Whether a request with its client's own key can be queued: the upstream wants none, or the key is sealed.

    Raises `ApiError`.
    """
    if keyless or seals:
        return
    if keyless is None:
        raise Unavailable(
            "The upstream could not be asked whether it works without your key, which this server does not keep for a "
            "background response. Try again shortly.",
            code="upstream_not_reached",
            headers=(("retry-after", "5"),),
        )
    raise unsupported_parameter(
        "A background response runs without its client, its upstream wants a key, and this server keeps no client's "
        "credentials. Its operator can set 'background.client_credentials: seal', which keeps them encrypted until the "
        "response is over, or give the upstream a key of its own ('upstream.auth: inject').",
        "background",
    )


def seal_headers(sealer: Sealer, owner: str, headers: Headers) -> str:
    """The headers as a text that only this server opens, for this owner's jobs."""
    return sealer.seal(owner, _JOB, encode(list(headers)))


def open_headers(sealer: Sealer, owner: str, sealed: str) -> Headers:
    """What was sealed with a job. Raises `InvalidRequest`."""
    if not sealed:
        return ()
    try:
        return tuple(msgspec.json.decode(sealer.open(owner, _JOB, sealed), type=list[tuple[str, str]]))
    except (InvalidRequest, msgspec.DecodeError):
        raise InvalidRequest(
            "The credentials that were kept for this response cannot be opened any more: the server's sealing key has "
            "changed. Send the request again.",
            code="credentials_lost",
        ) from None


def is_secret(name: str) -> bool:
    """Whether a header carries a credential."""
    return any(part in name for part in _SECRETS)


def _opens(tool: ToolDeclaration) -> bool:
    """Whether a declaration holds what opens a server; one that cannot be read is refused when it is prepared."""
    found = try_decode(_CREDENTIALS, tool.source)
    if found is None:
        return True
    return bool(found.authorization) or (given(found.headers) and bytes(found.headers) != b"{}")
