"""Passes Chat Completions, embeddings and the operator's additional paths through to the model's upstream unchanged.

This module chooses the upstream and the forwarded headers, and streams the answer. The module also writes an entry for
each forwarded request to the journal, the list of requests that the console shows. From a body, the module reads only
values that decide the upstream, the permission and the quotas. From a successful answer, the module reads only the
token usage.

Behind Envoy, these requests reach this module only if Envoy cannot route them itself. Envoy cannot route a request if
the upstream or the client's permission depends on the model's name. Envoy also cannot check clients' keys, so with
client keys every such request comes here.

Invariants:
- Bodies pass byte for byte, except that a configured upstream name (`models[].model`) replaces the model's name.
- A request goes only to the upstream that serves its model. If no upstream serves the model, the client gets an error.
- If the client disconnects before the end of an answer, Antiphon cancels the model call.
- Each forwarded request gets exactly one entry in the journal, however the request ends.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlencode

import msgspec
from msgspec import Raw

from antiphon.api.endpoint import Endpoint, Handler, Route, rows
from antiphon.api.http import UPSTREAM_ERRORS, AnswerCut, AnyObject, ApiRequest, ApiResponse
from antiphon.api.passed_fields import PassedFields, read_any_fields, read_fields
from antiphon.api.passed_quota import PassedQuota, PassedUsage, StreamUsage, text_size, usage_in
from antiphon.engine.exchange.allowed_by_key import check_body
from antiphon.engine.exchange.call_headers import end_to_end, of_nobody
from antiphon.engine.exchange.failure import Failure, cancelled, not_answered, operation_in, refusal, transport_failure
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason, UpstreamRequest
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.idempotency import HEADER
from antiphon.engine.ports.journal import REFUSED, Journal, JournalSpan
from antiphon.engine.ports.quotas import Reservation
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.errors import ApiError, invalid_parameter
from antiphon.observability.journal_entry import plain_entry
from antiphon.redacted_json import error_without
from antiphon.redaction import KnownSecrets
from antiphon.translation.answer.upstream_errors import map_upstream_answer
from antiphon.translation.request.body import read_model
from antiphon.translation.request.checks import not_json
from antiphon.types.json import encode, raw
from antiphon.types.transport import LOCAL_REPLY, TRIED_HEADER, UPSTREAM_HEADER, Headers, UpstreamError, header_value

MODEL_PATHS = ("/chat/completions", "/embeddings")
"""The forwarded paths that every upstream has. The request body names the model."""

PASSED = "pass_through"
"""The value of the field `door` in the journal's entries for forwarded requests."""
_MODEL_LENGTH = 128
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_SENT = frozenset({"accept", "content-type", "openai-beta", "traceparent", "tracestate", "x-request-id"})
# Headers about the upstream account. Antiphon forwards such a header from a client only together with the client's own
# credentials.
_OF_THE_ACCOUNT = frozenset({"authorization", "openai-organization", "openai-project", "idempotency-key"})


