"""Implements the hosted tool `file_search`: the model searches the vector stores that the request names.

This module checks the tool's declaration, makes the function that the model calls, and formats the hits for the model.
An implementation of the interface `Searcher` (`engine/ports/vector_stores.py`) runs the search.
`translation/events/citations.py` makes citation marks and annotations.

Invariant: a call searches only vector stores that the declaration names and that belong to the request's owner.
"""

from __future__ import annotations

from msgspec import Raw, Struct

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, Source, ToolResult
from antiphon.engine.ports.vector_stores import FoundChunk, Searcher
from antiphon.errors import ApiError, InvalidRequest, NotFound, invalid_parameter, missing_parameter, unknown_parameter
from antiphon.tools.box import ToolFailed, check_length, read_arguments, read_declared
from antiphon.translation.events.citations import unmarked
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.search import read_filters, read_ranking

_PARAMETERS = Raw(
    b'{"type":"object","properties":{"queries":{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":5,'
    b'"description":"What to look for: one to five short questions or lists of keywords."}},"required":["queries"],'
    b'"additionalProperties":false}'
)
_DESCRIPTION = (
    "Search the files that belong to this conversation. The results are passages, each with a mark such as "
    "\u30103\u3011. Put the mark of a passage right behind every statement that you take from it."
)
_MAX_QUERIES = 5
_MAX_RESULTS = 50
_SHOWN_RESULTS = 10
"""The maximum number of results if the declaration has no `max_num_results`."""
_MAX_STORES = 16


class _FileSearchDeclaration(Struct):
    vector_store_ids: list[str] = []
    vector_store_id: str | None = None
    max_num_results: int | None = None
    filters: object = None
    ranking_options: object = None
    filter: object = None


class _FileSearchArguments(Struct):
    queries: list[str] = []
    query: str | None = None


class FileSearch:
    """The hosted tool `file_search`, which searches with a `Searcher`."""

    types = frozenset({"file_search"})

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the declaration, and check that the vector stores exist. Raises `InvalidRequest`."""
        where = f"tools[{tool.index}]"
        declared = read_declared(tool, _FileSearchDeclaration)
        if declared.filter is not None:
            # Ignoring `filter` would return documents that the client wants to exclude.
            raise unknown_parameter(f"{where}.filter", "Did you mean 'filters'?")
        stores = _stores(declared)
        if not stores:
            raise missing_parameter(f"{where}.vector_store_ids")
        check_length(f"{where}.vector_store_ids", stores, _MAX_STORES)
        limit = declared.max_num_results
        if limit is not None and not 1 <= limit <= _MAX_RESULTS:
            raise invalid_parameter(f"{where}.max_num_results", f"use 1 to {_MAX_RESULTS}")
        read_filters(declared.filters, f"{where}.filters")
        read_ranking(declared.ranking_options, f"{where}.ranking_options")
        try:
            # A search without queries only checks that the stores exist.
            await self._searcher.search(owner, stores, (), limit=1)
        except (NotFound, InvalidRequest) as error:
            raise InvalidRequest(error.message, param=f"{where}.vector_store_ids", code="not_found") from None
        return PreparedTool(
            tool, (HostedFunction(CallKind.FILE_SEARCH, "file_search", _DESCRIPTION, _PARAMETERS, read_only=True),)
        )

    async def run(self, call: HostedCall) -> ToolResult:
        """Run the search for all queries of a call. Raises `ToolFailed` if the arguments contain no query."""
        declared = read_declared(call.tool, _FileSearchDeclaration)
        queries = _queries(call.arguments)
        if not queries:
            raise ToolFailed("'queries' must be a list of one to five strings.")
        try:
            hits = await self._searcher.search(
                call.owner,
                _stores(declared),
                queries,
                limit=declared.max_num_results or _SHOWN_RESULTS,
                filters=read_filters(declared.filters, "filters"),
                ranking=read_ranking(declared.ranking_options, "ranking_options"),
            )
        except ApiError as error:
            return ToolResult(call.call_id, f"The search failed: {error.message}", {"queries": queries}, failed=True)
        return ToolResult(
            call.call_id,
            _told(hits),
            {"queries": queries, "results": [_result(hit) for hit in hits]},
            sources=tuple(_source(hit) for hit in hits),
        )

    async def aclose(self) -> None:
        """Do nothing, because the application closes the searcher."""


def _stores(declared: _FileSearchDeclaration) -> list[str]:
    """Return the ids of the vector stores. Some clients send a single `vector_store_id` instead of
    `vector_store_ids`."""
    alone = [declared.vector_store_id] if declared.vector_store_id else []
    return list(dict.fromkeys([*declared.vector_store_ids, *alone]))


def _queries(arguments: str) -> list[str]:
    given = read_arguments(arguments, _FileSearchArguments) or _FileSearchArguments()
    found = [query.strip() for query in (*given.queries, given.query or "") if query.strip()]
    return found[:_MAX_QUERIES]


def _told(hits: list[FoundChunk]) -> str:
    if not hits:
        return "Nothing was found."
    return "\n\n".join(
        f"{{cite:{number}}} {unmarked(hit.filename)} (relevance {hit.score:.2f})\n{unmarked(hit.text)}"
        for number, hit in enumerate(hits)
    )


def _result(hit: FoundChunk) -> dict[str, object]:
    return {
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": hit.score,
        "text": hit.text,
        "attributes": dict(hit.attributes),
        "vector_store_id": hit.vector_store_id,
    }


def _source(hit: FoundChunk) -> Source:
    return Source({"type": "file_citation", "file_id": hit.file_id, "filename": hit.filename})
