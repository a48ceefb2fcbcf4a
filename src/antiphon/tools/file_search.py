"""`file_search`: the model searches the vector stores that the request names.

Lives here: the declaration, the function the model is shown, and what it reads of the hits. Not here: searching
(`engine/knowledge.Searcher`), marks and annotations (`translation/citations.py`).

Invariant: only stores that the declaration names are searched, and only the owner's.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from antiphon.engine.hosted import HostedCall, HostedTool, PreparedTool, Source, ToolResult
from antiphon.engine.knowledge import Searcher, SearchHit
from antiphon.engine.search_options import read_filters, read_ranking
from antiphon.errors import ApiError, InvalidRequest, NotFound
from antiphon.tools.box import ToolFailed
from antiphon.tools.declared import read_declared
from antiphon.translation.citations import unmarked
from antiphon.translation.tool_map import CallKind, HostedFunction

__all__ = ["FileSearch"]

_PARAMETERS = Raw(
    b'{"type":"object","properties":{"queries":{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":5,'
    b'"description":"What to look for: one to five short questions or lists of keywords."}},"required":["queries"],'
    b'"additionalProperties":false}'
)
_DESCRIPTION = (
    "Search the files that belong to this conversation. The results are passages, each with a mark such as "
    "\u30103\u3011. Put the mark of a passage right behind every statement that you take from it."
)
_MOST_QUERIES = 5
_MOST_RESULTS = 50
_MOST_STORES = 16


class _Declaration(Struct):
    vector_store_ids: list[str] = []
    vector_store_id: str | None = None
    max_num_results: int | None = None
    filters: Any = None
    ranking_options: Any = None


class _Arguments(Struct):
    queries: list[str] = []
    query: str | None = None


class FileSearch:
    """The tool over a searcher. `shown_results` is how many hits there are when a request does not say."""

    types = frozenset({"file_search"})

    def __init__(self, searcher: Searcher, *, shown_results: int = 10) -> None:
        self._searcher = searcher
        self._shown_results = shown_results

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the declaration, and that the stores exist. Raises `InvalidRequest`."""
        where = f"tools[{tool.index}]"
        declared = read_declared(tool, _Declaration)
        stores = _stores(declared)
        if not stores:
            raise InvalidRequest(
                f"Missing required parameter: '{where}.vector_store_ids'.",
                param=f"{where}.vector_store_ids",
                code="missing_required_parameter",
            )
        if len(stores) > _MOST_STORES:
            raise InvalidRequest(
                f"'{where}.vector_store_ids' has {len(stores)} entries; at most {_MOST_STORES} are allowed.",
                param=f"{where}.vector_store_ids",
                code="array_above_max_length",
            )
        most = declared.max_num_results
        if most is not None and not 1 <= most <= _MOST_RESULTS:
            raise InvalidRequest(
                f"Invalid '{where}.max_num_results': use 1 to {_MOST_RESULTS}.",
                param=f"{where}.max_num_results",
                code="invalid_value",
            )
        read_filters(declared.filters, f"{where}.filters")
        read_ranking(declared.ranking_options, f"{where}.ranking_options")
        try:
            # A search for nothing tells whether the stores are there.
            await self._searcher.search(owner, stores, (), limit=1)
        except (NotFound, InvalidRequest) as error:
            raise InvalidRequest(error.message, param=f"{where}.vector_store_ids", code="not_found") from None
        return PreparedTool(tool, (HostedFunction(CallKind.FILE_SEARCH, "file_search", _DESCRIPTION, _PARAMETERS),))

    async def run(self, call: HostedCall) -> ToolResult:
        """Search for all queries of a call together."""
        declared = read_declared(call.tool, _Declaration)
        queries = _queries(call.arguments)
        if not queries:
            raise ToolFailed("'queries' must be a list of one to five strings.")
        try:
            hits = await self._searcher.search(
                call.owner,
                _stores(declared),
                queries,
                limit=declared.max_num_results or self._shown_results,
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
        """Nothing is held."""


def _stores(declared: _Declaration) -> list[str]:
    """The stores by their ids; some clients name one alone."""
    alone = [declared.vector_store_id] if declared.vector_store_id else []
    return list(dict.fromkeys([*declared.vector_store_ids, *alone]))


def _queries(arguments: str) -> list[str]:
    try:
        given = msgspec.json.decode(arguments, type=_Arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
    found = [query.strip() for query in (*given.queries, given.query or "") if query.strip()]
    return found[:_MOST_QUERIES]


def _told(hits: list[SearchHit]) -> str:
    if not hits:
        return "Nothing was found."
    return "\n\n".join(
        f"{{cite:{number}}} {unmarked(hit.filename)} (relevance {hit.score:.2f})\n{unmarked(hit.text)}"
        for number, hit in enumerate(hits)
    )


def _result(hit: SearchHit) -> dict[str, Any]:
    return {
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": hit.score,
        "text": hit.text,
        "attributes": dict(hit.attributes),
        "vector_store_id": hit.vector_store_id,
    }


def _source(hit: SearchHit) -> Source:
    return Source({"type": "file_citation", "file_id": hit.file_id, "filename": hit.filename})
