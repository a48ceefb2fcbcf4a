"""Performs one model turn: requests the call, and reads events from its answer.

Lives here: requesting the call, choosing the reader of the answer, and reporting the call's token usage. Not here: the
rest of `max_output_tokens` (`tool_turns.py`), the content of the call and the use of its answer (`made_response.py`).
Not here: how the bytes of an answer are read (`answer_readers.py`).

Invariant: each call's usage is reported once.
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
    """Performs model turns, one after the other. `builder` takes the model's output."""

    def __init__(self, end: ResponseEnd, builder: ResponseBuilder) -> None:
        super().__init__(end.core)
        self.loaded = end.loaded
        self.response_end = end
        self.builder = builder
        # The parts of the call that are needed to read its answer.
        self._tools = ToolMap()
        self._logprobs = False
        self._citations: Citations | None = None
        self._sent: dict[str, str] = {}
        self._refused = BodyReader(0)
        self._size_before = 0
        self._untold = False
        """Whether the last call's usage is not reported yet."""

    @abstractmethod
    def ended(self, ending: Ending) -> None:
        """Handle the end of the model's output. It ends the turn or the response."""

    def ask(
        self,
        chat: ChatTranslation,
        tools: ToolMap,
        *,
        logprobs: bool = False,
        citations: Citations | None = None,
    ) -> None:
        """Call the model. `tools` maps the names of tools whose calls the answer may contain."""
        core = self.core
        core.phase = self
        self._tools, self._logprobs, self._citations, self._sent = tools, logprobs, citations, chat.sent
        self._size_before, self._untold = self.builder.draft.size, True
        core.ask_upstream("/chat/completions", chat.body, stream=core.known.streaming)
        if self.loaded.in_background:
            # The client has its answer already, so a failure from here on fails the response.
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
            # JSON although a stream was requested, or no valid answer: the reader checks the whole body at its end.
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
        """Fail with the upstream's error, of which enough is read."""
        core = self.core
        error = core.refused_upstream(self._refused.body, self._sent)
        if not core.call.status:
            # Only the log line names the proxy that answered instead.
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
        """End the model's output. `cut` is the reason if it is broken off."""
        call = self.core.call
        ending = call.reader.end(cut)
        if self.core.cancelled and cut is not None:
            ending = cut
        call.reader = AnswerReader()
        self._tell_usage()
        self.ended(ending)

    def _tell_usage(self) -> None:
        """Report the call's usage, counted or estimated.

        Upstreams return token counts at the end, and some never do. A call that is broken off, or without counts, has
        used tokens anyway, so the sidecar estimates them.
        """
        call, used = self.core.call, self.builder.response.usage
        if not self._untold:
            # It is reported already: a response may also end between two calls.
            return
        self._untold = False
        if used is not None:
            self.core.observer.call_used(Usage.of(used))
        elif 200 <= call.status < 300:
            estimated = Usage.estimated(call.size, self.builder.draft.size - self._size_before)
            self.core.observer.call_used(estimated, estimated=True)
