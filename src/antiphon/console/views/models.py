"""Shows the models, tools and containers of this server, and how the server treats each part of a request.

This module groups models that the server treats in the same way. `translation/request/field_support.py` defines the
treatment of each part, and `tools/` runs tools.

Invariant: addresses of MCP servers and of upstreams appear only for operators.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import msgspec

from antiphon.api.http import ApiResponse
from antiphon.api.models import ModelListing
from antiphon.config.problems import NotYaml
from antiphon.config.yaml_text import read_yaml
from antiphon.console.owner_lists import part_of
from antiphon.console.reading import Reading, UpstreamFacts
from antiphon.console.site import PageCall, PageRoute
from antiphon.console.slow_parts import SlowPart
from antiphon.console.views.doctor import doctor_values
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.journal import Entry, EntryFilter, LiveRequest
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.request.field_support import HOSTED_SUPPORT

_SECONDS: Final = 5.0
"""The time that each upstream has to list its models."""
_DAY: Final = 86_400.0
_MOST_COLUMNS: Final = 12
_PER_PAGE: Final = 50
GROUPS: Final = {
    "fields": "Fields",
    "parameters": "Sampling, templates, guided decoding",
    "include": "Values of include",
    "tools": "Tools",
    "tool_choice": "Forms of tool_choice",
    "items": "Items of input",
    "content": "Content parts",
}
SIGNS: Final = {"sent": ("✓", "good"), "handled": ("✓", "info"), "ignored": ("○", "warn"), "rejected": ("✕", "bad")}
_HOSTED: Final = {
    "file_search": "vector_stores.enabled",
    "web_search": "web_search.provider",
    "code_interpreter": "code_interpreter.sandbox",
    "mcp": "mcp.enabled",
    "tool_search": "",
    "image_generation": "",
    "computer": "",
}
"""The hosted tools of OpenAI's API. The value is the setting that enables the tool, or empty."""


Capabilities = Mapping[str, Any]
"""The capabilities of a model, as the API returns them: facts, and groups that map names to `SupportJson`."""


class SupportJson(TypedDict):
    """How the server treats one part of a request."""

    support: str
    note: str | None


class McpServersShown(TypedDict):
    """The section `mcp` of the effective settings. `connectors` maps the name of each connector to its URL."""

    known: bool
    enabled: bool
    allow: list[str]
    connectors: dict[str, str]


@dataclass(frozen=True, slots=True)
class Column:
    """Models that the server treats alike, with their capabilities."""

    models: Sequence[str]
    shown: Capabilities


@dataclass(frozen=True, slots=True)
class Tool:
    """A hosted tool. `runs` is true if the server runs the tool. `support` and `note` describe how the server treats
    the tool's declaration. `setting` enables the tool."""

    name: str
    runs: bool
    support: str
    note: str
    setting: str


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """An upstream, with its newest request, its newest failure, and the number of its failures in the last day.
    `retrying` are the background responses that now retry a model call because the upstream is unreachable."""

    facts: UpstreamFacts
    latest: Entry | None
    failed: Entry | None
    failures: int
    retrying: Sequence[LiveRequest] = ()

    @property
    def attempts(self) -> int:
        """The number of failed attempts of the calls in `retrying`."""
        return sum(one.retries for one in self.retrying)

    @property
    def answered(self) -> bool:
        """Whether the upstream sent at least one byte for the newest request."""
        latest = self.latest
        return latest is not None and (latest.first is not None or latest.outcome == "completed")


