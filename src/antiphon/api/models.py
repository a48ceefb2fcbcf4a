"""Serves the list of models in OpenAI's shape, and the capabilities of the gateway for one model.

This module requests the upstreams' lists, and reads the different forms of their answers. The module applies the
operator's allow-list and aliases, and caches lists for a short time. The module also serves `GET
/v1/antiphon/capabilities`: how the gateway treats each request field, item and tool under the current settings. The
exchange decides whether a request may use a model. `translation/request/field_support.py` has the table of supported
fields.

Invariants: a client never sees a list that an upstream sent for other credentials. If Antiphon forwards clients'
credentials, the cache has one entry for each credential, under a keyed digest. The capabilities need no call of an
upstream. The capabilities show the names of upstreams, but no addresses and no keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_bytes
from types import MappingProxyType
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from antiphon.api.endpoint import Area, Route
from antiphon.api.http import UPSTREAM_ERRORS, ApiRequest, ApiResponse, Parameter, json_response, query_value
from antiphon.engine.exchange.failure import transport_failure
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM, ModelRoute, ModelRoutes, no_such_model
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.errors import ApiError, UpstreamFailed
from antiphon.redaction import KnownSecrets, bearer_token
from antiphon.translation.answer.upstream_errors import is_about_the_key, map_upstream_answer, own_credentials_refused
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.profiles.profile import SupportKind, handled, rejected, sent
from antiphon.translation.request.field_support import GROUPS, HOSTED_SUPPORT, support_of
from antiphon.types.json import decode_any
from antiphon.types.transport import Headers, header_value

_CREDENTIALS = 256
_ERROR_BYTES = 256 * 1024
_PASSED = frozenset({"traceparent", "tracestate", "x-request-id"})
# Statuses of a server that has no list of models. Others mean a refused key or a broken server.
_NO_LIST = frozenset({404, 405, 501})


_FETCHED = "content.input_file.file_url"
_NOT_FETCHED = rejected("this server does not fetch files (`fetch.enabled`)")
_BY_ID = frozenset({"content.input_file.file_id", "content.input_image.file_id"})
_NO_FILES = rejected("this server stores no files (`files.enabled`)")
_LIMITED = handled("limits the calls of hosted tools that Antiphon runs")
_ALLOWED = sent("the settings allow it, so Antiphon sends it to the upstream")
_TOOL_REFUSED = rejected("this server does not run the tool, and refuses requests with it (`tools.unavailable`)")
_KEYS = dict(zip(GROUPS, ("fields", "parameters", "include", "tools", "tool_choice", "items", "content"), strict=True))
_TOOLS = frozenset(
    name
    for group, key in _KEYS.items()
    if key == "tools"
    for name in GROUPS[group]
    if name.count(".") == 1 or name == "any other tool"
)
"""The names of tools in the table of supported request parts. Names of tools' members are left out."""


