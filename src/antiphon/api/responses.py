"""Serves stored responses in the Responses API: get, list, delete, list input items. Clients can also cancel background
responses, and resume their streams.

This module forwards the request to the native upstream if Antiphon has not stored the response. Antiphon forwards such
a request only if there is exactly one native upstream and a single owner. With several owners, Antiphon would not know
to whom that upstream's responses belong. The exchange creates responses, and `engine/running/workers.py` runs
background responses.

Invariants:
- The API gives the same 404 error for a missing response and for a response of another owner. An id that Antiphon
  cannot have made also gets this error.
- The sidecar sends the response headers of a stream only after it has checked that the stream exists.
- Antiphon forwards only an id of letters, digits, `_` and `-`, so that no client can reach another upstream path.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from typing import Literal
from urllib.parse import urlencode

from antiphon.api.endpoint import Area, Route, listing
from antiphon.api.http import (
    EVENTS,
    AnyItem,
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    ObjectKind,
    Parameter,
    item_body,
    list_response,
    query_flag,
    query_number,
    query_value,
    raw_response,
    read_page,
)
from antiphon.engine.exchange.client_answer import SSE_HEADERS
from antiphon.engine.exchange.failure import transport_failure
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.jobs import is_background, whole_body
from antiphon.engine.ports.state import StoredResponse, Upstream, UpstreamCallFailed
from antiphon.engine.running.background import Background
from antiphon.errors import NotFound, wrong_value
from antiphon.ids import is_id
from antiphon.observability.metrics import Metrics
from antiphon.redacted_json import error_without
from antiphon.redaction import KnownSecrets
from antiphon.stores.responses import ResponseStore
from antiphon.types.response import Response
from antiphon.types.transport import Headers

_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_SENT = frozenset({"traceparent", "tracestate", "x-request-id", "openai-beta"})
# Headers about the upstream account. Antiphon forwards such a header from a client only together with the client's own
# credentials.
_OF_THE_ACCOUNT = frozenset({"authorization", "openai-organization", "openai-project"})
_KEPT = ("content-type", "retry-after")
_KEPT_PREFIXES = ("openai-", "x-ratelimit-")


class NativeResponses:
    """Forwards requests about stored responses to the native upstream `name`, which has a Responses API itself.

    With `passthrough`, Antiphon forwards the client's credentials. `headers` are further client headers to forward.
    Antiphon removes the `secrets` from error bodies.
    """

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
        """Forward the request. Returns the upstream's answer, or None if `response_id` is not a valid id.

        `rest` is the path after the id (`/input_items`, `/cancel`). The answer keeps the upstream's status and body,
        errors included. Raises `ApiError` if the upstream cannot be reached.
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
            body = error_without(body, self._secrets)
        kept = tuple(
            (name, value) for name, value in answer.headers if name in _KEPT or name.startswith(_KEPT_PREFIXES)
        )
        length = () if answer.status in (204, 304) else (("content-length", str(len(body))),)
        return ApiResponse(answer.status, (*kept, *length), body)


_STREAMED = (
    Parameter("stream", bool, "Return the events of a background response as a stream."),
    Parameter(
        "starting_after", int, "With `stream`, return only the events after the event with this sequence number."
    ),
    Parameter("include_obfuscation", bool, "This parameter has no effect."),
    Parameter("include", list[str], "This parameter has no effect, because stored items are always complete."),
)

_RESPONSES = ObjectKind("Response", lambda one: is_id(one, "resp"), "response")


