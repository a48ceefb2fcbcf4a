"""Dispatches every request except `POST /v1/responses` to its handler.

This module dispatches by method and path, and converts every error to an answer. The module also answers liveness
probes (`/health`) and readiness probes (`/ready`). The servers or Envoy normalise the path, and the ext_proc server
answers gRPC health checks. The composition root (`app/build.py`) passes in the readiness check.

Invariants:
- `handle` never raises, except for cancellation.
- Every error answer has an OpenAI error object.
- The header `antiphon-ignored` names an `Idempotency-Key` that has no effect.
- The router serves a path with a guard only to the caller `ADMIN`, or after the guard has accepted the request's
  headers.
- `/health` calls no other system. `/ready` reveals only whether Antiphon is ready, and a short reason if Antiphon is
  not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import structlog

from antiphon.api.endpoint import Endpoint, Guard, Route, document, rows_of
from antiphon.api.http import (
    AnyObject,
    ApiRequest,
    ApiResponse,
    Unwell,
    Well,
    error_response,
    json_response,
    nested_too_deeply,
    raw_response,
)
from antiphon.api.models import ModelCatalog
from antiphon.api.responses import NativeResponses, Responses
from antiphon.config.problems import advice
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.exchange.phase import EXCHANGE_PATHS
from antiphon.engine.ports.callers import ADMIN
from antiphon.engine.ports.idempotency import HEADER
from antiphon.engine.running.background import Background
from antiphon.errors import ApiError, InternalError, MethodNotAllowed, NotFound, StoreError, Unauthorized, store_refusal
from antiphon.observability.metrics import Metrics
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.responses import ResponseStore

Readiness = Callable[[], Awaitable[None]]
"""A readiness check. The function raises `StoreError` or `Unavailable` if a load balancer should send requests
elsewhere."""

_READY_SECONDS = 2.0
_NO_STORE = (("cache-control", "no-store"),)

_log = structlog.get_logger(__name__)


class ReadyProbe:
    """Answers `/ready` for one process. Logs each reason for a failed check once, and logs the recovery."""

    def __init__(self, check: Readiness, *, seconds: float = _READY_SECONDS) -> None:
        """A check that takes longer than `seconds` counts as failed."""
        self._check = check
        self._seconds = seconds
        self._outage = Outage(_log, "not_ready", "ready_again")

    @property
    def not_ready_seconds(self) -> float:
        """The seconds for which probes have failed: from the first failed probe to the last. The number is 0 if the
        process is ready."""
        return self._outage.seconds

    async def answer(self) -> ApiResponse:
        """Run the check. The answer is 200 if the process can serve requests, else 503 with the reason."""
        reason, cause = "", ""
        try:
            async with asyncio.timeout(self._seconds):
                await self._check()
        except TimeoutError:
            reason = "the store does not answer"
        except StoreError as error:
            reason, cause = error.words, str(error)
        except ApiError as error:
            reason = error.code or "unavailable"
        if reason:
            self._outage.failed(kind=reason, reason=reason, **({"cause": cause} if cause else {}))
            return json_response(Unwell("unavailable", reason), 503, _NO_STORE)
        self._outage.recovered()
        return json_response(Well("ok"), headers=_NO_STORE)


METRICS_PATH = "/metrics"
"""The path of the Prometheus metrics. The 404 for a mistyped path suggests a similar path, but never the path of the
metrics."""

_UNHANDLED = frozenset({"unknown_url", "method_not_allowed"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Router:
    """Answers every request to Antiphon's API except those that the servers run as an exchange (`is_exchange`)."""

    def __init__(
        self,
        *,
        store: ResponseStore,
        models: ModelCatalog,
        ready: ReadyProbe,
        metrics: Metrics,
        native: NativeResponses | None = None,
        areas: Iterable[Endpoint] = (),
        background: Background | None = None,
    ) -> None:
        """`native` serves responses that Antiphon has not stored. `areas` has the endpoints of all other areas
        (conversations, prompts, capabilities, …).
        """
        self._ready = ready
        self._metrics = metrics
        self.models = models
        self.endpoints: tuple[Endpoint, ...] = (
            *areas,
            *Responses(store, background, native, metrics).endpoints(),
            *models.endpoints(),
            *rows_of(self),
        )
        self._guarded = tuple(one for one in self.endpoints if one.guard is not None)
        self._document: bytes | None = None
        self._paths = frozenset(one.pattern.split("/{", 1)[0] for one in self.endpoints if one.pattern != METRICS_PATH)

    @staticmethod
    def is_exchange(method: str, path: str) -> bool:
        """Return whether the servers run this request as an exchange, without the router.

        Such requests create a response, compact a conversation, or count tokens. `path` has no query.
        """
        return method == "POST" and path in EXCHANGE_PATHS

    def reads_body(self, method: str, path: str) -> bool:
        """Return whether a handler needs the request body. If no handler needs the body, the server does not read
        it."""
        endpoint, _ = self._find(path)
        return method in _WITH_BODY and endpoint is not None and method in endpoint.methods

    def streams_body(self, method: str, path: str) -> bool:
        """Return whether the handler takes the body as a stream. If so, `reads_body` is true as well."""
        endpoint, _ = self._find(path)
        return endpoint is not None and endpoint.streamed and method in endpoint.methods

    def operation_of(self, method: str, path: str) -> str:
        """Return the name of the operation for metrics: `GET /v1/files/{}`, or `unknown` for an unknown path."""
        return self._operation(method, path, self._find(path)[0])

    def unknown(self, method: str, path: str) -> NotFound:
        """Return the 404 for a path that no endpoint has. The message suggests the most similar path."""
        return unknown_url(method, path, self._paths)

    def is_open(self, path: str) -> bool:
        """Return whether clients may call the path without credentials, such as `/health` and `/metrics`."""
        endpoint, _ = self._find(path)
        return endpoint is not None and endpoint.open

    def guard_of(self, path: str) -> Guard | None:
        """Return the function that checks credentials for a path for operators, or None for any other path."""
        if not self._guarded:
            return None
        return next((one.guard for one in self._guarded if one.match(path) is not None), None)

    def _find(self, path: str) -> tuple[Endpoint | None, tuple[str, ...]]:
        """Return the endpoint whose pattern matches the path, and the path variables. The endpoint is None if no
        pattern matches."""
        for endpoint in self.endpoints:
            variables = endpoint.match(path)
            if variables is not None:
                return endpoint, variables
        return None, ()

    def _operation(self, method: str, path: str, endpoint: Endpoint | None) -> str:
        if self.is_exchange(method, path):
            return f"{method} {path}"
        if endpoint is None or method not in (*endpoint.methods, "HEAD"):
            return "unknown"
        return f"{method} {endpoint.pattern}"

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """Answer any request. This method never raises, except for cancellation. The calling server writes the log.

        The client gets an `ApiError` of the handler with its status, and a `StoreError` with the status of its reason
        (`store_refusal`). Any other exception becomes a 500, and the log event `api_failed`.
        """
        endpoint, variables = self._find(request.path)
        operation = self._operation(request.method, request.path, endpoint)
        try:
            response = await self._answer(request, endpoint, variables)
        except ApiError as error:
            response = _refused(request, error, operation)
        except RecursionError:
            # A handler parsed a part of the body with less stack left than `read_body` had for the whole body.
            response = _refused(request, nested_too_deeply(), operation)
        except StoreError as error:
            refused = store_refusal(error, "The server could not read or change the stored data")
            refused.operation = "store"
            response = _refused(request, refused, operation)
        except Exception as error:
            _log.error("api_failed", request_id=request.request_id, error=type(error).__name__, exc_info=True)
            bug = InternalError("The server had an error while processing your request.")
            bug.cause = type(error).__name__
            response = _refused(request, bug, operation)
        if (failure := response.failure) is not None:
            self._metrics.refused_for(failure.code)
        if endpoint is None or not endpoint.open:
            fault = failure.fault if failure is not None else "none"
            self._metrics.request_finished(operation, response.status, fault)
        # The answer to HEAD has the headers of GET, including `content-length`.
        return replace(response, body=b"", stream=None) if request.method == "HEAD" else response

    async def _answer(self, request: ApiRequest, endpoint: Endpoint | None, variables: tuple[str, ...]) -> ApiResponse:
        if endpoint is None:
            raise self.unknown(request.method, request.path)
        if endpoint.guard is not None and request.caller is not ADMIN:
            endpoint.guard(request.headers)
        handler = endpoint.methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is not None:
            response = await handler(request, *variables)
            ignored = request.method in _WITH_BODY and not endpoint.keyed and request.header(HEADER) is not None
            return _key_ignored(response) if ignored else response
        made_by_doors = ("POST",) if self.is_exchange("POST", request.path) else ()
        return _other_method(request, (*endpoint.methods, *made_by_doors))

    @Route("GET", "/health", "Get health", Well, open=True)
    async def _show_health(self, _request: ApiRequest) -> ApiResponse:
        return json_response(Well("ok"), headers=_NO_STORE)

    @Route(
        "GET",
        "/ready",
        "Get readiness",
        Well,
        unwell=Unwell,
        open=True,
    )
    async def _show_ready(self, _request: ApiRequest) -> ApiResponse:
        return await self._ready.answer()

    @Route(
        "GET",
        METRICS_PATH,
        "Get metrics",
        str,
        media="text/plain",
        errors=(404,),
        open=True,
    )
    async def _show_metrics(self, _request: ApiRequest) -> ApiResponse:
        body, kind = await self._metrics.scraped(), self._metrics.content_type()
        headers = (("content-type", kind), ("content-length", str(len(body))), ("cache-control", "no-store"))
        return ApiResponse(200, headers, body)

    @Route("GET", "/openapi.json", "Get API description", AnyObject, open=True)
    async def _show_document(self, _request: ApiRequest) -> ApiResponse:
        if self._document is None:
            self._document = document(self.endpoints)
        return raw_response(self._document)


