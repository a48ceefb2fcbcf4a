"""`GET /v1/antiphon/capabilities`: shows, for one model, how the gateway treats each request field, item and tool.

Lives here: the answer's shape, and the changes that the settings make to the table of supported fields. Not here: the
table (`translation/request/field_support.py`), the choice of an upstream (`engine/exchange/model_routes.py`).

Invariant: the handler calls no upstream. The answer contains the names of upstreams, but none of their addresses or
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from antiphon.api.described import Parameter
from antiphon.api.endpoint import Area, Route
from antiphon.api.http import ApiRequest, ApiResponse, json_response, query_value
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.field_support import GROUPS, HOSTED_SUPPORT, support_of
from antiphon.translation.support import SupportKind, handled, rejected, sent

_FETCHED = "content.input_file.file_url"
_NOT_FETCHED = rejected("fetching files is switched off here")
_BY_ID = frozenset({"content.input_file.file_id", "content.input_image.file_id"})
_NO_FILES = rejected("there are no files here")
_LIMITED = handled("limits the calls of tools that run here")
_ALLOWED = sent("the settings let it pass")
_TOOL_REFUSED = rejected("does not run here, and the settings refuse requests with it (`tools.unavailable`)")
_KEYS = dict(zip(GROUPS, ("fields", "parameters", "include", "tools", "tool_choice", "items", "content"), strict=True))

_TOOLS = frozenset(
    name
    for group, key in _KEYS.items()
    if key == "tools"
    for name in GROUPS[group]
    if name.count(".") == 1 or name == "any other tool"
)
"""The names of tools, without the names of their members."""


class SupportShown(Struct):
    support: SupportKind
    note: str | None


_Group = dict[str, SupportShown]


class CapabilitiesObject(Struct, kw_only=True):
    """How Antiphon treats each part of a request for one model. The keys of each group are the names that the header
    `antiphon-ignored` uses. For a native upstream the groups are empty, because Antiphon forwards requests
    unchanged."""

    object: Literal["antiphon.capabilities"] = "antiphon.capabilities"
    model: str | None
    upstream: str
    mode: str
    profile: str | None
    fields: _Group
    parameters: _Group
    include: _Group
    tools: _Group
    tool_choice: _Group
    items: _Group
    content: _Group
    allowed: list[str]
    added: list[str]
    limits: dict[str, int | None]


@dataclass(frozen=True, slots=True)
class Capabilities(Area):
    """Serves `GET /v1/antiphon/capabilities` without a request to an upstream.

    - `limits`: the configured limits, by the names of the settings.
    - `fetches`: whether Antiphon fetches files by URL. `files`: whether clients can upload files.
    - `tools`: the types of the tools that Antiphon itself runs.
    - `refuses_tools`: whether Antiphon refuses a request with any other hosted tool.
    """

    routes: ModelRoutes
    limits: Mapping[str, int]
    fetches: bool = True
    files: bool = True
    tools: frozenset[str] = frozenset()
    refuses_tools: bool = False

    @Route(
        "GET",
        "/v1/antiphon/capabilities",
        "Get capabilities",
        CapabilitiesObject,
        parameters=(
            Parameter(
                "model",
                str,
                "The model to describe. Without it, the answer describes models that match no entry of `models`.",
            ),
        ),
        errors=(400, 404),
    )
    async def show(self, request: ApiRequest) -> ApiResponse:
        """Show the capabilities for `?model=…`, or without it for models that no entry of the setting `models` matches.

        Each group maps the name of a request part, as in `antiphon-ignored`, to `{support, note}`."""
        model = query_value(request, "model")
        unnamed = "There is no upstream for models that no rule names; ask for one with '?model='."
        route = self.routes.serving(model, unnamed, request.access)
        native = route.mode == "native"
        profile = route.profile if model is None else route.profile.for_model(route.model or model)
        groups: dict[str, Any] = {
            key: {} if native else {name: self._shown(name, route, profile) for name in self._names(group)}
            for group, key in _KEYS.items()
        }
        return json_response(
            CapabilitiesObject(
                model=model,
                upstream=route.upstream,
                mode=route.mode,
                profile=None if native else profile.name,
                **groups,
                # Only the names of the members: clients must not see the values that the operator configured.
                allowed=[] if native else sorted(route.fields),
                added=[] if native else sorted(route.extra),
                limits={**self.limits, "context_tokens": route.context_tokens},
            )
        )

    def _names(self, group: str) -> tuple[str, ...]:
        """The names in a group. The group of tools also has the tools of installed extension packages."""
        more = (f"tools.{one}" for one in sorted(self.tools)) if _KEYS[group] == "tools" else ()
        return tuple(dict.fromkeys((*GROUPS[group], *more)))

    def _shown(self, name: str, route: ModelRoute, profile: UpstreamProfile) -> SupportShown:
        if self._runs(name):
            return SupportShown(HOSTED_SUPPORT.kind, HOSTED_SUPPORT.note)
        found = support_of(profile, name, context_tokens=route.context_tokens)
        if name == _FETCHED and not self.fetches:
            found = _NOT_FETCHED
        elif name in _BY_ID and not self.files:
            found = _NO_FILES
        elif name == "max_tool_calls" and self.tools:
            found = _LIMITED
        elif name in route.fields:
            found = _ALLOWED
        elif self.refuses_tools and name in _TOOLS and found.kind == "ignored":
            found = _TOOL_REFUSED
        return SupportShown(found.kind, found.note or None)

    def _runs(self, name: str) -> bool:
        """Whether `name` belongs to a tool that Antiphon itself runs."""
        group, _, kind = name.replace("include:", "include.", 1).partition(".")
        if group == "include":
            kind = kind.partition("_call")[0]
        return group in ("tools", "tool_choice", "include") and kind in self.tools