class Responses(Area):
    """Serves `GET /v1/responses` and the stored responses below `/v1/responses/{id}`.

    `native` serves responses that Antiphon has not stored. If `background` is None, clients can neither cancel nor
    stream a response.
    """

    def __init__(
        self, store: ResponseStore, background: Background | None, native: NativeResponses | None, metrics: Metrics
    ) -> None:
        self._store = store
        self._background = background
        self._native = native
        self._metrics = metrics

    @listing("/v1/responses", "List responses", ListOf[Response])
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/responses`: list whole responses, newest first unless the request sets `order`.

        OpenAI has no such list.
        """
        with self._metrics.storage("list"):
            page = await self._store.list(request.owner, read_page(request))
            return list_response(page, _whole)

    @Route("GET", "/v1/responses/{}", "Get a response", Response, parameters=_STREAMED, events=EVENTS, errors=(400,))
    async def get(self, request: ApiRequest, response_id: str) -> ApiResponse:
        """`GET /v1/responses/{id}`: get a response, or its events with `stream=true`.

        The events begin after the `sequence_number` in `starting_after`. Raises `InvalidRequest` (`invalid_value`) for
        a stream of a response that was not created with `background` and `stream`. `include` has no effect, because
        stored items are complete.

            GET /v1/responses/resp_0198…?stream=true&starting_after=41
        """
        asked = self._stream if query_flag(request, "stream") else self._get
        return await self._here_or_there("get", asked(request, response_id), request, response_id)

    @Route("DELETE", "/v1/responses/{}", "Delete a response", Deleted[Literal["response"]])
    async def delete(self, request: ApiRequest, response_id: str) -> ApiResponse:
        """`DELETE /v1/responses/{id}`: delete a response with its items."""
        return await self._here_or_there("delete", self._delete(request, response_id), request, response_id)

    @listing("/v1/responses/{}/input_items", "List the input items of a response", ListOf[AnyItem])
    async def list_input_items(self, request: ApiRequest, response_id: str) -> ApiResponse:
        """`GET /v1/responses/{id}/input_items`: list the input items, newest first unless the request sets `order`.

        The list leaves out the items of earlier responses.
        """
        items = self._input_items(request, response_id)
        return await self._here_or_there("input_items", items, request, response_id, "/input_items")

    @Route("POST", "/v1/responses/{}/cancel", "Cancel a background response", Response)
    async def cancel(self, request: ApiRequest, response_id: str) -> ApiResponse:
        """`POST /v1/responses/{id}/cancel`: cancel a background response, and return the response.

        A response that has already ended stays unchanged. Raises `InvalidRequest` (`response_not_cancellable`) for a
        response that does not run in the background.
        """
        return await self._here_or_there("cancel", self._cancel(request, response_id), request, response_id, "/cancel")

    async def _here_or_there(
        self, operation: str, answer: Awaitable[ApiResponse], request: ApiRequest, response_id: str, rest: str = ""
    ) -> ApiResponse:
        """Return `answer` for a stored response. If the response is not stored, forward the request to the native
        upstream."""
        try:
            with self._metrics.storage(operation):
                return await answer
        except NotFound:
            found = await self._native.ask(request, response_id, rest) if self._native is not None else None
            if found is None:
                raise
            return found

    async def _known(self, request: ApiRequest, response_id: str) -> StoredResponse:
        return await _RESPONSES.find(response_id, lambda: self._store.get(request.owner, response_id))

    async def _get(self, request: ApiRequest, response_id: str) -> ApiResponse:
        if query_value(request, "starting_after") is not None:
            raise wrong_value("'starting_after' needs 'stream=true'.", "starting_after")
        return raw_response(_whole(await self._known(request, response_id)))

    async def _stream(self, request: ApiRequest, response_id: str) -> ApiResponse:
        """Stream the events from the beginning, or after the event with the number `starting_after`."""
        after = -1
        if query_value(request, "starting_after") is not None:
            after = query_number(request, "starting_after", least=0, limit=2**53, default=0)
        found = await self._known(request, response_id)
        if (
            self._background is None
            or not is_background(found.body)
            or not await self._background.has_stream(request.owner, response_id)
        ):
            raise wrong_value(
                "This response cannot be streamed because it was not created with 'background' and 'stream'.", "stream"
            )
        headers: Headers = SSE_HEADERS
        if query_flag(request, "include_obfuscation"):
            # Antiphon sends the stored events unchanged.
            headers = (*headers, ("antiphon-ignored", "include_obfuscation"))
        return ApiResponse(200, headers, b"", self._background.followers.follow(request.owner, response_id, after))

    async def _delete(self, request: ApiRequest, response_id: str) -> ApiResponse:
        return await _RESPONSES.delete(response_id, lambda: self._store.delete(request.owner, response_id))

    async def _input_items(self, request: ApiRequest, response_id: str) -> ApiResponse:
        query = read_page(request)
        input_items = self._store.input_items
        page = await _RESPONSES.find(response_id, lambda: input_items(request.owner, response_id, query))
        return list_response(page, item_body)

    async def _cancel(self, request: ApiRequest, response_id: str) -> ApiResponse:
        background = self._background
        if background is None:
            raise _RESPONSES.missing(response_id)
        found = await _RESPONSES.find(response_id, lambda: background.cancel(request.owner, response_id))
        return raw_response(_whole(found))


def _whole(found: StoredResponse) -> bytes:
    return whole_body(found.body, found.output_items)