def _refused(request: ApiRequest, error: ApiError, operation: str) -> ApiResponse:
    error.operation = error.operation or operation
    return replace(error_response(error, request.request_id), failure=refusal(error))


def _key_ignored(response: ApiResponse) -> ApiResponse:
    """The response with `Idempotency-Key` listed in `antiphon-ignored`."""
    said = next((value for name, value in response.headers if name == "antiphon-ignored"), None)
    others = tuple(pair for pair in response.headers if pair[0] != "antiphon-ignored")
    named = HEADER if said is None else f"{said}, {HEADER}"
    return replace(response, headers=(*others, ("antiphon-ignored", named)))


def is_unhandled(failure: Failure | None) -> bool:
    """Return whether the router refused the request before a handler got it. The reasons are an unknown path, a wrong
    method, or wrong credentials for a path of operators."""
    if failure is None or failure.fault != "client" or failure.upstream_status:
        return False
    return failure.code in _UNHANDLED or failure.status == Unauthorized.status


def unknown_url(method: str, path: str, known: Iterable[str] = ()) -> NotFound:
    """Return the 404 (`unknown_url`) for a path that does not exist or that this client may not see.

    The message suggests the path in `known` that is most similar to `path`.
    """
    near = advice(path[:256], known)
    hint = f"{near}" if near else ". Please check the URL for typos."
    return NotFound(f"Unknown request URL: {method} {path[:256]}{hint}", code="unknown_url")


def _other_method(request: ApiRequest, methods: tuple[str, ...]) -> ApiResponse:
    """The answer to a method that the path does not have: a 204 with `allow` for OPTIONS, a 405 for other methods."""
    offered = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]
    allow = (("allow", ", ".join(offered)),)
    if request.method == "OPTIONS":
        return ApiResponse(204, allow, b"")
    raise MethodNotAllowed(
        f"Not allowed to {request.method[:32]} on {request.path[:256]}. Allowed: {', '.join(methods)}.",
        code="method_not_allowed",
        headers=allow,
    )
