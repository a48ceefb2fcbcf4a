"""A background request at the door that it came by: checked, queued for a worker, followed by whoever wants its stream.

Lives here: when it can be queued, and what its client gets. Not here: the job's payload (`queueing.py`), running it: a
worker's exchange makes the response (`made_response.py`).

Invariant: what is wrong with a request is told now, not by a response that fails later.
"""

from __future__ import annotations

from antiphon.engine.exchange.asked import Asked
from antiphon.engine.exchange.call_headers import continued, kept_for_later
from antiphon.engine.exchange.job_needs import job_needs
from antiphon.engine.exchange.queueing import (
    check_background,
    check_keyless,
    credentials_of,
    make_enqueue,
    seal_headers,
    without_input,
)
from antiphon.engine.exchange.served_request import ExchangeCore
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.translated_request import TranslatedRequest
from antiphon.engine.ports.actions import Context, LoadContext, RequestHead
from antiphon.errors import ApiError, StoreError, store_refusal
from antiphon.translation.initial_response import bare
from antiphon.translation.prompt_template import pin_prompt
from antiphon.types.json import encode


class QueuedRequest(TranslatedRequest):
    """One such request, with its body. Raises `InvalidRequest` when it cannot run without its client."""

    needs_drive = True
    answers_approvals = True

    def __init__(self, core: ExchangeCore, head: RequestHead, asked: Asked, body: bytes) -> None:
        options, request = core.options, asked.request
        self._seals = options.seal_credentials and options.sealer is not None
        kept = kept_for_later(asked.route)
        check_background(head, kept, request.tools, available=options.background, seals=self._seals)
        super().__init__(core, head, asked)
        self.makes_response = asked.wishes.generate
        self._body = body if request.prompt is None else pin_prompt(body, request.prompt)
        self._asks_keyless = False
        self._keyless = False

    def begin(self) -> None:
        if self.route.passthrough and self.head.header("authorization"):
            # Its key is not to be kept, so whether it is needed comes first.
            self._asks_keyless = True
            self.load(LoadContext(self.head.owner, None, keyless=self.route.upstream))
        else:
            super().begin()

    def receive_context(self, context: Context) -> None:
        if not self._asks_keyless:
            super().receive_context(context)
            return
        self._asks_keyless = False
        check_keyless(context.keyless, seals=self._seals)
        self._keyless = bool(context.keyless)
        super().begin()

    def proceed(self) -> None:
        if not self.needs_compaction:
            translated = self.translate(self.request, self.items)
            if translated is None:
                return
            self.name_ignored(translated)
        self._enqueue()

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        if isinstance(error, StoreError):
            error = store_refusal(error, "The response could not be stored")
        if error is not None:
            self.refuse(error)
        elif self.core.cancelled:
            self.finish("cancelled")
        elif self.streaming:
            self.core.answer.open_followed()
            self._follow()
        else:
            self.core.answer.whole(encode(self.builder.response))
            self.finish("queued")

    def _enqueue(self) -> None:
        self.prepare_stored()
        head, sealer = self.head, self.core.options.sealer
        body, self._body = self._body, b""
        self.builder.queue()
        kept = kept_for_later(self.route)
        secret = credentials_of(head, kept, passthrough=self.route.passthrough, keyless=self._keyless)
        sealed = seal_headers(sealer, head.owner, secret) if secret and sealer is not None else ""
        self.core.machine.go(State.SAVING)
        self.core.actions.append(
            make_enqueue(
                self.builder.response,
                head,
                body,
                self.stored_input or (),
                continued(tuple(pair for pair in head.headers if pair[0] in kept), self.core.observer.trace()),
                self.builder.take(),
                self.request.conversation,
                sealed,
                job_needs(self.request, self.route, self.core.options.tool_types),
            )
        )

    def _follow(self) -> None:
        """It may take hours: nothing is kept of what the request brought."""
        self.request = without_input(self.request)
        self.builder.response = bare(self.builder.response)
        self.forget_input()
        self.follow(self.response_id)
