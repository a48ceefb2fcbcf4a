"""Performs one model turn: requests the call, and reads events from its answer.

Lives here: requesting the call, choosing the reader of the answer, and reporting the call's token usage. Not here: the
remaining `max_output_tokens` after earlier turns (`tool_turns.py`), and parsing the bytes of an answer
(`answer_readers.py`). Not here: the content of the call, and the use of its answer (`made_response.py`).

Invariant: a turn reports the usage of each call once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from antiphon.engine.exchange.answer_readers import AnswerReader, BodyReader, ChatBodyReader, StreamReader
from antiphon.engine.exchange.failure import refusal, transport_failure
from antiphon.engine.exchange.phase import Phase, whose
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason, Usage
from antiphon.translation.answer.stream import ChatStream
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.citations import Citations
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import ChatTranslation, Ending
from antiphon.types.transport import Headers, UpstreamError, header_value

_NOT_OVER: Final = Ending("in_progress")


class ModelTurn(Phase, ABC):
    """Performs model turns, one after the other. `builder` receives the model's output and builds the response."""

    def __init__(self, end: ResponseEnd, builder: ResponseBuilder) -> None:
        super().__init__(end.core)
        self.loaded = end.loaded
        self.response_end = end
        self.builder = builder
        # The arguments of the model call that the reader of the answer needs.
        self._tools = ToolMap()
        self._logprobs = False
        self._citations: Citations | None = None
        self._sent: dict[str, str] = {}
        self._refused = BodyReader(0)
        self._size_before = 0
        self._untold = False
        """Whether the turn has not yet reported the token usage of the last model call."""

    @abstractmethod
    def ended(self, ending: Ending) -> None:
        """Handle the end of the model's output. The subclass runs tools, calls the model again, or ends the
        response."""

    def ask(
        self,
        chat: ChatTranslation,
        tools: ToolMap,
        *,
        logprobs: bool = False,
        citations: Citations | None = None,
    ) -> None:
        """Call the model. `tools` maps the tool names that the model knows to the request's tools."""
        core = self.core
        core.phase = self
        self._tools, self._logprobs, self._citations, self._sent = tools, logprobs, citations, chat.sent
        self._size_before, self._untold = self.builder.draft.size, True
        core.ask_upstream("/chat/completions", chat.body, stream=core.known.streaming)
        if self.loaded.in_background:
            # The HTTP request was answered when the job was queued. A later failure can only fail the response.
            if core.known.streaming:
                core.answer.open_stream(self.loaded.builder)
            core.answer.head_sent = True

    def receive_head(self, status: int, headers: Headers) -> None:
        core = self.core
        limits = core.options.limits
        core.answer.upstream = headers
        if not 200 <= status < 300:
            self._refused = core.call.reader = BodyReader(limits.upstream_error_bytes)
            core.machine.go(State.REFUSED)
            return
        chat = ChatStream(
            self.builder,
            self.loaded.profile,
            tools=self._tools,
            logprobs=self._logprobs,
            citations=self._citations,
            event_limit=limits.sse_event_bytes,
            idle_limit=limits.no_output_bytes,
            secrets=core.secrets,
            max_calls=limits.tool_calls,
        )
        if "text/event-stream" in (header_value(headers, "content-type") or "").lower():
            core.call.reader = StreamReader(chat, self.loaded.builder, core.actions)
            core.machine.go(State.STREAMING)
            if core.known.streaming:
                core.answer.open_stream(self.loaded.builder)
        else:
            # The answer is one JSON body (even if the call requested a stream), or the answer is invalid. The reader
            # checks the body when it is complete.
            core.call.reader = ChatBodyReader(chat, self.loaded.builder, limits.upstream_body_bytes)
            core.machine.go(State.COLLECTING)

    def stop_reading(self) -> None:
        state = self.core.machine.state
        if state is State.STREAMING:
            self._over(None)
        elif state is State.REFUSED:
            self._end_refused()
        else:
            self._over(Ending("failed", code="upstream_too_large", message="The upstream's answer is too large."))

    def receive_end(self, error: UpstreamError | None) -> None:
        core = self.core
        state = core.machine.state
        if state is State.CALLING:
            self.fail(transport_failure(error))
        elif state is State.REFUSED:
            self._end_refused()
        elif error is None:
            core.call.reader.read_whole()
            self._over(None)
        else:
            mapped = transport_failure(error)
            core.note_failure(whose(refusal(mapped, state, core.upstream_name), error))
            self._over(Ending("failed", code=mapped.code or "server_error", message=mapped.message))

    def _end_refused(self) -> None:
        """Fail with the upstream's error, after the error body ended or reached its size limit."""
        core = self.core
        error = core.refused_upstream(self._refused.body, self._sent)
        if not core.call.status:
            # A proxy answered instead of the upstream. Only the log line names this proxy.
            core.note_failure(core.failure_of(error))
        self.fail(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        self.response_end.fall_silent(reason)
        self.end(Ending("failed", code="server_error", message=message))

    def end(self, cut: Ending) -> None:
        self._over(cut)

    def break_off(self) -> None:
        self.builder.draft.mute()
        self.core.call.reader.end(_NOT_OVER)
        self._tell_usage()

    def _over(self, cut: Ending | None) -> None:
        """End the model's output, and report the call's usage. `cut` is the reason if the output is incomplete."""
        call = self.core.call
        ending = call.reader.end(cut)
        if self.core.cancelled and cut is not None:
            ending = cut
        call.reader = AnswerReader()
        self._tell_usage()
        self.ended(ending)

    def _tell_usage(self) -> None:
        """Report the call's token usage, as the upstream counted it or as an estimate.

        An upstream returns token counts at the end of its answer, and some upstreams return no counts. If a call has no
        counts, the sidecar estimates the tokens from the size of the request and of the output.
        """
        call, used = self.core.call, self.builder.response.usage
        if not self._untold:
            # The usage was reported when the call ended. A response can also end between two calls.
            return
        self._untold = False
        if used is not None:
            self.core.observer.call_used(Usage.of(used))
        elif 200 <= call.status < 300:
            estimated = Usage.estimated(call.size, self.builder.draft.size - self._size_before)
            self.core.observer.call_used(estimated, estimated=True)
