"""Serves the Conversations API: clients create, read, change and delete conversations and their items.

This module has OpenAI's eight operations, and a list of conversations, which OpenAI does not have. The exchange adds a
response's items to a conversation. The store locks a conversation while a response runs.

The API gives the same 404 error for a missing conversation or item and for a conversation or item of another owner.
Deleting a conversation deletes its items. Antiphon keeps the responses of the conversation.

Invariant: Antiphon gives every item a new id, even if the client sent one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.api.endpoint import Area, Route, listing
from antiphon.api.http import (
    AnyItem,
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    Metadata,
    ObjectKind,
    Parameter,
    existing,
    ignored_fields,
    item_body,
    list_response,
    made_again,
    made_is_gone,
    once_of,
    raw_response,
    read_body,
    read_page,
)
from antiphon.engine.exchange.allowed_by_key import check_body
from antiphon.engine.exchange.stored_items import is_reference, prepare_input, resolve_references, stored_input
from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.state import Page, StoredConversation
from antiphon.errors import missing_parameter
from antiphon.ids import IdFactory, is_name, new_id
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.owner_usage import StorageQuota
from antiphon.stores.responses import ResponseStore
from antiphon.translation.chat.body import check_item
from antiphon.translation.item_kinds import note_members, only_known
from antiphon.translation.request.body import read_items
from antiphon.translation.request.checks import check_metadata
from antiphon.translation.request.fields import check_include
from antiphon.types.json import ABSENT, JsonObject, encode, given
from antiphon.types.tolerance import Tolerance

MAX_ITEMS = 20
"""The largest number of items that one request may add."""

Items = Annotated[
    Raw,
    Meta(
        description="The items have the format of the field `input` of `POST /v1/responses`.",
        extra_json_schema={
            "type": "array",
            "items": {"$ref": "#/components/schemas/InputItem"},
            "maxItems": MAX_ITEMS,
        },
    ),
]


class CreateConversation(Struct):
    """A new conversation, with its first items."""

    metadata: Metadata | None = None
    items: Items = ABSENT


class UpdateConversation(Struct):
    """The new metadata of a conversation, which replaces all former metadata."""

    metadata: Metadata | UnsetType | None = UNSET


class AddItems(Struct):
    """Items to append to a conversation."""

    items: Items = ABSENT


class Conversation(Struct, kw_only=True):
    """A conversation (`conv_…`) without its items. `created_at` is in seconds since the epoch."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: JsonObject


INCLUDE = Parameter(
    "include",
    list[str],
    "Antiphon only checks the values of this parameter. The answer does not depend on these values, because stored "
    "items are always complete.",
)
"""The query parameter `include` of requests for a conversation's items."""


_CONVERSATIONS = ObjectKind("Conversation", is_name, "conversation.deleted")
_ITEMS = ObjectKind("Item", is_name)


