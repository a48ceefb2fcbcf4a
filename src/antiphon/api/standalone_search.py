"""Serves `POST /v1/alpha/search`: a web search that a client requests outside a response.

Codex (since 0.144) offers its model a search function that takes several commands in one call. Codex sends the commands
to this endpoint, and gives the model the answer. OpenAI does not document the path.

This module defines the form of the request, calls the tool `web_search` for each command, and writes the text of the
answer. `tools/web_search.py` searches and reads pages.

The sidecar stores nothing between requests. Therefore the URL of a page serves as its id. To follow a link, the sidecar
reads the page a second time and counts its links up to the requested number.

Invariants: if a command fails, the text of the answer reports it, because an error would make the client abandon its
current task. No command exceeds the limits in the request's `settings`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from msgspec import UNSET, Raw, Struct, UnsetType

from antiphon.api.endpoint import Area, Route
from antiphon.api.http import ApiRequest, ApiResponse, ignored_fields, json_response, read_known
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, ToolResult, ToolRunner
from antiphon.errors import ApiError, InvalidRequest, invalid_parameter, missing_parameter
from antiphon.ids import new_id
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.json import encode, given

PATH = "/v1/alpha/search"

_TOOL = "web_search"
_MOST_COMMANDS = 16
_BYTES_OF_A_TOKEN = 4
_MOST_CHARACTERS = 200_000
_LENGTHS = {"short": "low", "medium": "medium", "long": "high"}
_OFFSET = re.compile(r"(?:UTC)?([+-])(\d{1,2})(?::?(\d{2}))?")
_CITE = re.compile(r"\{cite:(\d+)\} ?")
_SCHEME = re.compile(r"^[a-z]+://", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_CUT = "\n[The answer was cut off here: it is too long.]"


class SearchQuery(Struct):
    """A search for the text `q`. `recency` is the maximum age of a result in days."""

    q: str = ""
    recency: int | None = None
    domains: list[str] | None = None


class OpenPage(Struct):
    """Reads the page with the URL `ref_id`, from the line `lineno` on."""

    ref_id: str
    lineno: int | None = None


class ClickLink(Struct):
    """Follows the link number `id` on the page `ref_id`, and reads the page to which the link leads."""

    ref_id: str
    id: int


class FindInPage(Struct):
    """Finds the text `pattern` in the page `ref_id`."""

    ref_id: str
    pattern: str


class TellTime(Struct):
    """Reports the current time at an offset such as `+03:00`."""

    utc_offset: str = ""


class SearchCommands(Struct):
    """The commands of a search request, in the form that Codex sends. Antiphon runs at most 16 commands.
    `response_length` is `short`, `medium` or `long`."""

    search_query: list[SearchQuery] | None = None
    open: list[OpenPage] | None = None
    click: list[ClickLink] | None = None
    find: list[FindInPage] | None = None
    time: list[TellTime] | None = None
    response_length: str | None = None
    image_query: Raw = Raw()
    screenshot: Raw = Raw()
    finance: Raw = Raw()
    weather: Raw = Raw()
    sports: Raw = Raw()


_MISSING = ("image_query", "screenshot", "finance", "weather", "sports")
"""Commands that Antiphon does not support."""


class SearchDomains(Struct):
    """The domains of a search. A domain includes its subdomains."""

    allowed_domains: list[str] | None = None
    blocked_domains: list[str] | None = None


class SearchSettings(Struct):
    """Limits that apply to all commands of a search request. Commands may read pages only if `external_web_access` is
    `true`, `live` or absent."""

    filters: SearchDomains | None = None
    user_location: Raw = Raw()
    search_context_size: str | None = None
    external_web_access: bool | str | None = None


class StandaloneSearchBody(Struct):
    """The body of a web search that is not part of a response. The text of the answer has at most `max_output_tokens`
    tokens. One token counts as four characters."""

    id: str | None = None
    model: str | None = None
    reasoning: Raw = Raw()
    input: Raw = Raw()
    commands: SearchCommands | None = None
    settings: SearchSettings | None = None
    max_output_tokens: int | None = None


class SearchHit(Struct):
    """One result of a search. `ref_id` is the URL of the page."""

    type: Literal["text_result"]
    ref_id: str
    url: str
    title: str
    snippet: str


class StandaloneSearchAnswer(Struct):
    """The answer. `output` has the result texts of all commands in order, errors included. `results` has the hits of
    the searches."""

    output: str
    results: list[SearchHit] | UnsetType = UNSET


class _Declaration(TypedDict, total=False):
    """A declaration of the tool `web_search`. `filters` has the lists `allowed_domains` and `blocked_domains`."""

    type: str
    filters: dict[str, list[str]]
    user_location: Raw
    search_context_size: str


@dataclass(frozen=True, slots=True)
class _Command:
    """One command as a call of the tool, or as an error text if Antiphon cannot run the command."""

    title: str
    name: str = ""
    arguments: dict[str, object] = field(default_factory=dict)
    domains: list[str] | None = None
    error: str = ""


class StandaloneSearch(Area):
    """Serves `POST /v1/alpha/search` with the tool `web_search`. `clock` returns seconds since the epoch."""

    def __init__(self, tools: ToolRunner, clock: Callable[[], float] = time.time) -> None:
        self._tools = tools
        self._clock = clock

    @Route("POST", PATH, "Search the web, as Codex requests it", StandaloneSearchAnswer, body=StandaloneSearchBody)
    async def search(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/alpha/search`: run all commands concurrently. The answer has the results in the order of the
        commands.

        Raises `InvalidRequest` (`unsupported_tool`) without a configured web search, and for wrong settings. If a
        command fails, the text of the answer reports the failure, and the request itself succeeds.

            {"commands": {"search_query": [{"q": "msgspec release", "recency": 30}]}, "settings": {}}
        """
        if _TOOL not in self._tools.types:
            raise InvalidRequest(
                "This server has no web search. Ask the operator to set 'web_search.provider'.",
                code="unsupported_tool",
            )
        request.access.check_tool(_TOOL)
        body, ignored = read_known(request, StandaloneSearchBody)
        if body.commands is None:
            raise missing_parameter("commands")
        settings = body.settings or SearchSettings()
        if body.max_output_tokens is not None and body.max_output_tokens < 1:
            raise invalid_parameter("max_output_tokens", "expected an integer of 1 or more")
        whole = _declaration(settings, body.commands.response_length)
        # `prepare` checks the settings before any search, and returns no `open_page` if pages are disabled.
        prepared = await self._tools.prepare(request.owner, new_id("search"), (HostedTool(0, _TOOL, encode(whole)),))
        if isinstance(prepared, ApiError):
            raise _renamed(prepared)
        reads = any(function.name == "open_page" for function in prepared[0].functions)
        commands = list(_commands(body.commands, settings, self._clock(), reads=reads))
        spare = commands[_MOST_COMMANDS:]
        run = new_id("search")
        answers = await asyncio.gather(
            *(self._run(request.owner, run, whole, one) for one in commands[:_MOST_COMMANDS])
        )
        told = [f"{one.title}\n\n{text}" for one, (text, _) in zip(commands, answers, strict=False)]
        if spare:
            told.append(
                f"{len(spare)} further commands were not run, because one request may have at most {_MOST_COMMANDS} "
                "commands."
            )
        output = "\n\n---\n\n".join(told) or "The request contains no command."
        limit = min((body.max_output_tokens or _MOST_CHARACTERS) * _BYTES_OF_A_TOKEN, _MOST_CHARACTERS)
        answer = StandaloneSearchAnswer(output if len(output) <= limit else output[:limit] + _CUT)
        if body.commands.search_query:
            answer.results = [hit for _, hits in answers for hit in hits]
        return json_response(answer, headers=ignored_fields(ignored))

    async def _run(self, owner: str, run: str, whole: _Declaration, command: _Command) -> tuple[str, list[SearchHit]]:
        """Run one command. Returns the command's text for the answer, and the hits if the command was a search."""
        if command.error:
            return command.error, []
        declared = whole
        if command.domains is not None:
            declared = whole.copy()
            declared["filters"] = {**whole.get("filters", {}), "allowed_domains": command.domains}
        result = await self._tools.run(
            HostedCall(
                new_id("call"),
                new_id("ws"),
                CallTarget(CallKind.WEB_SEARCH, command.name),
                encode(command.arguments).decode(),
                HostedTool(0, _TOOL, encode(declared)),
                owner,
                run,
            )
        )
        found = _found(result) if command.name == "web_search" else []
        numbered = _CITE.sub(lambda mark: f"[{int(mark[1]) + 1}] " if found else "", result.output)
        return numbered, found


