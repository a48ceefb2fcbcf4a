"""Stored responses: get, list, delete, and the list of input items.

Lives here: what these answer. Not here: creating a response (the exchange), and what the store means.

Invariant: a missing response, somebody else's, and an id that cannot be one of ours give the same answer, byte for
byte apart from the id.
"""

from __future__ import annotations

from antiphon.api.http import (
    ApiRequest,
    ApiResponse,
    items_response,
    json_response,
    list_response,
    query_value,
    raw_response,
    read_page,
)
from antiphon.engine.ports.state import ResponseStore
from antiphon.engine.ports.stored_bodies import whole_body
from antiphon.errors import InvalidRequest, NotFound
from antiphon.ids import is_id

_SHOWN_ID = 128


async def get_response(store: ResponseStore, request: ApiRequest, response_id: str) -> ApiResponse:
    """`GET /v1/responses/{id}`. `include` is accepted: what a backend can give is in the stored items already."""
    if query_value(request, "starting_after") is not None:
        raise InvalidRequest(
            "'starting_after' needs 'stream=true'.",
            param="starting_after",
            code="invalid_value",
        )
    found = await store.get(request.owner, response_id) if is_id(response_id, "resp") else None
    if found is None:
        raise no_such_response(response_id)
    return raw_response(whole_body(found.body, found.output_items))


async def list_responses(store: ResponseStore, request: ApiRequest) -> ApiResponse:
    """`GET /v1/responses`, newest first unless asked otherwise: whole responses. OpenAI has no such list."""
    page = await store.list(request.owner, read_page(request))
    bodies = [whole_body(one.body, one.output_items) for one in page.responses]
    return list_response(bodies, [one.id for one in page.responses], has_more=page.has_more)


async def delete_response(store: ResponseStore, request: ApiRequest, response_id: str) -> ApiResponse:
    """`DELETE /v1/responses/{id}`."""
    if not (is_id(response_id, "resp") and await store.delete(request.owner, response_id)):
        raise no_such_response(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


async def list_input_items(store: ResponseStore, request: ApiRequest, response_id: str) -> ApiResponse:
    """`GET /v1/responses/{id}/input_items`, newest first unless asked otherwise."""
    query = read_page(request)
    page = await store.input_items(request.owner, response_id, query) if is_id(response_id, "resp") else None
    if page is None:
        raise no_such_response(response_id)
    return items_response(page.items, has_more=page.has_more)


def no_such_response(response_id: str) -> NotFound:
    """The 404 for an id."""
    return NotFound(f"Response with id '{response_id[:_SHOWN_ID]}' not found.")
