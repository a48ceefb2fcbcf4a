"""Serves the Vector Stores API: clients create, read, change, delete and search vector stores.

This module has OpenAI's operations on vector stores. `POST /v1/search` searches several vector stores, which OpenAI's
API cannot do. `vector_files.py` serves the files in a vector store, and the `Searcher` runs the search.

The API gives the same 404 error for a missing vector store and for a vector store of another owner. All paths also
exist as `/v1/vector-stores…`.

Invariant: the header `antiphon-ignored` names the fields that Antiphon does not use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from antiphon.api.endpoint import Area, Endpoint, Route, listing
from antiphon.api.http import (
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    Metadata,
    existing,
    ignored_fields,
    json_response,
    list_response,
    made_again,
    made_is_gone,
    once_of,
    raw_response,
    read_known,
    read_page,
)
from antiphon.api.vector_files import VectorFiles
from antiphon.api.vector_shapes import (
    STORES,
    ChunkingInput,
    Expiry,
    SearchResult,
    SearchResultsPage,
    TextPart,
    VectorStoreObject,
    read_chunking,
    read_expiry,
    read_strictly,
    show_store,
)
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.vector_stores import NewFile, Searcher, StoreChanges
from antiphon.errors import (
    InvalidRequest,
    NotFound,
    array_too_long,
    invalid_parameter,
    missing_parameter,
    string_too_long,
    wrong_value,
)
from antiphon.ids import IdFactory, new_id
from antiphon.stores.files import FileStore
from antiphon.stores.owner_usage import StorageQuota
from antiphon.stores.vector_stores import VectorStores
from antiphon.translation.request.checks import check_metadata
from antiphon.types.json import encode
from antiphon.types.search import FILTERS, RANKING, read_filters, read_ranking
from antiphon.types.transport import Headers

_NAMES = ("vector_stores", "vector-stores")
"""OpenAI's spelling of the path, and another spelling that some clients use."""

_MAX_FILES = 500
_MAX_QUERIES, _MAX_QUERY = 16, 8_192
_MAX_RESULTS, _RESULTS = 50, 10
_MAX_STORES = 16
_MAX_NAME, _MAX_DESCRIPTION = 256, 2_048


QueryRewriter = Callable[[str, Headers], Awaitable[str]]
"""A function that rewrites a user's question as a search query. The function takes the question and the client's
headers. If the rewriting fails, the function returns the question unchanged."""


_Name = Annotated[str, Meta(extra_json_schema={"maxLength": _MAX_NAME})]


class CreateVectorStore(Struct):
    """A new vector store. `file_ids` are uploaded files to ingest with `chunking_strategy`."""

    name: _Name | None = None
    description: Annotated[str, Meta(extra_json_schema={"maxLength": _MAX_DESCRIPTION})] | None = None
    file_ids: Annotated[list[str], Meta(extra_json_schema={"maxItems": _MAX_FILES})] | None = None
    expires_after: Expiry | None = None
    chunking_strategy: ChunkingInput | None = None
    metadata: Metadata | None = None


class UpdateVectorStore(Struct):
    """A change of a vector store. Fields that the request omits keep their values. `expires_after: null` removes the
    expiry."""

    name: _Name | None = None
    expires_after: Expiry | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET


class SearchStore(Struct):
    """The body of a search. `query` is a text or a list of texts. `top_k` is another name for `max_num_results`.
    `filters` is a comparison such as `{"type": "gte", "key": "year", "value": 2024}`. The filter types `and` and `or`
    combine several comparisons. A search request with a field that is not listed here gets a 400."""

    query: str | list[str] | None = None
    rewrite_query: bool | None = None
    max_num_results: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": _MAX_RESULTS})] | None = None
    top_k: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": _MAX_RESULTS})] | None = None
    filters: Annotated[Any, Meta(extra_json_schema=FILTERS)] = None
    ranking_options: Annotated[Any, Meta(extra_json_schema=RANKING)] = None


class SearchStores(SearchStore):
    """The body of a search over several vector stores. `vector_store_ids` and `vector_store_id` name the vector
    stores."""

    vector_store_ids: Annotated[list[str], Meta(extra_json_schema={"maxItems": _MAX_STORES})] | None = None
    vector_store_id: str | None = None


