"""Implements the hosted tool `tool_search`: the model searches the tools that the request defers (`defer_loading`), and
the sidecar returns the matching declarations.

This module lists the deferred tools for the model, and finds the tools that match a query.
`engine/exchange/requested_tools.py` decides which tools are deferred. The output item contains the found tools, so the
model sees them in the next model call.

A search compares the query's words with names, namespaces, descriptions and parameters of the tools. A tool's full name
in the query scores higher than any other match. A namespace's name in the query matches all its tools.

Invariants:
- The same query on the same declarations returns the same tools in the same order.
- A search returns declarations as the client sent them. The number and the size of the declarations are limited, so
  that the result fits into a conversation.
- A search compares at most 16 words of a query and about 128 words of each tool. A thread runs the search, so that
  large declarations do not delay other requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec
from msgspec import Raw, Struct

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.engine.waiting import apart
from antiphon.tools.box import ToolFailed, read_arguments
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.json import encode, given
from antiphon.types.search import query_terms

_NAME, _SPACE, _DESCRIPTION, _SPACE_DESCRIPTION, _PARAMETER, _PARAMETER_DESCRIPTION = 4.0, 2.5, 1.5, 1.0, 1.0, 0.5
_PREFIX = 0.5
_SHORTEST_PREFIX = 4
_NAMED, _SPACE_NAMED = 1_000.0, 100.0
_LEAST = 0.3
"""The minimum score of a result, as a fraction of the best score."""
_MOST, _MOST_NAMED = 8, 32
_MOST_BYTES = 64 << 10
_QUERY_TERMS, _TERMS = 16, 128
_LONGEST_TEXT = 2_000
_LISTED = 4_000
_LONGEST_LINE = 160
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NAMES = re.compile(r"[\w.-]+")
_PARAMETERS = Raw(
    b'{"type":"object","properties":{"query":{"type":"string","description":"What the tools should do, or their names.'
    b'"}},"required":["query"],"additionalProperties":false}'
)
_TOLD = (
    "Find tools that are not shown yet. Those that are found can be called right afterwards, by the names that the "
    "result gives. Search before you say that something cannot be done."
)


class _ToolSearchArguments(Struct):
    query: str = ""


class _Declared(Struct):
    type: str = ""
    name: str = ""
    description: str | None = None
    parameters: Raw = Raw()
    tools: list[Raw] = []
    server_label: str = ""
    server_description: str | None = None

    @property
    def title(self) -> str:
        """The name that the model sees: the function's name, or the label of an MCP server."""
        return self.server_label if self.type == "mcp" else self.name

    @property
    def about(self) -> str:
        """The description of the tool for the model, or an empty string."""
        return (self.server_description if self.type == "mcp" else self.description) or ""


_DECLARED = msgspec.json.Decoder(_Declared)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One deferred tool. `place`: the index of the tool's declaration among the searchable declarations. `space`: the
    name of the tool's namespace or MCP server. `terms`: the weight of each word of the tool."""

    place: int
    source: Raw
    name: str
    space: str | None
    terms: dict[str, float]


class ToolSearch:
    """The hosted tool `tool_search`. The tool has no state."""

    types = frozenset({"tool_search"})

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Return one function for the model. The function's description lists the searchable tools."""
        told = f"{_TOLD}\n\n{_listing(tool.searchable)}"
        function = HostedFunction(CallKind.HOSTED_TOOL_SEARCH, "tool_search", told, _PARAMETERS, read_only=True)
        return PreparedTool(tool, (function,))

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one search. Raises `ToolFailed` if the arguments contain no query."""
        query = (read_arguments(call.arguments, _ToolSearchArguments) or _ToolSearchArguments()).query
        if not query.strip():
            raise ToolFailed("the arguments must be an object with 'query', a string.")
        found = await apart(lambda: find(query, call.tool.searchable))
        return ToolResult(call.call_id, f"{len(found)} declarations were found.", {"tools": found})

    async def aclose(self) -> None:
        """Do nothing: the tool has no resources."""


def find(query: str, searchable: Sequence[bytes]) -> list[Raw]:
    """Return the declarations that match a query, best first. Matching tools of one namespace become one
    declaration."""
    candidates = [one for place, source in enumerate(searchable) for one in _read(place, source)]
    scored = [(score, one) for one, score in zip(candidates, _scores(query, candidates), strict=True) if score > 0]
    scored.sort(key=lambda pair: -pair[0])
    if not scored:
        return []
    least = scored[0][0] * _LEAST
    most = _MOST_NAMED if scored[0][0] >= _SPACE_NAMED else _MOST
    members: dict[int, list[Raw]] = {}
    room = _MOST_BYTES
    for score, one in scored[:most]:
        room -= len(bytes(one.source))
        if score < least or (room < 0 and members):
            break
        members.setdefault(one.place, []).append(one.source)
    return [_declaration(searchable[place], found) for place, found in members.items()]


def _declaration(source: bytes, members: list[Raw]) -> Raw:
    """Return a declaration as the client sent it. A namespace or MCP server lists only the tools in `members`."""
    kind = _DECLARED.decode(source).type
    if kind == "namespace":
        return Raw(encode({**_OBJECT.decode(source), "tools": [_whole(one) for one in members]}))
    if kind == "mcp":
        declared = _OBJECT.decode(source)
        del declared["tools"]
        return Raw(encode({**declared, "allowed_tools": [_DECLARED.decode(one).name for one in members]}))
    return _whole(Raw(source))


def _whole(source: Raw) -> Raw:
    """Return a function declaration with the keys `parameters` and `strict`, which OpenAI's output item always has.
    Other declarations stay unchanged."""
    if _DECLARED.decode(source).type != "function":
        return source
    return Raw(encode({"parameters": None, "strict": None, **_OBJECT.decode(source)}))


def _read(place: int, source: bytes) -> Iterator[_Candidate]:
    whole = _DECLARED.decode(source)
    if whole.type not in ("namespace", "mcp"):
        yield _Candidate(place, Raw(source), whole.name, None, _weighed(_parts(whole)))
        return
    around = [(_SPACE, whole.title), (_SPACE_DESCRIPTION, whole.about)]
    for inner in whole.tools:
        declared = _DECLARED.decode(inner)
        yield _Candidate(place, inner, declared.name, whole.title, _weighed([*_parts(declared), *around]))


def _parts(declared: _Declared) -> list[tuple[float, str]]:
    parts = [(_NAME, declared.name), (_DESCRIPTION, declared.description or "")]
    if given(declared.parameters):
        for name, description in islice(_parameters(msgspec.json.decode(declared.parameters)), _TERMS):
            parts += [(_PARAMETER, name), (_PARAMETER_DESCRIPTION, description)]
    return parts


def _parameters(schema: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield the names and descriptions of a JSON schema's properties, down to three levels of nested objects."""
    properties = schema.get("properties") if isinstance(schema, dict) and depth < 3 else None
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        described = inner.get("description") if isinstance(inner, dict) else None
        yield name, described if isinstance(described, str) else ""
        yield from _parameters(inner, depth + 1)