class Conversations(Area):
    """Serves `/v1/conversations`. `responses` is the store in which the API looks up an item that a client references
    by its id."""

    def __init__(
        self,
        conversations: ConversationStore,
        responses: ResponseStore,
        make_id: IdFactory = new_id,
        *,
        owner_room: StorageQuota | None = None,
        strict: bool = False,
    ) -> None:
        """With `strict`, the API refuses items and content parts of unknown types. Without `strict`, the API leaves
        such items and parts out."""
        self._owner_room = owner_room
        self._strict = strict
        self._store = conversations
        self._responses = responses
        self._new_id = make_id

    @Route("POST", "/v1/conversations", "Create a conversation", Conversation, body=CreateConversation, keyed=True)
    async def create(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/conversations`: create a conversation, with optional `metadata` and up to 20 optional `items`."""
        check_body(request.access, request.body)
        body = read_body(request, CreateConversation)
        check_metadata(body.metadata or {})
        tolerance = Tolerance(strict=self._strict)
        try:
            once = await once_of(request, self._store.made)
            items = await self._read_items(request, body.items, tolerance)
            made = await self._store.create(
                request.owner, self._new_id("conv"), encode(body.metadata or {}), items, once
            )
        except AlreadyMade as earlier:
            found = await self._store.get(request.owner, earlier.object_id)
            return made_again(_shown(existing(found, made_is_gone("conversation"))))
        return raw_response(_resource(made), headers=ignored_fields(tolerance.names))

    @listing("/v1/conversations", "List conversations", ListOf[Conversation])
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/conversations`: list the owner's conversations, newest first unless the request sets `order`."""
        page = await self._store.list(request.owner, read_page(request))
        return list_response(page, _resource)

    @Route("GET", "/v1/conversations/{}", "Get a conversation", Conversation)
    async def get(self, request: ApiRequest, conversation_id: str) -> ApiResponse:
        """`GET /v1/conversations/{id}`: get a conversation without its items."""
        return _shown(await self._known(request, conversation_id))

    @Route("POST", "/v1/conversations/{}", "Update a conversation", Conversation, body=UpdateConversation)
    async def update(self, request: ApiRequest, conversation_id: str) -> ApiResponse:
        """`POST /v1/conversations/{id}`: replace the metadata."""
        metadata = read_body(request, UpdateConversation).metadata
        if metadata is UNSET:
            raise missing_parameter("metadata")
        check_metadata(metadata or {})
        if metadata and self._owner_room is not None:
            await self._owner_room.check(request.owner, request.caller)
        update, kept = self._store.update, encode(metadata or {})
        return _shown(await _CONVERSATIONS.find(conversation_id, lambda: update(request.owner, conversation_id, kept)))

    @Route(
        "DELETE",
        "/v1/conversations/{}",
        "Delete a conversation",
        Deleted[Literal["conversation.deleted"]],
        errors=(409,),
    )
    async def delete(self, request: ApiRequest, conversation_id: str) -> ApiResponse:
        """`DELETE /v1/conversations/{id}`: delete a conversation with its items.

        Raises `ConversationLocked` (409) while a response runs in the conversation. The operations that add or delete
        items raise this error, too.
        """
        return await _CONVERSATIONS.delete(conversation_id, lambda: self._store.delete(request.owner, conversation_id))

    @listing("/v1/conversations/{}/items", "List the items of a conversation", ListOf[AnyItem], INCLUDE)
    async def list_items(self, request: ApiRequest, conversation_id: str) -> ApiResponse:
        """`GET /v1/conversations/{id}/items`: list the items, newest first unless the request sets `order`."""
        tolerance = self._read_include(request)
        query = read_page(request)
        items = self._store.items
        page = await _CONVERSATIONS.find(conversation_id, lambda: items(request.owner, conversation_id, query))
        return list_response(page, item_body, headers=ignored_fields(tolerance.names))

    @Route(
        "POST",
        "/v1/conversations/{}/items",
        "Add items to a conversation",
        ListOf[AnyItem],
        body=AddItems,
        parameters=(INCLUDE,),
        errors=(409,),
    )
    async def add_items(self, request: ApiRequest, conversation_id: str) -> ApiResponse:
        """`POST /v1/conversations/{id}/items`: append up to 20 items. If one item is wrong, the API adds no item."""
        tolerance = self._read_include(request)
        check_body(request.access, request.body)
        given_items = read_body(request, AddItems).items
        if not given(given_items):
            raise missing_parameter("items")
        items = await self._read_items(request, given_items, tolerance)
        if not (is_name(conversation_id) and await self._store.add_items(request.owner, conversation_id, items)):
            raise _CONVERSATIONS.missing(conversation_id)
        return list_response(Page(items, False), item_body, headers=ignored_fields(tolerance.names))

    @Route(
        "GET",
        "/v1/conversations/{}/items/{}",
        "Get an item of a conversation",
        AnyItem,
        parameters=(INCLUDE,),
        errors=(400,),
    )
    async def get_item(self, request: ApiRequest, conversation_id: str, item_id: str) -> ApiResponse:
        """`GET /v1/conversations/{id}/items/{item_id}`: get one item."""
        tolerance = self._read_include(request)
        await self._known(request, conversation_id)
        item = await _ITEMS.find(item_id, lambda: self._store.get_item(request.owner, conversation_id, item_id))
        return raw_response(item.body, headers=ignored_fields(tolerance.names))

    @Route("DELETE", "/v1/conversations/{}/items/{}", "Delete an item of a conversation", Conversation, errors=(409,))
    async def delete_item(self, request: ApiRequest, conversation_id: str, item_id: str) -> ApiResponse:
        """`DELETE /v1/conversations/{id}/items/{item_id}`: delete an item. The answer is the conversation."""
        conversation = await self._known(request, conversation_id)
        if not (is_name(item_id) and await self._store.delete_item(request.owner, conversation_id, item_id)):
            raise _ITEMS.missing(item_id)
        return _shown(conversation)

    async def _known(self, request: ApiRequest, conversation_id: str) -> StoredConversation:
        return await _CONVERSATIONS.find(conversation_id, lambda: self._store.get(request.owner, conversation_id))

    async def _read_items(self, request: ApiRequest, value: Raw, tolerance: Tolerance) -> tuple[StoredItem, ...]:
        """Parse the items into their stored form, and give each item an id. If an item only references a stored item,
        the stored item replaces it."""
        if self._owner_room is not None:
            await self._owner_room.check(request.owner, request.caller)
        sent = read_items("items", value, MAX_ITEMS)
        note_members("items", sent, tolerance)
        items = only_known("items", sent, tolerance)
        wanted = tuple(item.id for item in items if is_reference(item) and item.id)
        if wanted:
            found = await self._store.find_items(request.owner, wanted)
            found |= await self._responses.load_items(request.owner, wanted)
            items = resolve_references(items, found, "items")
        for number, item in enumerate(items):
            check_item(f"items[{number}]", item, tolerance)
        return stored_input(prepare_input(items, self._new_id))

    def _read_include(self, request: ApiRequest) -> Tolerance:
        """Check the query parameter `include`, which has no effect, because the stored items have all data that a
        backend sends."""
        tolerance = Tolerance(strict=self._strict)
        check_include([value for name, value in request.query if name in ("include", "include[]")], tolerance)
        return tolerance


def _resource(conversation: StoredConversation) -> bytes:
    return encode(
        Conversation(id=conversation.id, created_at=int(conversation.created_at), metadata=Raw(conversation.metadata))
    )


def _shown(conversation: StoredConversation) -> ApiResponse:
    return raw_response(_resource(conversation))
