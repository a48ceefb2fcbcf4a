"""Background responses by their id: cancelled, and streamed once more or on.

Lives here: what these answer. Not here: creating one (the exchange), running one (`engine/running/workers.py`).

Invariant: a missing response and somebody else's give the same answer; a head is sent only once it is sure that there
is a stream.
"""

from __future__ import annotations

from antiphon.api.http import ApiRequest, ApiResponse, query_flag, query_number, query_value, raw_response
from antiphon.api.responses import no_such_response
from antiphon.engine.ports.state import ResponseStore
from antiphon.engine.ports.stored_bodies import is_background, whole_body
from antiphon.engine.running.background import Background
from antiphon.errors import InvalidRequest
from antiphon.ids import is_id
from antiphon.types.transport import Headers

_SSE_HEADERS: Headers = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))


async def cancel_response(background: Background | None, request: ApiRequest, response_id: str) -> ApiResponse:
    """`POST /v1/responses/{id}/cancel`. A response that is over already is answered as it is."""
    found = None
    if background is not None and is_id(response_id, "resp"):
        found = await background.cancel(request.owner, response_id)
    if found is None:
        raise no_such_response(response_id)
    return raw_response(whole_body(found.body, found.output_items))


async def stream_response(
    background: Background | None, store: ResponseStore, request: ApiRequest, response_id: str
) -> ApiResponse:
    """`GET /v1/responses/{id}?stream=true`: the stream from its beginning, or behind the event `starting_after`."""
    after = -1
    if query_value(request, "starting_after") is not None:
        after = query_number(request, "starting_after", least=0, limit=2**53, default=0)
    found = await store.get(request.owner, response_id) if is_id(response_id, "resp") else None
    if found is None:
        raise no_such_response(response_id)
    if (
        background is None
        or not is_background(found.body)
        or not await background.has_stream(request.owner, response_id)
    ):
        raise InvalidRequest(
            "This response cannot be streamed because it was not created with 'background' and 'stream'.",
            param="stream",
            code="invalid_value",
        )
    headers = _SSE_HEADERS
    if query_flag(request, "include_obfuscation"):
        # The events are sent as they were made.
        headers = (*headers, ("antiphon-ignored", "include_obfuscation"))
    return ApiResponse(200, headers, b"", background.followers.follow(request.owner, response_id, after))