def _weighed(parts: Iterable[tuple[float, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for weight, text in parts:
        for term in _terms(text):
            weights[term] = max(weights.get(term, 0.0), weight)
        if len(weights) >= _TERMS:
            break
    return weights


def _terms(text: str) -> list[str]:
    """Split a text into lower-case words in the singular. Names like `getUserById` and `get_user_by_id` become several
    words."""
    return [_singular(term) for term in query_terms(_CAMEL.sub(" ", text[:_LONGEST_TEXT]).replace("_", " "))]


def _singular(term: str) -> str:
    if len(term) > 4 and term.endswith("ies"):
        return term[:-3] + "y"
    return term[:-1] if len(term) > 3 and term.endswith("s") and not term.endswith("ss") else term


def _scores(query: str, candidates: Sequence[_Candidate]) -> list[float]:
    """Return the score of each candidate, 0 for no match. A word weighs more if fewer candidates contain it."""
    scores = [0.0] * len(candidates)
    for term in list(dict.fromkeys(_terms(query)))[:_QUERY_TERMS]:
        weights = [_weight(term, one.terms) for one in candidates]
        fitting = sum(weight > 0 for weight in weights)
        if fitting:
            rarity = math.log(1 + len(candidates) / fitting)
            scores = [score + weight * rarity for score, weight in zip(scores, weights, strict=True)]
    words = {name.strip(".").casefold() for name in _NAMES.findall(query[:_LONGEST_TEXT])}
    names = {name for one in candidates for name in _names(one)}
    # A plain word of letters counts as a tool's name only if all words of the query are names of tools. "search for
    # mail" does not name a tool called `search`.
    named = words if words <= names else {word for word in words & names if not word.isalpha()}
    for number, one in enumerate(candidates):
        if named & _names(one):
            scores[number] += _NAMED
        elif one.space is not None and one.space.casefold() in words:
            scores[number] += _SPACE_NAMED
    return scores


def _names(one: _Candidate) -> set[str]:
    name, space = one.name.casefold(), (one.space or "").casefold()
    return {name, f"{space}.{name}", f"{space}__{name}"} if space else {name}


def _weight(term: str, terms: dict[str, float]) -> float:
    if term in terms:
        return terms[term]
    if len(term) < _SHORTEST_PREFIX:
        return 0.0
    near = (
        weight
        for other, weight in terms.items()
        if len(other) >= _SHORTEST_PREFIX and (other.startswith(term) or term.startswith(other))
    )
    return _PREFIX * max(near, default=0.0)


def _listing(searchable: Sequence[bytes]) -> str:
    """Describe the searchable tools for the model in at most about 4,000 characters, one line per tool or namespace."""
    lines = []
    room = _LISTED
    for number, source in enumerate(searchable):
        declared = _DECLARED.decode(source)
        about = " ".join(declared.about.split())
        if declared.type == "namespace":
            about = f"{about} ({len(declared.tools)} tools)".strip()
        line = f"- {declared.title}: {about}"[:_LONGEST_LINE].rstrip(": ")
        room -= len(line)
        if room < 0:
            lines.append(f"- and {len(searchable) - number} more")
            break
        lines.append(line)
    return "\n".join(["There are:", *lines])
