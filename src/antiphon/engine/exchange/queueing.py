"""Converts a background request into a stored job, and a job back into a request for a worker.

This module checks that a request can run without its client, and encrypts the credentials that a job stores. Not here:
the job itself (`queued_request.py`), the store of jobs, the workers.

Invariants: A job contains a client's credentials only with the setting `background.client_credentials: seal`. In that
case only the job's row has the credentials, encrypted for the owner. The store deletes the credentials when the
response ends or is deleted. A retried response keeps its id and creation time. The store saves the input of a response
once, together with the job.
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
    """The id and creation time that a queued response keeps. The worker's first stream event has the number
    `first_number`."""

    id: str
    created_at: float
    first_number: int


def check_background(head: RequestHead, kept: frozenset[str], tools: Sequence[ToolDeclaration], *, seals: bool) -> None:
    """Check that the request can run without its client. Raises `InvalidRequest` when the request needs its client.

    `kept`: the names of client headers that the model call carries. `seals`: whether the server may store credentials,
    encrypted.
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
    """Return the headers with credentials that the model call needs. A job may store these headers only in encrypted
    form."""
    return tuple(
        (name, value)
        for name, value in head.headers
        if (name == "authorization" and passthrough and not keyless) or (name in kept and is_secret(name))
    )


def check_keyless(keyless: bool | None, *, seals: bool) -> None:
    """Check that a request with its client's key can be queued. The upstream must need no key, or the server must seal
    the key.

    Raises `ApiError` when the request cannot be queued.
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
    """Encrypt the headers for this owner's jobs. Returns a text that only a server with the same key can decrypt."""
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
    """Whether a header carries a credential."""
    return any(part in name for part in _SECRETS)


def _opens(tool: ToolDeclaration) -> bool:
    """Whether an MCP tool declaration has credentials. An invalid declaration counts as having credentials."""
    found = try_decode(_CREDENTIALS, tool.source)
    if found is None:
        return True
    return bool(found.authorization) or (given(found.headers) and bytes(found.headers) != b"{}")
