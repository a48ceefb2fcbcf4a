"""Models: the upstreams' lists, in OpenAI's shape.

Lives here: asking the upstreams, reading the many shapes of their answers, the operator's allow-list, aliases, a short
memory. Not here: whether a request's model may be used (the exchange asks the same routes and allow-list).

Invariant: what one credential may see is never shown to another: with passed-through credentials the memory is kept
per credential, under a keyed digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from antiphon.api.http import ApiRequest, ApiResponse, json_response
from antiphon.engine.actions import UpstreamRequest
from antiphon.engine.ports import Upstream, UpstreamCallFailed
from antiphon.engine.routes import DEFAULT_UPSTREAM, Routes
from antiphon.errors import ApiError, NotFound, UpstreamFailed
from antiphon.translation.upstream_errors import map_transport_error, map_upstream_answer
from antiphon.types.json import decode_any
from antiphon.types.transport import Headers

__all__ = ["Model", "ModelCatalog", "read_models"]

_CREDENTIALS = 256
_ERROR_BYTES = 256 * 1024
_PASSED = frozenset({"traceparent", "tracestate", "x-request-id"})
# Answers that say: this server has no list of models (and not: you may not, or I am broken).
_NO_LIST = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Model:
    """One model as OpenAI lists it."""

    id: str
    created: int = 0
    owned_by: str = "upstream"

    def shown(self) -> dict[str, object]:
        """Its JSON object."""
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": self.owned_by}


class ModelCatalog:
    """Which models there are.

    `allowed`, when not empty, are the only models shown, whether the upstream lists them or not. `passthrough` says
    that the client's Authorization goes to the upstream; `headers` names further client headers that do. `others` are
    further upstreams: whether they get the client's Authorization, and the only models they are to show. With `routes`
    a model is shown only where a request for it would go, and names that are rules of their own are shown too.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        allowed: Iterable[str] = (),
        passthrough: bool = False,
        headers: Iterable[str] = (),
        others: Mapping[str, tuple[bool, tuple[str, ...]]] | None = None,
        routes: Routes | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._allowed = tuple(allowed)
        self._passthrough = passthrough
        self._passed = _PASSED | frozenset(headers)
        self._others = dict(others or {})
        self._routes = routes
        self._seconds = seconds
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[float, tuple[Model, ...]]] = OrderedDict()

    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/models`."""
        return json_response({"object": "list", "data": [model.shown() for model in await self._models(request)]})

    async def get(self, request: ApiRequest, name: str) -> ApiResponse:
        """`GET /v1/models/{model}`; the name may hold slashes."""
        for model in await self._models(request):
            if model.id == name:
                return json_response(model.shown())
        raise NotFound(
            f"The model '{name[:256]}' does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
        )

    async def _models(self, request: ApiRequest) -> tuple[Model, ...]:
        headers = self._upstream_headers(request.headers)
        key = self._digest(headers)
        known = self._known.get(key)
        now = self._clock()
        if known is not None and now < known[0]:
            return known[1]
        models = await self._gather(headers)
        self._known[key] = (now + self._seconds, models)
        self._known.move_to_end(key)
        while len(self._known) > _CREDENTIALS:
            self._known.popitem(last=False)
        return models

    async def _gather(self, headers: Headers) -> tuple[Model, ...]:
        """All upstreams' models; of several upstreams one that fails hides only its own."""
        if not self._others and self._routes is None:
            return _permit(await self._ask(headers), self._allowed)
        sources = {DEFAULT_UPSTREAM: (self._passthrough, self._allowed), **self._others}
        answers = await asyncio.gather(
            *(
                self._ask(headers if passthrough else _without_credentials(headers), name, allowed)
                for name, (passthrough, allowed) in sources.items()
            ),
            return_exceptions=True,
        )
        found: dict[str, Model] = {}
        failures = []
        for (name, (_, allowed)), answer in zip(sources.items(), answers, strict=True):
            if isinstance(answer, ApiError):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for model in _permit(answer, allowed):
                    if self._goes_to(model.id, name):
                        found.setdefault(model.id, model)
        for rule in self._routes.rules if self._routes is not None else ():
            if rule.exact and rule.route.mode != "disabled":
                found.setdefault(rule.pattern, Model(rule.pattern))
        if failures and not found:
            raise failures[0]
        return tuple(found.values())

    def _goes_to(self, model: str, upstream: str) -> bool:
        if self._routes is None:
            return True
        route = self._routes.choose(model)
        return route.upstream == upstream and route.mode != "disabled"

    async def _ask(
        self, headers: Headers, upstream: str = DEFAULT_UPSTREAM, allowed: tuple[str, ...] | None = None
    ) -> tuple[Model, ...]:
        allowed = self._allowed if allowed is None else allowed
        call = UpstreamRequest(
            method="GET",
            path="/models",
            headers=(("accept", "application/json"), *headers),
            body=b"",
            model="",
            stream=False,
            upstream=upstream,
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
            raise map_transport_error(failure.error) from None
        if answer.status in _NO_LIST:
            if allowed:
                return ()
            raise UpstreamFailed("The upstream does not list its models.", code="models_not_listed")
        if failed:
            raise map_upstream_answer(answer.status, answer.headers, bytes(body))
        return read_models(bytes(body))

    def _upstream_headers(self, headers: Headers) -> Headers:
        return tuple(
            (name, value)
            for name, value in headers
            if name in self._passed or (name == "authorization" and self._credentials)
        )

    @property
    def _credentials(self) -> bool:
        """Whether any upstream gets the client's Authorization, so that its list may depend on it."""
        return self._passthrough or any(passthrough for passthrough, _ in self._others.values())

    def _digest(self, headers: Headers) -> bytes:
        """One key per set of headers that can change the answer: everything passed on that is no trace."""
        hashed = hashlib.blake2b(key=self._key, digest_size=16)
        for name, value in headers:
            if name not in _PASSED:
                hashed.update(f"{len(name)}:{name}{len(value)}:{value}".encode("utf-8", "surrogateescape"))
        return hashed.digest()


def _permit(listed: tuple[Model, ...], allowed: tuple[str, ...]) -> tuple[Model, ...]:
    if not allowed:
        return listed
    by_id = {model.id: model for model in listed}
    return tuple(by_id.get(name) or Model(name) for name in allowed)


def _without_credentials(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if name != "authorization")


def read_models(body: bytes) -> tuple[Model, ...]:
    """The models in an upstream's list: OpenAI's shape, a bare array, or Ollama's and Gemini's `models`.

    Entries that name no model are passed over; raises `UpstreamFailed` when it is no list at all.
    """
    try:
        value = decode_any(body)
    except ValueError:
        value = None
    entries: Any = value
    if isinstance(value, dict):
        entries = value.get("data")
        if not isinstance(entries, list):
            entries = value.get("models")
        if entries is None and value.get("data", False) is None:
            # Ollama without any model sends `"data": null`.
            entries = []
    if not isinstance(entries, list):
        raise UpstreamFailed("The upstream's list of models cannot be read.", code="models_unreadable")
    found = {model.id: model for model in (_read_model(entry) for entry in entries) if model is not None}
    return tuple(found.values())


def _read_model(entry: Any) -> Model | None:
    if isinstance(entry, str):
        return Model(entry) if entry else None
    if not isinstance(entry, dict):
        return None
    name = next((entry[key] for key in ("id", "name", "model") if isinstance(entry.get(key), str) and entry[key]), None)
    if name is None:
        return None
    created = entry.get("created")
    owner = entry.get("owned_by")
    return Model(
        name,
        int(created) if isinstance(created, (int, float)) and 0 <= created < 1 << 53 else 0,
        owner if isinstance(owner, str) and owner else "upstream",
    )
