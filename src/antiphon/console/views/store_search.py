"""Tests searches in one vector store: ranked by words, by meaning and by both, side by side.

Lives here: the search tester. Not here: the search (`search/searcher.py`), the reasons of filters
(`console/filter_reasons.py`), the pages of stores (`vector_stores.py`).

The tester runs the API's own search three times, each time with other weights. With a filter, a fourth search without
the filter finds the files that the filter leaves out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from antiphon.api.http import ApiResponse
from antiphon.console.filter_reasons import condition, why_left_out
from antiphon.console.lists import needs
from antiphon.console.owners import choose_owner
from antiphon.console.reading import Reading
from antiphon.console.site import Call, Page
from antiphon.console.views.vector_stores import path_of, read_json
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.request.search_options import read_filters
from antiphon.types.search import Filter

_MOST: Final = 50
_USUAL: Final = 10
_LONGEST: Final = 8192
KINDS: Final = {"both": "both", "words": "words", "meaning": "meaning"}
RANKERS: Final = ("auto", "none", "default-2024-11-15")


class Place(NamedTuple):
    """The place of a chunk in one ranking, from 1, and its score."""

    place: int
    score: float


@dataclass(slots=True)
class Hit:
    """One chunk with its places, by ranking. `found`: the search of a client with these options returns the chunk."""

    file_id: str
    filename: str
    text: str
    attributes: Mapping[str, Any]
    places: dict[str, Place] = field(default_factory=dict)
    found: bool = False


class LeftOut(NamedTuple):
    """A file that matches without the filter. `score` is that of its best chunk."""

    file_id: str
    filename: str
    score: float
    attributes: Mapping[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a search, as the form has them."""

    query: str
    results: int
    threshold: float
    ranker: str
    weights: tuple[float, float]
    filter_text: str


class StoreSearch:
    """The search tester of a vector store."""

    nav = ()

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @Page("GET", "/vector-stores/{}/search")
    async def show(self, call: Call, store_id: str) -> ApiResponse:
        """Search with the options of the query parameters."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Search tester")
        with needs("vector_stores.enabled", "vector stores"):
            store = await self._reading.json("GET", path_of(store_id), call.caller)
        order = call.query("order") if call.query("order") in KINDS else "both"
        values: dict[str, Any] = {
            "hits": [],
            "left_out": [],
            "problem": "",
            "condition": "",
            "without_vectors": False,
            "total": 0,
        }
        try:
            options = read_options(call)
            if options.query:
                values |= await self._search(call, store_id, options, order)
        except ApiError as error:
            if error.status >= 500:
                raise
            values["problem"] = error.message
        return call.show("store_search.html", store=store, order=order, rankers=RANKERS, kinds=KINDS, **values)

    async def _search(self, call: Call, store_id: str, options: Options, order: str) -> dict[str, Any]:
        chosen = read_json(options.filter_text, "filter")
        filters = read_filters(chosen, "filter")
        words, meaning = options.weights
        asked = [(words, meaning, chosen), (1.0, 0.0, chosen), (0.0, 1.0, chosen)]
        if filters is not None:
            asked.append((words, meaning, None))
        found = await asyncio.gather(*(self._run(call, store_id, options, *each) for each in asked))
        rankings = dict(zip(KINDS, found, strict=False))
        hits = merged(rankings, options.results, options.threshold, order)
        return {
            "hits": hits,
            "total": sum(hit.found for hit in hits),
            "left_out": left_out(found[3], filters) if filters is not None else [],
            "condition": condition(filters) if filters is not None else "",
            "without_vectors": bool(found[1]) and found[1] == found[2],
        }

    async def _run(
        self, call: Call, store_id: str, options: Options, words: float, meaning: float, filters: Any
    ) -> list[Any]:
        weights = {"text_weight": words, "embedding_weight": meaning}
        body = {
            "query": options.query,
            "max_num_results": _MOST,
            "filters": filters,
            "ranking_options": {"ranker": options.ranker, "hybrid_search": weights},
        }
        answer = await self._reading.json("POST", f"{path_of(store_id)}/search", call.caller, body=body)
        found: list[Any] = answer["data"]
        return found


def read_options(call: Call) -> Options:
    """The options in the query parameters. Raises `InvalidRequest`."""
    return Options(
        query=call.query("query").strip()[:_LONGEST],
        results=call.number("results", _USUAL, least=1, most=_MOST),
        threshold=_fraction(call, "threshold", 0.0),
        ranker=call.query("ranker") or "auto",
        weights=(_fraction(call, "words", 0.5), _fraction(call, "meaning", 0.5)),
        filter_text=call.query("filter"),
    )


def merged(rankings: Mapping[str, Sequence[Any]], results: int, threshold: float, order: str) -> list[Hit]:
    """The chunks that are among the first `results` of at least one ranking, in the order of the ranking `order`. Each
    chunk has its places in all rankings."""
    hits: dict[tuple[str, str], Hit] = {}
    for kind, ranking in rankings.items():
        for number, one in enumerate(ranking, 1):
            text = "\n".join(part["text"] for part in one["content"])
            hit = hits.setdefault((one["file_id"], text), Hit(one["file_id"], one["filename"], text, one["attributes"]))
            hit.places.setdefault(kind, Place(number, one["score"]))
    shown = [hit for hit in hits.values() if any(place.place <= results for place in hit.places.values())]
    for hit in shown:
        both = hit.places.get("both")
        hit.found = both is not None and both.place <= results and both.score >= threshold
    last = Place(_MOST + 1, 0.0)

    def place_of(hit: Hit) -> tuple[int, int]:
        return hit.places.get(order, last).place, hit.places.get("both", last).place

    return sorted(shown, key=place_of)


def left_out(ranking: Sequence[Any], filters: Filter) -> list[LeftOut]:
    """The files in a ranking without a filter that the filter leaves out, best first."""
    files: dict[str, LeftOut] = {}
    for one in ranking:
        if one["file_id"] in files:
            continue
        if reason := why_left_out(filters, one["attributes"]):
            files[one["file_id"]] = LeftOut(one["file_id"], one["filename"], one["score"], one["attributes"], reason)
    return list(files.values())


def _fraction(call: Call, name: str, default: float) -> float:
    text = call.query(name).strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise InvalidRequest(f"'{name}' must be a number from 0 to 1, such as 0.5.", param=name)
    return number