class VectorStoreApi(Area):
    """Serves `/v1/vector_stores` with the files and batches below it, and `/v1/search`.

    Without a `rewriter`, Antiphon ignores `rewrite_query` and lists it in `antiphon-ignored`. `room` checks how many
    chunks an owner or a team may store.
    """

    def __init__(
        self,
        stores: VectorStores,
        searcher: Searcher,
        files: FileStore,
        *,
        rewriter: QueryRewriter | None = None,
        room: StorageQuota | None = None,
        make_id: IdFactory = new_id,
    ) -> None:
        self._stores = stores
        self._searcher = searcher
        self._rewriter = rewriter
        self._new_id = make_id
        self._files = VectorFiles(stores, files, make_id, room)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints of vector stores and their files, in both spellings of the path."""
        *own, several = super().endpoints()
        found = (*own, *self._files.endpoints())
        return (several, *found, *(replace(row, pattern=row.pattern.replace(*_NAMES)) for row in found))

    @Route("POST", "/v1/vector_stores", "Create a vector store", VectorStoreObject, body=CreateVectorStore, keyed=True)
    async def create(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/vector_stores`: create a vector store, and begin to ingest the files in `file_ids`.

        Raises `InvalidRequest`, `NotFound` (`file_not_found`), and `OwnerFull` (429) if the owner or the team may store
        no more chunks.
        """
        body, ignored = read_known(request, CreateVectorStore)
        _check_length("name", body.name, _MAX_NAME)
        _check_length("description", body.description, _MAX_DESCRIPTION)
        check_metadata(body.metadata or {})
        ids = list(dict.fromkeys(body.file_ids or ()))
        if len(ids) > _MAX_FILES:
            raise array_too_long("file_ids", _MAX_FILES)
        if body.chunking_strategy is not None and not ids:
            raise wrong_value(
                "'chunking_strategy' describes how to split the files in 'file_ids', but the request has no "
                "'file_ids'.",
                "chunking_strategy",
            )
        chunking = read_chunking("chunking_strategy", body.chunking_strategy)
        try:
            once = await once_of(request, self._stores.made)
            await self._files.check_room(request)
            names = await self._files.filenames(request.owner, ids, "file_ids")
            made = await self._stores.create(
                request.owner,
                self._new_id("vs"),
                name=body.name,
                description=body.description,
                metadata=encode(body.metadata or {}),
                expires_days=read_expiry(body.expires_after),
                files=[NewFile(file_id, names[file_id], chunking=chunking) for file_id in ids],
                once=once,
            )
        except AlreadyMade as earlier:
            found = existing(await self._stores.get(request.owner, earlier.object_id), made_is_gone("vector store"))
            return made_again(raw_response(show_store(found), headers=ignored_fields(ignored)))
        return raw_response(show_store(made), headers=ignored_fields(ignored))

    @listing("/v1/vector_stores", "List vector stores", ListOf[VectorStoreObject])
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/vector_stores`: list the vector stores, newest first unless the request sets `order`."""
        page = await self._stores.list(request.owner, read_page(request))
        return list_response(page, show_store)

    @Route("GET", "/v1/vector_stores/{}", "Get a vector store", VectorStoreObject)
    async def get(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`GET /v1/vector_stores/{id}`: get a vector store, even if it has expired."""
        return raw_response(show_store(await STORES.find(store_id, lambda: self._stores.get(request.owner, store_id))))

    @Route("POST", "/v1/vector_stores/{}", "Update a vector store", VectorStoreObject, body=UpdateVectorStore)
    async def update(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`POST /v1/vector_stores/{id}`: change a vector store. Missing fields keep their values, and `expires_after:
        null` removes the expiry."""
        body, ignored = read_known(request, UpdateVectorStore)
        _check_length("name", body.name, _MAX_NAME)
        metadata = None if body.metadata is UNSET else body.metadata or {}
        check_metadata(metadata or {})
        expiry = None if body.expires_after is UNSET else body.expires_after
        changes = StoreChanges(
            name=body.name,
            metadata=None if metadata is None else encode(metadata),
            expires_days=read_expiry(expiry),
            clear_expiry=body.expires_after is None,
        )
        changed = await STORES.find(store_id, lambda: self._stores.update(request.owner, store_id, changes))
        return raw_response(show_store(changed), headers=ignored_fields(ignored))

    @Route("DELETE", "/v1/vector_stores/{}", "Delete a vector store", Deleted[Literal["vector_store.deleted"]])
    async def delete(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`DELETE /v1/vector_stores/{id}`: delete a vector store. Antiphon keeps the uploaded files."""
        return await STORES.delete(store_id, lambda: self._stores.delete(request.owner, store_id))

    @Route("POST", "/v1/vector_stores/{}/search", "Search a vector store", SearchResultsPage, body=SearchStore)
    async def search(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`POST /v1/vector_stores/{id}/search`: search one vector store.

        Raises `NotFound`, and `InvalidRequest` for an expired vector store, an unknown field or a wrong filter.

            {"query": "lease renewal", "filters": {"type": "eq", "key": "language", "value": "en"}}
        """
        request.access.check_tool("file_search")
        return await self._search(request, (store_id,), read_strictly(request, SearchStore))

    @Route("POST", "/v1/search", "Search several vector stores", SearchResultsPage, body=SearchStores)
    async def search_several(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/search`: search up to 16 vector stores. Each result has the id of its vector store.

        Raises `InvalidRequest` (`not_found`) for an unknown vector store, because its id is in the body and not in the
        path.
        """
        request.access.check_tool("file_search")
        body = read_strictly(request, SearchStores)
        alone = [body.vector_store_id] if body.vector_store_id else []
        ids = list(dict.fromkeys([*(body.vector_store_ids or ()), *alone]))
        if not ids:
            raise missing_parameter("vector_store_ids")
        if len(ids) > _MAX_STORES:
            raise array_too_long("vector_store_ids", _MAX_STORES)
        try:
            return await self._search(request, ids, body, named=True)
        except NotFound as error:
            # The client gets a 400 instead of a 404, because the id is in the body and not in the path.
            raise InvalidRequest(error.message, param="vector_store_ids", code="not_found") from None

    async def _search(
        self, request: ApiRequest, ids: Sequence[str], body: SearchStore, *, named: bool = False
    ) -> ApiResponse:
        queries = _queries(body.query)
        limit = _limit(body)
        filters = read_filters(body.filters, "filters")
        ranking = read_ranking(body.ranking_options, "ranking_options")
        unknown = []
        if body.rewrite_query:
            # This search without queries checks that the stores exist, before a model call rewrites the queries.
            await self._searcher.search(request.owner, ids, ())
            if self._rewriter is None:
                unknown.append("rewrite_query")
            else:
                queries = [await self._rewriter(query, request.headers) for query in queries]
        hits = await self._searcher.search(request.owner, ids, queries, limit=limit, filters=filters, ranking=ranking)
        data = [
            SearchResult(
                file_id=hit.file_id,
                filename=hit.filename,
                score=round(hit.score, 6),
                attributes=hit.attributes,
                content=[TextPart(hit.text)],
                vector_store_id=hit.vector_store_id if named else UNSET,
            )
            for hit in hits
        ]
        return json_response(
            SearchResultsPage(search_query=queries, data=data, has_more=False, next_page=None),
            headers=ignored_fields(unknown),
        )


def _limit(body: SearchStore) -> int:
    """The requested number of results, from `max_num_results` or `top_k`. Raises `InvalidRequest`."""
    asked = {name: value for name in ("max_num_results", "top_k") if (value := getattr(body, name)) is not None}
    for name, value in asked.items():
        if not 1 <= value <= _MAX_RESULTS:
            raise invalid_parameter(name, f"expected an integer from 1 to {_MAX_RESULTS}")
    if len(set(asked.values())) > 1:
        raise invalid_parameter(
            "top_k",
            "'top_k' is another name of 'max_num_results', and the two have different values; send only one of them",
        )
    return next(iter(asked.values()), _RESULTS)


def _queries(query: str | list[str] | None) -> list[str]:
    if query is None:
        raise missing_parameter("query")
    queries = [query] if isinstance(query, str) else query
    if not queries or not any(one.strip() for one in queries):
        raise invalid_parameter("query", "it is empty")
    if len(queries) > _MAX_QUERIES:
        raise array_too_long("query", _MAX_QUERIES)
    for one in queries:
        _check_length("query", one, _MAX_QUERY)
    return queries


def _check_length(name: str, value: str | None, limit: int) -> None:
    if value is not None and len(value) > limit:
        raise string_too_long(name, limit, len(value))
