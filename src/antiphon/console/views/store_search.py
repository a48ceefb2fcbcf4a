"""Shows test searches in one vector store. The page shows three rankings side by side: by words, by meaning, and by
words and meaning together.

This module also explains why a filter leaves out a file: it finds the first condition that the file's attributes do not
meet. `search/searcher.py` runs a search, and `stores/vector_sql.py` applies the filter of a real search.
`vector_stores.py` shows vector stores.

The tester runs the API's own search three times, each time with other weights for words and meaning. With a filter, a
fourth search without the filter finds the files that the filter leaves out.

Invariant: `why_left_out` agrees with the databases. A comparison in a filter matches only values of the same type. A
file that lacks the compared attribute matches only the operators `ne` and `nin`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq, ge, gt, le, lt
from typing import Final, NamedTuple, TypedDict

from antiphon.api.http import ApiResponse
from antiphon.console.owner_lists import choose_owner, needs
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute
from antiphon.console.views.vector_stores import path_of, read_json
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.search import Attributes, Filter, read_filters

_MOST: Final = 50
_USUAL: Final = 10
_LONGEST: Final = 8192
KINDS: Final = {"both": "both", "words": "words", "meaning": "meaning"}
RANKERS: Final = ("auto", "none", "default-2024-11-15")


_COMPARE: Final[dict[str, Callable[[str | float | bool, str | float | bool], bool]]] = {
    "eq": eq,
    "ne": eq,
    "gt": gt,
    "gte": ge,
    "lt": lt,
    "lte": le,
    "in": eq,
    "nin": eq,
}
_SIGNS: Final = {"eq": "=", "ne": "≠", "gt": ">", "gte": "≥", "lt": "<", "lte": "≤", "in": "in", "nin": "not in"}
_NEGATIONS: Final = frozenset({"ne", "nin"})
_TYPES: Final = {"s": "text", "n": "a number", "b": "a boolean"}


class ChunkTextJson(TypedDict):
    """A part of a chunk's content."""

    text: str


class SearchResultJson(TypedDict):
    """A result of a search, as the API returns it: the fields that the tester reads."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: Sequence[ChunkTextJson]


class Place(NamedTuple):
    """The position of a chunk in one ranking, from 1, and the chunk's score."""

    place: int
    score: float


@dataclass(slots=True)
class Hit:
    """One chunk with its position in each ranking. `found` is true if a client's search with these options returns the
    chunk."""

    file_id: str
    filename: str
    text: str
    attributes: Attributes
    places: dict[str, Place] = field(default_factory=dict)
    found: bool = False


class LeftOut(NamedTuple):
    """A file that only a search without the filter finds. `score` is the score of the file's best chunk."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    reason: str


@dataclass(frozen=True, slots=True)
class TesterOptions:
    """The options of a search, as the user enters them in the form."""

    query: str
    results: int
    threshold: float
    ranker: str
    weights: tuple[float, float]
    filter_text: str


class StoreSearchView:
    """The search tester of a vector store."""

    nav = ()

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/vector-stores/{}/search")
    async def show(self, call: PageCall, store_id: str) -> ApiResponse:
        """Run the searches with the options in the query parameters, and show the results."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Search tester", "Vector stores")
        await self._reading.note_read(call.session, "read vector-store", store_id, call.owner)
        with needs("vector_stores.enabled", "vector stores"):
            store = await self._reading.json("GET", path_of(store_id), call.caller)
        order = call.query("order") if call.query("order") in KINDS else "both"
        values: dict[str, object] = {
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
        return call.show("store_search.html", values, store=store, order=order, rankers=RANKERS, kinds=KINDS)

    async def _search(self, call: PageCall, store_id: str, options: TesterOptions, order: str) -> dict[str, object]:
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
        self,
        call: PageCall,
        store_id: str,
        options: TesterOptions,
        words: float,
        meaning: float,
        filters: Mapping[str, object] | None,
    ) -> list[SearchResultJson]:
        weights = {"text_weight": words, "embedding_weight": meaning}
        body = {
            "query": options.query,
            "max_num_results": _MOST,
            "filters": filters,
            "ranking_options": {"ranker": options.ranker, "hybrid_search": weights},
        }
        answer = await self._reading.json("POST", f"{path_of(store_id)}/search", call.caller, body=body)
        found: list[SearchResultJson] = answer["data"]
        return found


def read_options(call: PageCall) -> TesterOptions:
    """Read the options from the query parameters. Raises `InvalidRequest`."""
    return TesterOptions(
        query=call.query("query").strip()[:_LONGEST],
        results=call.number("results", _USUAL, least=1, most=_MOST),
        threshold=_fraction(call, "threshold", 0.0),
        ranker=call.query("ranker") or "auto",
        weights=(_fraction(call, "words", 0.5), _fraction(call, "meaning", 0.5)),
        filter_text=call.query("filter"),
    )


def merged(rankings: Mapping[str, Sequence[SearchResultJson]], results: int, threshold: float, order: str) -> list[Hit]:
    """Return the chunks that are among the first `results` chunks of at least one ranking. `order` names the ranking
    that sorts them. Each chunk has its positions in all rankings."""
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


def left_out(ranking: Sequence[SearchResultJson], filters: Filter) -> list[LeftOut]:
    """Return the files of an unfiltered ranking that the filter excludes, best first."""
    files: dict[str, LeftOut] = {}
    for one in ranking:
        if one["file_id"] in files:
            continue
        if reason := why_left_out(filters, one["attributes"]):
            files[one["file_id"]] = LeftOut(one["file_id"], one["filename"], one["score"], one["attributes"], reason)
    return list(files.values())


def _fraction(call: PageCall, name: str, default: float) -> float:
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


def why_left_out(one: Filter, attributes: Attributes) -> str:
    """Return the first condition of the filter that these attributes do not meet, with the reason. The text is empty if
    the attributes match the filter."""
    if one.kind == "and":
        return next((reason for part in one.parts if (reason := why_left_out(part, attributes))), "")
    if one.kind == "or":
        reasons = [why_left_out(part, attributes) for part in one.parts]
        if not all(reasons):
            return ""
        return (
            reasons[0]
            if len(reasons) == 1
            else (f"the file matches none of the {len(reasons)} alternatives. The first alternative: {reasons[0]}")
        )
    return _failure(one, attributes)


def condition(one: Filter) -> str:
    """Return the filter as a short text."""
    if one.kind in ("and", "or"):
        return "(" + f" {one.kind} ".join(map(condition, one.parts)) + ")"
    return f"{one.key} {_SIGNS[one.kind]} {_short_value(one.value)}"


def _failure(one: Filter, attributes: Attributes) -> str:
    wanted = one.value if isinstance(one.value, tuple) else (one.value,)
    negated = one.kind in _NEGATIONS
    if one.key not in attributes:
        return "" if negated else f"{condition(one)} fails: the file has no attribute '{one.key}'"
    found = attributes[one.key]
    same = [value for value in wanted if _type_of(value) == _type_of(found)]
    holds = any(_COMPARE[one.kind](found, value) for value in same)
    if holds != negated:
        return ""
    if not negated and wanted and not same:
        types = " or ".join(dict.fromkeys(_TYPES[_type_of(value)] for value in wanted))
        return f"{condition(one)} fails: '{one.key}' is {_TYPES[_type_of(found)]}, {_short_value(found)}, not {types}"
    return f"{condition(one)} fails: '{one.key}' is {_short_value(found)}"


def _type_of(value: object) -> str:
    if isinstance(value, str):
        return "s"
    return "b" if isinstance(value, bool) else "n"


def _short_value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"