class PassedOn:
    """Serves `/v1/chat/completions`, `/v1/embeddings` and the operator's paths: forwards each request to an upstream.

    `extra` lists the operator's paths, without `/v1`. The default upstream serves them. Their requests need no model
    name. `embeddings` is the embedding model's name, and the client for the server of this model. If the setting
    `models` has an entry with exactly this model's name, that entry's upstream serves the embeddings. `reserve` returns
    an object that reserves a request's tokens in the quotas. `limits_models`: whether a quota limits a model. The
    handlers remove `secrets` from error texts. With `several_owners`, answers leave out headers about the upstream
    account that the owners share.
    """

    def __init__(
        self,
        upstream: Upstream,
        routes: ModelRoutes,
        extra: Sequence[str] = (),
        *,
        embeddings: tuple[str, Upstream] | None = None,
        secrets: KnownSecrets = (),
        several_owners: bool = True,
        reserve: Callable[[Caller], Reservation] | None = None,
        limits_models: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self._secrets = secrets
        self._journal = journal
        self._reserve = reserve
        self._limits_models = limits_models
        self._several_owners = several_owners
        self._upstream = upstream
        self._routes = routes
        self._embeddings = embeddings
        self._extra = tuple(path for path in extra if path not in MODEL_PATHS)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints of the forwarded paths."""
        handlers = {path: self._by_model(path) for path in MODEL_PATHS}
        handlers |= {path: self._to_default(path) for path in self._extra}
        return rows((_passed(path), handler) for path, handler in handlers.items())

    def _by_model(self, path: str) -> Handler:
        async def post(request: ApiRequest, note: PassedEntry) -> ApiResponse:
            fields = self._fields(request, path)
            model = fields.model
            note.asks(model or "")
            check_body(request.access, request.body)
            if path == "/embeddings" and self._embeddings is not None and self._is_own(model):
                own = ModelRoute(self._routes.default.profile, passthrough=False)
                return await self._pass(request, own, path, request.body, fields, note, self._embeddings[1])
            route = self._routes.serving(
                model, "The body names no model, so Antiphon cannot choose the upstream. Add 'model'.", request.access
            )
            body = request.body if route.model is None else _renamed(request.body, route.model)
            return await self._pass(request, route, path, body, fields, note)

        return self._noted(post)

    def _to_default(self, path: str) -> Handler:
        async def post(request: ApiRequest, note: PassedEntry) -> ApiResponse:
            check_body(request.access, request.body, named=True)
            fields = PassedFields()
            if self._reserve is not None or request.access.models:
                kind = request.header("content-type")
                fields = read_any_fields(request.body, kind, others=self._limits_models)
            return await self._pass(request, self._routes.default, path, request.body, fields, note)

        return self._noted(post)

    def _fields(self, request: ApiRequest, path: str) -> PassedFields:
        """Return the fields of a body that names its model.

        If the model decides the route, the permission or the quotas, the method raises `InvalidRequest` for a body that
        it cannot read. Otherwise the upstream judges such a body.
        """
        routes = self._routes
        routed = routes.rules or routes.default.models or (path == "/embeddings" and self._embeddings is not None)
        if routed or request.access.models or self._reserve is not None:
            return read_fields(request.body, others=self._limits_models)
        return PassedFields(read_model(request.body))

    def _noted(self, post: Callable[[ApiRequest, PassedEntry], Awaitable[ApiResponse]]) -> Handler:
        """Return a handler that calls `post`, and writes a journal entry for each request."""

        async def noted(request: ApiRequest) -> ApiResponse:
            note = PassedEntry(self._journal, request)
            try:
                return await post(request, note)
            except ApiError as error:
                note.refuse(error)
                raise

        return noted

    def _is_own(self, model: str | None) -> bool:
        """Whether the embeddings server serves this model. An exact entry of the setting `models` takes precedence."""
        named = any(rule.exact and rule.pattern == model for rule in self._routes.rules)
        return self._embeddings is not None and model == self._embeddings[0] and not named

    async def _pass(
        self,
        request: ApiRequest,
        route: ModelRoute,
        path: str,
        body: bytes,
        fields: PassedFields,
        note: PassedEntry,
        upstream: Upstream | None = None,
    ) -> ApiResponse:
        allowed = _SENT | route.headers | (_OF_THE_ACCOUNT if route.passthrough else frozenset())
        headers = tuple((name, value) for name, value in request.headers if name in allowed)
        if self._reserve is not None or request.access.models:
            _check_query(request, fields.model)
        query = "?" + urlencode(request.query) if request.query else ""
        call = UpstreamRequest(
            method="POST",
            path=path + query,
            headers=headers,
            body=body,
            upstream=route.upstream,
            tries=len(route.upstreams),
        )
        # An `Idempotency-Key` is valid per upstream account, so a client's key is not forwarded with shared
        # credentials.
        unheard = () if HEADER in allowed or request.header(HEADER) is None else (("antiphon-ignored", HEADER),)
        called = "embeddings" if upstream is not None else route.upstream
        quota = PassedQuota(self._reserve(request.caller) if self._reserve is not None else None)
        stack = AsyncExitStack()
        try:
            await quota.take(fields, len(request.body), writes=path != "/embeddings")
            note.call(called)
            answer = await stack.enter_async_context((upstream or self._upstream).call(call))
        except UpstreamCallFailed as failure:
            quota.close(None, 0)
            note.broke(failure.error.fault.value)
            raise _unanswered(failure.error, called) from None
        except BaseException:
            quota.close(None, 0)
            raise
        shared = self._several_owners and not route.passthrough
        name = header_value(answer.headers, UPSTREAM_HEADER) if route.several else None
        called = name or called
        note.answered_by(called, 0 if header_value(answer.headers, LOCAL_REPLY) is not None else answer.status)
        kept = of_nobody(answer.headers) if shared else _kept(answer.headers)
        if name is not None:
            kept = (*(pair for pair in kept if pair[0] not in (UPSTREAM_HEADER, TRIED_HEADER)), (UPSTREAM_HEADER, name))
        if "text/event-stream" in (header_value(kept, "content-type") or "").lower():
            why = self._why(answer, b"", called)
            return ApiResponse(
                answer.status, (*quota.over(kept), *unheard), b"", _Stream(answer, stack, called, quota, note, why), why
            )
        usage, sent = None, 0
        try:
            async with stack:
                whole = b"".join([part async for part in answer.body()])
            if quota.reads_usage or note.reads_usage:
                usage = usage_in(whole)
            if quota.reads_usage and usage is None:
                sent = text_size(whole)
        except UpstreamCallFailed as failure:
            note.broke(failure.error.fault.value)
            raise _unanswered(failure.error, called) from None
        finally:
            quota.close(usage, answer.status, sent)
        why = self._why(answer, whole, called)
        if why is None:
            note.came()
        note.end(answer.status, why, usage, len(whole))
        if answer.status >= 400:
            whole = error_without(whole, self._secrets)
        length = () if answer.status in (204, 304) else (("content-length", str(len(whole))),)
        return ApiResponse(answer.status, (*quota.over(kept), *unheard, *length), whole, failure=why)

    def _why(self, answer: UpstreamAnswer, body: bytes, upstream: str) -> Failure | None:
        """The cause of an error answer for the log, or None for a success. The cause leaves out the text of the answer,
        because an upstream may quote the request in it. Envoy writes the answer if no upstream answers."""
        if answer.status < 400:
            return None
        if (local := header_value(answer.headers, LOCAL_REPLY)) is not None:
            unanswered = not_answered(local, answer.headers, body, self._secrets)
            return replace(refusal(unanswered, State.PASSING, upstream), status=answer.status)
        told = map_upstream_answer(answer.status, answer.headers, body, self._secrets)
        failure = refusal(told, State.PASSING, upstream, answer.status)
        return replace(failure, status=answer.status, cause=f"the upstream answered with status {answer.status}")


def _passed(path: str) -> Route:
    """The route of a forwarded path. Only the upstream defines the body and the answers, errors included."""
    summary = f"Forward {path.strip('/')} to the upstream"
    errors = UPSTREAM_ERRORS
    return Route("POST", f"/v1{path}", summary, AnyObject, body=AnyObject, events=AnyObject, errors=errors, keyed=True)


class _Stream:
    """Yields each chunk of an upstream's answer as soon as it arrives. `aclose` ends the upstream call, even before the
    first chunk."""

    def __init__(
        self,
        answer: UpstreamAnswer,
        stack: AsyncExitStack,
        upstream: str,
        quota: PassedQuota,
        note: PassedEntry,
        failure: Failure | None,
    ) -> None:
        self._answer = answer
        self._note = note
        self._failure = failure
        self._size = 0
        self._whole = False
        self._quota = quota
        reads = quota.reads_usage
        self._usage = StreamUsage(counts=reads) if reads or note.reads_usage else None
        self._parts = answer.body()
        self._stack = stack
        self._upstream = upstream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            part = await anext(self._parts)
            if self._failure is None:
                self._note.came()
            self._size += len(part)
            if self._usage is not None:
                self._usage.feed(part)
            return part
        except StopAsyncIteration:
            self._whole = True
            raise
        except UpstreamCallFailed as failure:
            with suppress(UpstreamCallFailed):
                async with self._stack:
                    raise
            self._note.broke(failure.error.fault.value)
            # The client has already received part of the upstream's answer, so no error object can follow.
            status = self._answer.status
            cut = refusal(_unanswered(failure.error, self._upstream), State.PASSING, self._upstream, status)
            self._failure = replace(cut, status=status)
            raise AnswerCut(self._failure) from None

    async def aclose(self) -> None:
        usage, sent = self._usage.end() if self._usage is not None else (None, 0)
        self._quota.close(usage, self._answer.status, sent)
        if not self._whole and self._failure is None:
            self._failure = cancelled(CancelReason.CLIENT_GONE, State.PASSING, self._upstream)
            self._note.broke("cancelled")
        self._note.end(self._answer.status, self._failure, usage, self._size, stream=True)
        async with self._stack:
            await cast(Any, self._parts).aclose()


def _check_query(request: ApiRequest, model: str | None) -> None:
    """Raise `InvalidRequest` if the query names another model than the body. Some upstreams prefer the model in the
    query, which would evade the check of the key and the model's quotas."""
    for name, value in request.query:
        if name.casefold() == "model" and value != model:
            raise invalid_parameter(
                "model", "the model in the URL's query differs from the body's model. Name the model in the body only"
            )


def _unanswered(error: UpstreamError, upstream: str) -> ApiError:
    """The error that the client gets if the connection to the upstream fails."""
    told = transport_failure(error)
    told.operation, told.upstream = operation_in(State.PASSING), upstream
    return told


def _renamed(body: bytes, model: str) -> bytes:
    """Replace the model's name in the body by `model`. All other values keep their bytes."""
    try:
        return encode(_FIELDS.decode(body) | {"model": raw(model)})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_json(body) from None


def _kept(headers: Headers) -> Headers:
    return tuple(pair for pair in end_to_end(headers) if pair[0] != "x-request-id")


class PassedEntry:
    """Writes one forwarded request's entry to the request journal. Without a journal, no method has an effect."""

    def __init__(self, journal: Journal | None, request: ApiRequest) -> None:
        self._journal = journal
        self._request = request
        self._started = time.perf_counter()
        self._model = ""
        self._upstream = ""
        self._called = 0.0
        self._first: float | None = None
        self._answered = 0
        self._fault = ""

    @property
    def reads_usage(self) -> bool:
        """Whether `end` needs the usage in the answer."""
        return self._journal is not None

    def asks(self, model: str) -> None:
        """Record the model that the request names."""
        self._model = model[:_MODEL_LENGTH]

    def call(self, upstream: str) -> None:
        """Record that the model call begins, and its upstream."""
        self._upstream, self._called = upstream, time.perf_counter() - self._started

    def answered_by(self, upstream: str, status: int) -> None:
        """Record the status of the answer, and which of several upstreams has answered."""
        self._upstream, self._answered = upstream, status

    def broke(self, fault: str) -> None:
        """Record that the model call ended early. `fault` is a value of `UpstreamFault`, or `cancelled`."""
        self._fault = fault

    def came(self) -> None:
        """Record the first bytes of the answer."""
        if self._first is None:
            self._first = time.perf_counter() - self._started

    def refuse(self, error: ApiError) -> None:
        """Record that the client got this error instead of an upstream's answer."""
        self._end(refusal(error), error.message, error.status, None, 0)

    def end(
        self, status: int, failure: Failure | None, usage: PassedUsage | None, size: int, *, stream: bool = False
    ) -> None:
        """Record the end of an answer in the journal's entry. `size` is the number of bytes of its body."""
        self._end(failure, "", status, usage, size, stream=stream)

    def _end(
        self,
        failure: Failure | None,
        message: str,
        status: int,
        usage: PassedUsage | None,
        size: int,
        *,
        stream: bool = False,
    ) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        request, seconds = self._request, time.perf_counter() - self._started
        entry = plain_entry(PASSED, request.request_id, request.caller, request.path, failure, message)
        usage = usage or PassedUsage()
        spans: tuple[JournalSpan, ...] = ()
        if self._upstream:
            facts = {"operation": PASSED, "status": self._answered} | ({"fault": self._fault} if self._fault else {})
            spans = (JournalSpan("call", self._upstream, self._called, seconds, facts),)
        if self._upstream and self._first is not None:
            spans = (*spans, JournalSpan("first_token", self._upstream, self._called, self._first))
        detail = msgspec.structs.replace(
            entry.detail, spans=spans, request_bytes=len(request.body), output_bytes=size, stream=stream
        )
        entry = msgspec.structs.replace(
            entry,
            outcome=REFUSED if failure is not None and failure.counted else entry.outcome,
            model=self._model,
            upstream=self._upstream,
            status=status,
            seconds=seconds,
            first=self._first,
            calls=1 if self._upstream else 0,
            input_tokens=max(0, usage.prompt_tokens),
            output_tokens=max(0, usage.completion_tokens),
            detail=detail,
        )
        journal.note(entry, None)
