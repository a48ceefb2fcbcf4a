"""Converts a background request into a stored job, and a job back into a request for a worker.

A worker runs the job after the client's request has ended. So this module checks whether the request needs the client's
credentials, and encrypts credentials that a job stores. `queued_request.py` creates the job.

Invariants: A job contains a client's credentials only with the setting `background.client_credentials: seal`. In that
case the job's database row contains the credentials, encrypted for the owner, and no other row does. The store deletes
them when the response ends or is deleted. If a worker runs a response again, the response keeps its id and creation
time.
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
from antiphon.types.request import ToolDeclaration
from antiphon.types.transport import Headers
from antiphon.types.views import QueuedCredentials

_JOB: Final = "job"
_CREDENTIALS: Final = msgspec.json.Decoder(QueuedCredentials)

# A header whose name contains one of these words carries a credential.
_SECRETS: Final = ("auth", "key", "token", "secret", "cookie", "password", "credential")


@dataclass(frozen=True, slots=True)
class QueuedResponse:
    """The id and creation time of a queued response, which stay the same when a worker runs it. The worker numbers its
    stream events from `first_number`."""

    id: str
    created_at: float
    first_number: int


def check_background(head: RequestHead, kept: frozenset[str], tools: Sequence[ToolDeclaration], *, seals: bool) -> None:
    """Raise `InvalidRequest` if the request needs a credential that a job may not store.

    `kept`: the names of the client headers that Antiphon sends with the model call. `seals`: whether the server may
    store encrypted credentials.
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
    """Return the request's headers with credentials that the model call needs. A job must store these headers
    encrypted."""
    return tuple(
        (name, value)
        for name, value in head.headers
        if (name == "authorization" and passthrough and not keyless) or (name in kept and is_secret(name))
    )


def check_keyless(keyless: bool | None, *, seals: bool) -> None:
    """Check whether Antiphon can queue a request whose upstream gets the client's key. This is possible if the upstream
    needs no key (`keyless`), or if the server may store encrypted keys (`seals`).

    Raises `ApiError` otherwise. `keyless` is None if Antiphon could not reach the upstream to find out.
    """
    if keyless or seals:
        return
    if keyless is None:
        raise Unavailable(
            "The server could not check whether the upstream works without your key. The server does not store "
            "your key for a background response. Try again shortly.",
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
    """Encrypt the headers for a job of this owner. Returns a text that only a server with the same sealing key can
    decrypt."""
    return sealer.seal(owner, _JOB, encode(list(headers)))


def open_headers(sealer: Sealer, owner: str, sealed: str) -> Headers:
    """Decrypt the headers that `seal_headers` has encrypted. Raises `InvalidRequest` if the sealing key has changed."""
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
    """Whether the header with this name contains a credential."""
    return any(part in name for part in _SECRETS)


def _opens(tool: ToolDeclaration) -> bool:
    """Whether an MCP tool declaration has credentials. An invalid declaration counts as having credentials."""
    found = try_decode(_CREDENTIALS, tool.source)
    if found is None:
        return True
    return bool(found.authorization) or (given(found.headers) and bytes(found.headers) != b"{}")
