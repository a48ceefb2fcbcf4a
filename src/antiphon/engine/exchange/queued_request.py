"""Queues a background request: checks it, stores its job, and answers the client.

The job contains the request, and the store saves it together with the queued response. `queueing.py` handles the
client's credentials. A worker later runs the job in another exchange (`made_response.py`).

Invariant: the client of an invalid request gets an error immediately, instead of a response that fails later.
"""

from __future__ import annotations

from msgspec import Raw

from antiphon.engine.exchange.call_headers import continued, kept_for_later
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.parsed_request import ParsedRequest
from antiphon.engine.exchange.phase import ExchangeCore, Phase
from antiphon.engine.exchange.queueing import (
    check_background,
    check_keyless,
    credentials_of,
    is_secret,
    seal_headers,
)
from antiphon.engine.exchange.requested_tools import hosted_tools
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.stored_items import make_record
from antiphon.engine.ports.actions import Context, Enqueue, LoadContext
from antiphon.engine.ports.jobs import JobRequest
from antiphon.errors import ApiError, StoreError, store_refusal
from antiphon.translation.request.prompt_template import pin_prompt
from antiphon.translation.values import Ending
from antiphon.types.json import encode
from antiphon.types.request import CreateResponse


class QueuedRequest(Phase):
    """The phase that queues a background request. Raises `InvalidRequest` if the request needs a credential that a job
    may not store."""

    def __init__(self, core: ExchangeCore, parsed: ParsedRequest, body: bytes) -> None:
        super().__init__(core)
        options, request = core.options, parsed.request
        self._kept = kept_for_later(parsed.route)
        check_background(core.head, self._kept, request.tools, seals=options.seal_credentials)
        self._loaded = LoadedRequest(core, parsed, self._proceed, answers_approvals=True)
        self._body = body if request.prompt is None else pin_prompt(body, request.prompt)
        self._asks_keyless = False
        self._keyless = False
        core.known.makes_response, core.known.needs_drive = parsed.delivery.generate, True

    def begin(self) -> None:
        """Load the objects to which the request refers. If the request refers to no object, continue immediately.
        Raises `ApiError`."""
        core = self.core
        if core.route.passthrough and core.head.header("authorization"):
            # The sidecar does not store the client's key, so the sidecar first finds out whether the upstream needs a
            # key.
            self._asks_keyless = True
            core.load(LoadContext(core.head.owner, None, keyless=core.route.upstream))
        else:
            self._loaded.begin()

    def receive_context(self, context: Context) -> None:
        if self._asks_keyless:
            self._asks_keyless = False
            check_keyless(context.keyless, seals=self.core.options.seal_credentials)
            self._keyless = bool(context.keyless)
            self._loaded.begin()
        else:
            self._loaded.receive_context(context)

    def _proceed(self) -> None:
        """Queue the request. This method first translates the request, so that the client gets errors immediately. If
        the conversation needs compaction, only the worker translates the request, after the compaction."""
        loaded = self._loaded
        if not loaded.needs_compaction:
            chat = loaded.translate(loaded.request, loaded.items)
            if chat is None:
                return
            loaded.name_ignored(chat)
        core, kept = self.core, self._kept
        head = core.head
        loaded.builder.queue()
        secret = credentials_of(head, kept, passthrough=core.route.passthrough, keyless=self._keyless)
        sealed = seal_headers(core.options.sealer, head.owner, secret) if secret else ""
        plain = tuple(pair for pair in head.headers if pair[0] in kept and not is_secret(pair[0]))
        headers = continued(plain, core.observer.trace())
        response = loaded.builder.response
        caller = (head.caller.name, head.caller.team, head.caller.key_id)
        job = JobRequest(
            Raw(self._body.strip()),
            [*headers],
            response.created_at,
            head.request_id,
            sealed,
            caller,
            core.known.loaded_bytes,
        )
        record = make_record(response, Ending("queued"), head.owner, loaded.stored_input(), (), 0.0, None)
        needs = job_needs(loaded.request, core.route, core.options.tool_types)
        core.machine.go(State.SAVING)
        core.actions.append(Enqueue(record, encode(job), loaded.builder.take(), needs))

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        core = self.core
        if isinstance(error, StoreError):
            error = store_refusal(error, "The response could not be stored")
        core.known.queued = error is None
        if error is not None:
            core.refuse(error)
        elif core.cancelled:
            core.finish("cancelled")
        elif core.known.streaming:
            core.answer.open_followed()
            core.follow(core.known.response_id)
        else:
            core.answer.whole(encode(self._loaded.builder.response))
            core.finish("queued")


PAYLOADS: tuple[int, ...] = (1,)
"""The format versions of a stored job (`engine/ports/jobs.py`) that this build of Antiphon can read. This build writes
the last version in the tuple.

A format that older builds cannot read gets a new version number. The tuple also contains older versions, because during
a rollout the queue may have jobs that an older build stored.
"""


def job_needs(
    request: CreateResponse, route: ModelRoute, tool_types: frozenset[str], *, payloads: tuple[int, ...] = PAYLOADS
) -> tuple[str, ...]:
    """Return the names of the features that a worker must support to run this request: the job's format version, the
    upstream and the hosted tools."""
    tools = {f"tool:{tool.type}" for tool in hosted_tools(request, tool_types)}
    return (f"version:{payloads[-1]}", f"upstream:{route.upstream}", *sorted(tools))


def able_to(routes: ModelRoutes, tool_types: frozenset[str], *, payloads: tuple[int, ...] = PAYLOADS) -> frozenset[str]:
    """Return the names of the features that a process supports: the format versions of jobs, the upstreams of `routes`
    and the hosted tools in `tool_types`."""
    upstreams = {route.upstream for route in (routes.default, *(rule.route for rule in routes.rules))}
    return frozenset(
        (
            *(f"version:{number}" for number in payloads),
            *(f"upstream:{name}" for name in upstreams),
            *(f"tool:{kind}" for kind in tool_types),
        )
    )