def _declaration(settings: SearchSettings, length: str | None) -> _Declaration:
    """The request's settings, converted to a declaration of the tool `web_search`."""
    declared: _Declaration = {"type": _TOOL}
    if settings.filters is not None:
        declared["filters"] = {
            name: [_domain(one) for one in domains]
            for name in ("allowed_domains", "blocked_domains")
            if (domains := getattr(settings.filters, name)) is not None
        }
    if given(settings.user_location):
        declared["user_location"] = settings.user_location
    size = _LENGTHS.get(length or "") or settings.search_context_size
    if size is not None:
        declared["search_context_size"] = size
    return declared


def _commands(commands: SearchCommands, settings: SearchSettings, now: float, *, reads: bool) -> Iterator[_Command]:
    allowed = (settings.filters.allowed_domains if settings.filters is not None else None) or []
    for query in commands.search_query or ():
        # Models send an empty query if they do not want to search after all.
        if query.q.strip():
            yield _search(query, [_domain(one) for one in allowed])
    for opened in commands.open or ():
        line = max(opened.lineno or 1, 1)
        yield _page(f"Page {opened.ref_id[:500]}", opened.ref_id, settings, {"line": line}, reads=reads)
    for click in commands.click or ():
        title = f"Link {click.id} of {click.ref_id[:500]}"
        yield _page(title, click.ref_id, settings, {"line": 1, "link": click.id}, reads=reads)
    for find in commands.find or ():
        title = f"{find.pattern[:200]!r} in {find.ref_id[:500]}"
        yield _page(title, find.ref_id, settings, {"pattern": find.pattern}, reads=reads)
    for asked in commands.time or ():
        yield _Command(f"Time at UTC{asked.utc_offset[:10]}", error=_time(asked.utc_offset, now))
    for name in _MISSING:
        if given(getattr(commands, name)):
            yield _Command(f"Command {name}", error="This server does not have this command. Use search_query instead.")


