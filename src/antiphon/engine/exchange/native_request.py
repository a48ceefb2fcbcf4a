"""A request for an upstream that speaks Responses itself: it goes on as it came, and so does its answer.

Lives here: when it is refused, what becomes of an answer that breaks off. Not here: the bytes of the answer, what the
request must not name (`native_answer.py`), which models are native (`model_routes.py`).

Invariant: nothing of the request is kept here.
"""

from __future__ import annotations

from antiphon.engine.exchange.failure import transport_failure
from antiphon.engine.exchange.local_answers import not_answered
from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.native_answer import NativeAnswer
from antiphon.engine.exchange.native_references import refuse_references
from antiphon.engine.exchange.options import RESPONSES_PATH
from antiphon.engine.exchange.phase import ExchangeCore, Phase, whose
from antiphon.engine.exchange.request_context import no_such_model
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason, Usage
from antiphon.errors import ApiError, UpstreamFailed, UpstreamTimedOut
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault


class NativeRequest(Phase):
    """One such request; `path` is the one it came by, without its query."""

    def __init__(self, core: ExchangeCore, route: ModelRoute, model: str, path: str) -> None:
        super().__init__(core)
        core.route, core.known.model = route, model
        core.known.needs_drive = path != RESPONSES_PATH
        self._path = path
        self._answer: NativeAnswer | None = None

    def begin(self, body: bytes) -> None:
        """Pass it on. Raises `ApiError`."""
        core, model = self.core, self.core.known.model
        if not core.route.serves(model):
            raise no_such_model(model)
        if core.options.several_owners and not core.route.passthrough:
            refuse_references(body)
        core.ask_upstream(self._path.removeprefix("/v1"), body, stream=True, native=True)

    def receive_head(self, status: int, headers: Headers) -> None:
        core = self.core
        core.call.reader = self._answer = NativeAnswer(
            core.actions,
            status,
            headers,
            core.options.limits.upstream_body_bytes,
            own=core.route.passthrough or not core.options.several_owners,
            secrets=core.secrets,
        )
        core.answer.head_sent = self._answer.streamed
        core.machine.go(State.PASSING)

    def stop_reading(self) -> None:
        too_large = UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large")
        self._break_off(UpstreamError(UpstreamFault.TOO_LARGE, "the stream has no end"), too_large)

    def receive_end(self, error: UpstreamError | None) -> None:
        answer = self._answer
        if answer is None or error is not None:
            self._break_off(error, transport_failure(error))
            return
        core = self.core
        outcome = answer.pass_end()
        if outcome == "error":
            status = core.call.status
            refused = ApiError("The upstream refused.", status=status) if status else None
            core.note_failure(core.failure_of(refused or not_answered(core.call.local_reply)))
        self._tell_usage()
        core.finish(outcome)

    def fail(self, error: ApiError) -> None:
        if isinstance(error, UpstreamTimedOut):
            fault = UpstreamError(UpstreamFault.TIMED_OUT, "the response took too long")
        else:
            fault = UpstreamError(UpstreamFault.TOO_LARGE, error.message)
        self._break_off(fault, error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        self._tell_usage()
        super().cancel(reason, message)

    def _break_off(self, fault: UpstreamError | None, error: ApiError) -> None:
        """An HTTP error while that is possible. The bytes of a stream so far are the client's: that they are not all
        can only be told by breaking off."""
        core = self.core
        self._tell_usage()
        if fault is None or self._answer is None or not self._answer.streamed:
            core.refuse(error)
            return
        core.note_failure(whose(core.failure_of(transport_failure(fault)), fault))
        core.finish("cut")

    def _tell_usage(self) -> None:
        """An upstream that speaks Responses counts by itself, or nobody does: sizes say nothing of what it keeps."""
        used = self._answer.usage() if self._answer is not None else None
        if used is not None:
            self.core.known.spent = used
            self.core.observer.call_used(Usage.of(used))
