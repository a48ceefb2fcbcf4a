"""Converts a background request into a stored job, and a job back into a request for a worker.

Lives here: which requests can run without their client, and the credentials that are stored with their jobs. Not here:
the job (`queued_request.py`), the store of jobs, the workers.

Invariants: A job contains no credential of a client, unless the setting is `background.client_credentials: seal`. Then
the job's row, and nothing else, has the credentials, sealed for the owner. They are deleted when the response is over,
cancelled or deleted. A response that runs again has its original id and creation time. Its input is stored once, when
it is queued.
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
    """The values that were fixed when the response was queued. Its stream continues at `first_number`."""

    id: str
    created_at: float
    first_number: int


def check_background(head: RequestHead, kept: frozenset[str], tools: Sequence[ToolDeclaration], *, seals: bool) -> None:
    """Check that the request can run without its client. Raises `InvalidRequest` when it cannot.

    `kept` are the names of headers that its model call carries. `seals`: credentials among them can be stored.
    """
    problem = ""
    for name, _ in head.headers:
        if name in kept and is_secret(name) and not seals:
            problem = (
                f"the header '{name}' cannot be forwarded. Leave it out, or ask the operator to set "
                "'background.client_credentials: seal'."
            )
    for tool in tools:
        if tool.type == "mcp" and _opens(tool):
            problem = (
                f"leave 'authorization' and 'headers' of the MCP server '{(tool.server_label or '')[:64]}' out, "
                f"and use a connector of the gateway's ('connector_id')."
            )
    if problem:
        raise unsupported_parameter(
            "A background response runs without its client, and this server does not store clients' "
            f"credentials: {problem}",
            "background",
        )


def credentials_of(head: RequestHead, kept: frozenset[str], *, passthrough: bool, keyless: bool) -> Headers:
    """The headers that the model call needs and that may only be stored sealed."""
    return tuple(
        (name, value)
        for name, value in head.headers
        if (name == "authorization" and passthrough and not keyless) or (name in kept and is_secret(name))
    )


def check_keyless(keyless: bool | None, *, seals: bool) -> None:
    """Check that a request with its client's key can be queued: the upstream needs no key, or the key is sealed.

    Raises `ApiError` when it cannot.
    """
    if keyless or seals:
        return
    if keyless is None:
        raise Unavailable(
            "The server could not check whether the upstream works without your key. It does not store your "
            "key for a background response. Try again shortly.",
            code="upstream_not_reached",
            headers=(("retry-after", "5"),),
        )
    raise unsupported_parameter(
        "A background response runs without its client, its upstream requires a key, and this server does "
        "not store clients' credentials. Ask the operator to set 'background.client_credentials: seal' "
        "(stores them encrypted until the response ends), or to give the upstream a separate key "
        "('upstream.auth: inject').",
        "background",
    )


def seal_headers(sealer: Sealer, owner: str, headers: Headers) -> str:
    """Seal the headers as a text that only this server can open, for this owner's jobs."""
    return sealer.seal(owner, _JOB, encode(list(headers)))


def open_headers(sealer: Sealer, owner: str, sealed: str) -> Headers:
    """Open the headers that were sealed with a job. Raises `InvalidRequest`."""
    if not sealed:
        return ()
    try:
        return tuple(msgspec.json.decode(sealer.open(owner, _JOB, sealed), type=list[tuple[str, str]]))
    except (InvalidRequest, msgspec.DecodeError):
        raise InvalidRequest(
            "The credentials stored with this response cannot be decrypted: the server's sealing key has "
            "changed. Send the request again.",
            code="credentials_lost",
        ) from None


def is_secret(name: str) -> bool:
    """Whether a header carries a credential."""
    return any(part in name for part in _SECRETS)


def _opens(tool: ToolDeclaration) -> bool:
    """Whether an MCP declaration has credentials. An invalid declaration counts as one. Preparing it refuses it."""
    found = try_decode(_CREDENTIALS, tool.source)
    if found is None:
        return True
    return bool(found.authorization) or (given(found.headers) and bytes(found.headers) != b"{}")