def _search(query: SearchQuery, allowed: list[str]) -> _Command:
    title = f"Results for {query.q[:500]!r} (a result's ref_id is its address)"
    arguments: dict[str, object] = {"query": query.q}
    if query.recency is not None and query.recency > 0:
        arguments["days"] = query.recency
    wanted = [_domain(one) for one in query.domains or ()]
    if not wanted:
        return _Command(title, "web_search", arguments)
    # The search uses only domains that both the command and the settings allow. A domain includes its subdomains.
    both = [one for one in wanted if not allowed or any(_within(one, other) for other in allowed)]
    both += [other for other in allowed if any(_within(other, one) for one in wanted if one not in both)]
    if not both:
        return _Command(title, error="The request does not allow these domains.")
    return _Command(title, "web_search", arguments, domains=both)


def _page(title: str, ref: str, settings: SearchSettings, arguments: dict[str, object], *, reads: bool) -> _Command:
    if not reads:
        return _Command(title, error="This server does not open pages. Use only search_query.")
    if settings.external_web_access not in (None, True, "live"):
        return _Command(title, error="The request's settings allow no access to live pages. Use only search_query.")
    ref = ref.strip()
    if not _ADDRESS.match(ref):
        return _Command(title, error="This ref_id is not a page's address. Use the address (https://…) as ref_id.")
    name = "find_in_page" if "pattern" in arguments else "open_page"
    return _Command(title, name, {"url": ref, **arguments})


def _found(result: ToolResult) -> list[SearchHit]:
    """The hits in the tool's result, each with title, URL and text."""
    texts = _CITE.split(result.output)[2::2]
    hits = []
    for source, text in zip(result.sources, texts, strict=False):
        url, title = str(source.annotation.get("url")), str(source.annotation.get("title"))
        snippet = text.partition(f"\n{url}\n")[2].strip()
        hits.append(SearchHit("text_result", url, url, title, snippet))
    return hits


def _time(offset: str, now: float) -> str:
    found = _OFFSET.fullmatch(offset.strip())
    if found is None:
        return "Give utc_offset as '+03:00'."
    minutes = int(found[2]) * 60 + int(found[3] or 0)
    shifted = time.gmtime(now + 60 * (minutes if found[1] == "+" else -minutes))
    return time.strftime("%A, %Y-%m-%d %H:%M:%S", shifted)


def _domain(text: str) -> str:
    """The domain in `text`, which may be a domain or a whole URL, because models write both."""
    return _SCHEME.sub("", text.strip().lower()).partition("/")[0]


def _within(domain: str, other: str) -> bool:
    return domain == other or domain.endswith("." + other)


def _renamed(error: ApiError) -> ApiError:
    """Convert an error about a field of the tool's declaration into an error about the corresponding field of the
    request's `settings`."""
    message, param = error.message.replace("tools[0]", "settings"), (error.param or "").replace("tools[0]", "settings")
    return ApiError(message, param=param or None, code=error.code, status=error.status, type=error.type)
