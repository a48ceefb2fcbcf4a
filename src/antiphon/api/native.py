"""Responses that an upstream keeps itself, by their id.

Lives here: asking the one native upstream for a response that is not stored here. Not here: whether there is such an
upstream (settings: exactly one native upstream, and a single owner, since its ids belong to nobody we know), and the
making of responses (the exchange).

Invariant: only an id that could be one goes on, so that it names one response and no other path of the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlencode

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.engine.exchange.failure import transport_failure
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.redaction import KnownSecrets, bytes_without
from antiphon.types.transport import Headers

_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_SENT = frozenset({"traceparent", "tracestate", "x-request-id", "openai-beta"})
# The business of whoever's credentials the call carries.
_OF_THE_ACCOUNT = frozenset({"authorization", "openai-organization", "openai-project"})
_KEPT = ("content-type", "retry-after")
_KEPT_PREFIXES = ("openai-", "x-ratelimit-")


class NativeResponses:
    """The responses of the upstream of this name. `passthrough` and `headers`: what of the client's goes along."""

    def __init__(
        self,
        upstream: Upstream,
        name: str,
        *,
        passthrough: bool,
        headers: Iterable[str] = (),
        secrets: KnownSecrets = (),
    ) -> None:
        self._secrets = secrets
        self._upstream = upstream
        self._name = name
        self._sent = _SENT | frozenset(headers) | (_OF_THE_ACCOUNT if passthrough else frozenset())

    async def ask(self, request: ApiRequest, response_id: str, rest: str = "") -> ApiResponse | None:
        """The upstream's answer as it is, or None when this can be no id of its. Raises `ApiError`.

        `rest` is the path behind the id (`/input_items`, `/cancel`).
        """
        if not _ID.fullmatch(response_id):
            return None
        query = "?" + urlencode(request.query) if request.query else ""
        headers: Headers = tuple((name, value) for name, value in request.headers if name in self._sent)
        call = UpstreamRequest(
            method="GET" if request.method == "HEAD" else request.method,
            path=f"/responses/{response_id}{rest}{query}",
            headers=(("accept", "application/json"), *headers),
            upstream=self._name,
        )
        try:
            async with self._upstream.call(call) as answer:
                body = b"".join([part async for part in answer.body()])
        except UpstreamCallFailed as failure:
            told = transport_failure(failure.error)
            told.operation, told.upstream = "ask_native", self._name
            raise told from None
        if answer.status >= 400:
            body = bytes_without(body, self._secrets)
        kept = tuple(
            (name, value) for name, value in answer.headers if name in _KEPT or name.startswith(_KEPT_PREFIXES)
        )
        length = () if answer.status in (204, 304) else (("content-length", str(len(body))),)
        return ApiResponse(answer.status, (*kept, *length), body)