class ModelObject(Struct, kw_only=True, frozen=True):
    """A model in OpenAI's shape. `created` is in seconds since the epoch. `created` is 0 if the upstream does not
    report it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "upstream"


class ModelList(Struct, kw_only=True):
    """The list of models. If a client sends the parameter `client_version`, as Codex does, the list also has an empty
    array `models`."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
    models: list[ModelObject] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Describes how Antiphon requests the list of models of one upstream.

    The request carries the client's Authorization if `passthrough` is true, and the client headers in `headers`. If
    `allowed` is not empty, the list has only the models in `allowed`.
    """

    passthrough: bool = False
    allowed: tuple[str, ...] = ()
    headers: frozenset[str] = frozenset()

    def sends(self, name: str) -> bool:
        """Return whether Antiphon forwards this client header (a lower-case name) to the upstream."""
        return name in _PASSED or name in self.headers or (name == "authorization" and self.passthrough)


@dataclass(frozen=True, slots=True)
class ModelListing:
    """The models of all upstreams. `failures` has the error of each upstream whose list is missing, by the upstream's
    name."""

    models: tuple[ModelObject, ...]
    failures: Mapping[str, ApiError]


class ModelCatalog(Area):
    """Serves `/v1/models`: the models that clients may use.

    `sources` are the upstreams by name. With `routes`, an upstream contributes only the models whose requests would go
    to that upstream. The list also has the exact model names in the setting `models`. A list stays in the cache for
    `seconds`. With several upstreams, each has `patience` seconds to answer. If an upstream fails, the list lacks only
    that upstream's models.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        sources: Mapping[str, ModelSource] = MappingProxyType({DEFAULT_UPSTREAM: ModelSource()}),
        routes: ModelRoutes | None = None,
        seconds: float = 10.0,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        secrets: KnownSecrets = (),
    ) -> None:
        self._upstream = upstream
        self._secrets = secrets
        self._sources = sources
        self._routes = routes
        self._seconds = seconds
        self._patience = patience
        self._clock = clock
        self._key = token_bytes(32)
        self._known: OrderedDict[bytes, tuple[float, ModelListing]] = OrderedDict()

    @Route("GET", "/v1/models", "List models", ModelList, errors=UPSTREAM_ERRORS)
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/models`: list the models that the client's key allows. Raises `ApiError` if every upstream fails.

        Codex sends `client_version` and reads the field `models`, which describes how to prompt each model. Codex logs
        an error if the field is missing. Antiphon knows no such descriptions of an upstream's models. Antiphon
        therefore sends an empty field, and Codex uses its built-in descriptions.
        """
        told = query_value(request, "client_version") is not None
        models = [one for one in await self._models(request) if request.access.allows_model(one.id)]
        return json_response(ModelList(data=models, models=[] if told else UNSET))

    @Route("GET", "/v1/models/{*}", "Get a model", ModelObject, errors=UPSTREAM_ERRORS)
    async def get(self, request: ApiRequest, name: str) -> ApiResponse:
        """`GET /v1/models/{model}`: get one model, whose name may contain slashes.

        Raises `NotFound` (`model_not_found`), also for a model that the client's key does not allow.
        """
        for model in await self._models(request):
            if model.id == name and request.access.allows_model(name):
                return json_response(model)
        raise no_such_model(name[:256])

    async def listing(self, seconds: float) -> ModelListing:
        """Return the models of all upstreams, and the errors of the upstreams that fail. The requests carry no client's
        headers. Each upstream has `seconds` to answer."""
        key, now = self._digest(()), self._clock()
        known = self._known.get(key)
        if known is not None and now < known[0]:
            return known[1]
        found = await self._gather((), seconds)
        # Clients have more patience than this call, so they do not get its incomplete list.
        if not found.failures:
            self._keep(key, now, found)
        return found

    async def _models(self, request: ApiRequest) -> tuple[ModelObject, ...]:
        headers = self._upstream_headers(request.headers)
        key, now = self._digest(headers), self._clock()
        known = self._known.get(key)
        if known is not None and now < known[0]:
            return known[1].models
        found = await self._gather(headers, self._patience if len(self._sources) > 1 else None)
        if found.failures and not found.models:
            raise next(iter(found.failures.values()))
        self._keep(key, now, found)
        return found.models

    def _keep(self, key: bytes, now: float, found: ModelListing) -> None:
        self._known[key] = (now + self._seconds, found)
        self._known.move_to_end(key)
        while len(self._known) > _CREDENTIALS:
            self._known.popitem(last=False)

    async def _gather(self, headers: Headers, seconds: float | None) -> ModelListing:
        """The models of all upstreams. If one of several upstreams fails, only its models are missing."""
        answers = await asyncio.gather(
            *(self._ask(name, source, headers, seconds) for name, source in self._sources.items()),
            return_exceptions=True,
        )
        found: dict[str, ModelObject] = {}
        failures: dict[str, ApiError] = {}
        for (name, source), answer in zip(self._sources.items(), answers, strict=True):
            if isinstance(answer, ApiError):
                failures[name] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for model in _permit(answer, source.allowed):
                    if self._goes_to(model.id, name):
                        found.setdefault(model.id, model)
        for rule in self._routes.rules if self._routes is not None else ():
            if rule.exact and self._goes_to(rule.pattern, rule.route.upstreams[0]):
                found.setdefault(rule.pattern, ModelObject(id=rule.pattern))
        return ModelListing(tuple(found.values()), failures)

    def _goes_to(self, model: str, upstream: str) -> bool:
        if self._routes is None:
            return True
        route = self._routes.choose(model)
        return upstream in route.upstreams and route.serves(model)

    async def _ask(
        self, name: str, source: ModelSource, headers: Headers, seconds: float | None
    ) -> tuple[ModelObject, ...]:
        """The models of one upstream. Raises `ApiError` if the upstream fails, or does not answer within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._read(name, source, headers)
        except TimeoutError:
            late = UpstreamFailed("The upstream did not list its models in time.", code="models_not_listed")
            late.operation, late.upstream = "list_models", name
            raise late from None
        except ApiError as error:
            error.operation, error.upstream = "list_models", name
            raise

    async def _read(self, name: str, source: ModelSource, headers: Headers) -> tuple[ModelObject, ...]:
        call = UpstreamRequest(
            method="GET",
            path="/models",
            headers=(("accept", "application/json"), *(pair for pair in headers if source.sends(pair[0]))),
            upstream=name,
        )
        try:
            async with self._upstream.call(call) as answer:
                failed = not 200 <= answer.status < 300
                body = bytearray()
                async for part in answer.body():
                    body += part
                    if failed and len(body) > _ERROR_BYTES:
                        break
        except UpstreamCallFailed as failure:
            raise transport_failure(failure.error) from None
        if answer.status in _NO_LIST:
            if source.allowed:
                return ()
            raise UpstreamFailed("The upstream does not list its models.", code="models_not_listed")
        if not source.passthrough and is_about_the_key(answer.status, bytes(body)):
            raise own_credentials_refused()
        if failed:
            token = bearer_token(header_value(call.headers, "authorization"))
            raise map_upstream_answer(answer.status, answer.headers, bytes(body), (*self._secrets, *token))
        return read_models(bytes(body))

    def _upstream_headers(self, headers: Headers) -> Headers:
        """The client headers that Antiphon forwards to at least one upstream. The upstreams' lists may depend on these
        headers."""
        return tuple(
            (name, value) for name, value in headers if any(source.sends(name) for source in self._sources.values())
        )

    def _digest(self, headers: Headers) -> bytes:
        """The cache key for these forwarded headers. Tracing headers do not count, because no list depends on them."""
        hashed = hashlib.blake2b(key=self._key, digest_size=16)
        for name, value in headers:
            if name not in _PASSED:
                hashed.update(f"{len(name)}:{name}{len(value)}:{value}".encode("utf-8", "surrogateescape"))
        return hashed.digest()


def _permit(listed: tuple[ModelObject, ...], allowed: tuple[str, ...]) -> tuple[ModelObject, ...]:
    if not allowed:
        return listed
    by_id = {model.id: model for model in listed}
    return tuple(by_id.get(name) or ModelObject(id=name) for name in allowed)


def read_models(body: bytes) -> tuple[ModelObject, ...]:
    """Return the models in an upstream's list: OpenAI's shape, a bare array, or Ollama's and Gemini's `models`.

    The function skips entries without a model's name. Raises `UpstreamFailed` (502, `models_unreadable`) if the body
    has none of these shapes.
    """
    try:
        value = decode_any(body)
    except ValueError:
        value = None
    entries: object = value
    if isinstance(value, dict):
        entries = value.get("data")
        if not isinstance(entries, list):
            entries = value.get("models")
        if entries is None and value.get("data", False) is None:
            # Ollama sends `"data": null` if it has no models.
            entries = []
    if not isinstance(entries, list):
        raise UpstreamFailed(
            "The upstream's answer to GET /models is not a list of models. Check the upstream's URL.",
            code="models_unreadable",
        )
    found = {model.id: model for model in (_read_model(entry) for entry in entries) if model is not None}
    return tuple(found.values())


def _read_model(entry: object) -> ModelObject | None:
    if isinstance(entry, str):
        return ModelObject(id=entry) if entry else None
    if not isinstance(entry, dict):
        return None
    name = next((entry[key] for key in ("id", "name", "model") if isinstance(entry.get(key), str) and entry[key]), None)
    if name is None:
        return None
    created = entry.get("created")
    owner = entry.get("owned_by")
    return ModelObject(
        id=name,
        created=int(created) if isinstance(created, (int, float)) and 0 <= created < 1 << 53 else 0,
        owned_by=owner if isinstance(owner, str) and owner else "upstream",
    )


class SupportShown(Struct):
    """How Antiphon treats one part of a request. `note` explains the treatment, or is null."""

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
                "The model to describe. Without this parameter, the answer describes models that match no entry of "
                "the setting `models`.",
            ),
        ),
        errors=(400, 404),
    )
    async def show(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/antiphon/capabilities`: show how the gateway treats each part of a request for `?model=…`.

        Without `model`, the answer is for models that no entry of the setting `models` matches. Each group maps the
        name of a request part, as in `antiphon-ignored`, to `{support, note}`. Raises `NotFound` (`model_not_found`).

            "fields": {"temperature": {"support": "sent", "note": null}}
        """
        model = query_value(request, "model")
        unnamed = (
            "This server serves only the models that its settings name. Add the parameter '?model=' with one of "
            "these models."
        )
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