class ModelsView:
    """The page of models and tools."""

    nav = (("Models", "/models"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._states: SlowPart[list[UpstreamState]] = SlowPart(reading.turn)
        self._lists: SlowPart[ModelListing] = SlowPart(nullcontext())

    @PageRoute("GET", "/models")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show the models with their capabilities, the hosted tools, the MCP servers and the containers."""
        containers, no_containers = await self._containers(call)
        listed = await self._lists.shown(call, "", self._list)
        values: dict[str, object] = {} if listed is None else await self._values(call, listed)
        if call.session.is_operator:
            values |= doctor_values(self._reading)
        return call.show(
            "models.html",
            {"doctor": None, "name": _filter_of(call)} | values,
            listed=listed is not None,
            has_upstreams=call.session.is_operator and any(True for _ in self._reading.upstreams()),
            states=await self._states.shown(call, "", self._upstreams) if call.session.is_operator else None,
            containers=containers,
            no_containers=no_containers,
        )

    @PageRoute("GET", "/models/list")
    async def show_list(self, call: PageCall) -> ApiResponse:
        """Return the table of the models. The browser loads this part if the page did not wait for the upstreams."""
        return call.show("models_list.html", await self._loaded(call))

    @PageRoute("GET", "/models/support")
    async def show_support(self, call: PageCall) -> ApiResponse:
        """Return the part with the treatment of each part of a request, and with the tools. The browser loads this part
        if the page did not wait for the upstreams."""
        return call.show("models_support.html", await self._loaded(call))

    @PageRoute("GET", "/models/upstreams", operators=True)
    async def show_upstreams(self, call: PageCall) -> ApiResponse:
        """Return the table of the upstreams. The browser loads this part if the page did not wait for it."""
        return call.show("models_upstreams.html", states=await self._states.whole("", self._upstreams))

    async def _list(self) -> ModelListing:
        return await self._reading.listing(_SECONDS)

    async def _loaded(self, call: PageCall) -> dict[str, object]:
        return await self._values(call, await self._lists.whole("", self._list))

    async def _values(self, call: PageCall, listed: ModelListing) -> dict[str, object]:
        """Return the variables of the parts that need the upstreams' lists of models."""
        name = _filter_of(call)
        names = self._reading.names(listed, call.caller)
        why_not = self._reading.why_not if call.session.is_operator else lambda _: ""
        # No list of an upstream has the models that the settings disable.
        names += [model for model in self._reading.models if model not in names and why_not(model)]
        chosen = [one for one in names if name.casefold() in one.casefold()]
        if not chosen and why_not(name).startswith("disabled by "):
            # A rule with a glob disables the model, so the settings do not have the model's name.
            chosen = [name]
        part = part_of(call, chosen, per_page=_PER_PAGE)
        described = await self._described(call, part.items)
        columns = alike(described)
        rest = await self._capabilities(call, None)
        first = rest or (columns[0].shown if columns else None)
        shown = columns if columns or rest is None else [Column(("any other model",), rest)]
        return {
            "part": part,
            "failures": {upstream: error.message for upstream, error in listed.failures.items()},
            "name": name,
            "capabilities": dict(described),
            "why_not": {model: why_not(model) for model in part.items},
            "column_of": {model: number for number, column in enumerate(columns, 1) for model in column.models},
            "columns": shown[:_MOST_COLUMNS],
            "more_columns": max(0, len(shown) - _MOST_COLUMNS),
            "rows": {key: rows_of(key, shown[:_MOST_COLUMNS]) for key in GROUPS},
            "groups": GROUPS,
            "signs": SIGNS,
            "tools": hosted_tools(first["tools"]) if first is not None else [],
            "native": first is not None and first["mode"] == "native",
            "servers": mcp_servers(self._reading.settings),
        }

    async def _upstreams(self) -> list[UpstreamState]:
        """Return the upstreams, each with its newest request and its newest failure of the last day."""
        journal, since = self._reading.journal, time.time() - _DAY
        running = [one for each in await self._reading.in_flight("") for one in each.requests]
        # In another state, the upstream has answered the newest attempt.
        calling = [one for one in running if one.retries and one.state == State.CALLING.value]
        found = []
        for one in self._reading.upstreams():
            # This query counts no entries, because counting reads every entry of the upstream.
            latest = await journal.newer(EntryFilter(upstream=one.name, since=since), than="", limit=1)
            failed = await journal.list(EntryFilter(upstream=one.name, fault="upstream", since=since), limit=1)
            retrying = [live for live in calling if live.upstream == one.name]
            newest, failure = next(iter(latest), None), next(iter(failed.entries), None)
            found.append(UpstreamState(one, newest, failure, failed.total, retrying))
        return found

    async def _described(self, call: PageCall, models: Iterable[str]) -> list[tuple[str, Capabilities]]:
        found = []
        for model in models:
            shown = await self._capabilities(call, model)
            if shown is not None:
                found.append((model, shown))
        return found

    async def _capabilities(self, call: PageCall, model: str | None) -> Capabilities | None:
        query = {} if model is None else {"model": model}
        try:
            shown: Capabilities = await self._reading.json("GET", "/v1/antiphon/capabilities", call.caller, query=query)
            return shown
        except ApiError as error:
            if error.status >= 500:
                raise
            return None

    async def _containers(self, call: PageCall) -> tuple[object, str]:
        """Return a page of the owner's containers, and an empty text. If there is no such page, returns None and the
        reason."""
        if not call.owner:
            return None, "Choose an owner to see containers."
        query = {"limit": "50"} | ({"after": call.query("after")} if call.query("after") else {})
        try:
            return await self._reading.json("GET", "/v1/containers", call.caller, query=query), ""
        except ApiError as error:
            if error.code == "unknown_url":
                told = "This server runs no code. An operator can change this with 'code_interpreter.sandbox'."
                return None, told
            if error.status >= 500:
                raise
            raise InvalidRequest(error.message, code=error.code) from None


def _filter_of(call: PageCall) -> str:
    return call.query("model").strip()[:200]


def alike(described: Iterable[tuple[str, Capabilities]]) -> list[Column]:
    """Group the models into columns. Models with equal capabilities share a column. The first column has the most
    models."""
    groups: dict[bytes, tuple[list[str], Capabilities]] = {}
    for model, shown in described:
        key = msgspec.json.encode({name: value for name, value in shown.items() if name != "model"})
        groups.setdefault(key, ([], shown))[0].append(model)
    columns = [Column(tuple(models), shown) for models, shown in groups.values()]
    return sorted(columns, key=lambda one: -len(one.models))


def rows_of(group: str, columns: Sequence[Column]) -> list[tuple[str, list[SupportJson | None]]]:
    """Return one row for each name in this group: the name, and its support in each column. The support is None if the
    column's models do not have this name."""
    names = dict.fromkeys(name for column in columns for name in column.shown[group])
    return [(name, [column.shown[group].get(name) for column in columns]) for name in names]


def hosted_tools(tools: Mapping[str, SupportJson]) -> list[Tool]:
    """Return the hosted tools, including the tools of installed extensions."""
    hosted = {name.removeprefix("tools."): one for name, one in tools.items() if name.count(".") == 1}
    names = [*_HOSTED, *(name for name, one in hosted.items() if name not in _HOSTED and _runs(one))]
    return [
        Tool(name, _runs(hosted[name]), hosted[name]["support"], hosted[name]["note"] or "", _HOSTED.get(name, ""))
        for name in names
        if name in hosted
    ]


def mcp_servers(settings: str) -> McpServersShown:
    """Return the values of the section `mcp` in the effective settings."""
    try:
        whole = read_yaml(settings)
    except NotYaml:
        whole = None
    section = whole.get("mcp") if isinstance(whole, dict) else None
    given = section if isinstance(section, dict) else {}
    connectors = given.get("connectors") or {}
    return {
        "known": bool(given),
        "enabled": bool(given.get("enabled")),
        "allow": [str(one) for one in given.get("allow") or ()],
        "connectors": {str(name): str(one.get("url", "")) for name, one in connectors.items() if isinstance(one, dict)},
    }


def _runs(shown: SupportJson) -> bool:
    return (shown["support"], shown["note"]) == (HOSTED_SUPPORT.kind, HOSTED_SUPPORT.note)
