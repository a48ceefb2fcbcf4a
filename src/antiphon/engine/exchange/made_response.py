"""A response that is made here: the model's turns, tools and compactions between them, and its end.

Lives here: what follows what, from the chat request to the last event. Not here: what is loaded before
(`translated_request.py`), how bytes of an answer are read (`answer_readers.py`), the calls of a turn (`tool_turns.py`),
what is summed up (`compaction_turn.py`), which input may come when (`states.py`).

Invariant: the response is saved before its terminal event is sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from antiphon.engine.exchange.answer_readers import AnswerReader, BodyReader, ChatBodyReader, StreamReader
from antiphon.engine.exchange.approvals import approved_calls
from antiphon.engine.exchange.asked import Asked
from antiphon.engine.exchange.compaction_turn import SummaryTurn
from antiphon.engine.exchange.declared_tools import hosted_tools, with_servers
from antiphon.engine.exchange.failure import refusal, transport_failure
from antiphon.engine.exchange.served_request import ExchangeCore, refused_for, whose
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.stored_items import make_record, prepare_input, stored_input, stored_output
from antiphon.engine.exchange.tool_turns import ToolTurns, citations_of, later_choice
from antiphon.engine.exchange.translated_request import TranslatedRequest
from antiphon.engine.ports.actions import (
    CancelReason,
    PrepareTools,
    RequestHead,
    ResponseRecord,
    RunTools,
    SaveResponse,
    Usage,
)
from antiphon.engine.ports.hosted_tools import HostedCall, PreparedTool, ToolResult
from antiphon.errors import ApiError, StoreError, store_refusal
from antiphon.translation.chat_stream import ChatStream
from antiphon.translation.encode import DONE
from antiphon.translation.initial_response import with_fallback
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.upstream_errors import as_event_failure
from antiphon.translation.usage import add_usage, usage_object
from antiphon.translation.values import ChatTranslation, Ending
from antiphon.types.json import encode
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, UpstreamError, header_value

_LARGE_END: Final = 1 << 20
LEFT_BEHIND: Final = (
    "The server process died while tools of this response ran. It is unknown which calls took effect; the server does "
    "not repeat them."
)
_NOT_OVER: Final = Ending("in_progress")


class MadeResponse(TranslatedRequest):
    """One such response."""

    answers_approvals = True

    def __init__(self, core: ExchangeCore, head: RequestHead, asked: Asked) -> None:
        super().__init__(core, head, asked)
        request = asked.request
        self.makes_response = asked.wishes.generate
        hosted = hosted_tools(request, core.options.tool_types)
        self.needs_drive = request.compact_threshold is not None or request.background or bool(hosted)
        self._background = asked.queued is not None
        self._fits = False
        """Whether the conversation needs no compaction (any more)."""
        self._summary: SummaryTurn | None = None
        self._tool_turns: ToolTurns | None = None
        # What was asked of the model, and what of it is needed to read its answer.
        self._tools = ToolMap()
        self._sent: dict[str, str] = {}
        self._body = BodyReader(0)
        self._spent: UsageObject | None = None
        """What the turns before this one have used."""
        self._untold = False
        """Whether nobody was told yet what the last call has taken."""
        self._ending = _NOT_OVER
        self._ended_at = 0.0
        self._unsaved: ApiError | None = None
        self._had_sent = False

    @property
    def usage_object(self) -> UsageObject | None:
        usage = self.builder.response.usage
        return usage if self._spent is None else add_usage(self._spent, usage)

    def unstored_record(self) -> ResponseRecord | None:
        return self._record(self._ending) if not self.stored and self._ending is not _NOT_OVER else None

    # Before the model's turn

    def proceed(self) -> None:
        """Call the model, or have done first what must come before that."""
        if not self._fits and self.needs_compaction and self._sum_up():
            return
        self._fits = True
        if self._tool_turns is None and self._begin_tools():
            return
        translated = self.translate(self.request, self.items)
        if translated is None:
            return
        self.name_ignored(translated)
        self.prepare_stored()
        if self.wishes.generate:
            self._ask_model(translated)
        else:
            self._complete_empty()

    def receive_tools(self, prepared: tuple[PreparedTool, ...]) -> None:
        self.prepared = with_servers(prepared, self.request.tool_choice)
        self.proceed()

    def _ask_model(self, translated: ChatTranslation) -> None:
        self._tools, self._sent = translated.tools, translated.sent
        self._size_before, self._untold = self.builder.size, True
        self.call("/chat/completions", translated.body, stream=self.streaming)
        if self._background:
            # Its client has its answer: from here on a failure is one of the response.
            if self.streaming:
                self.core.answer.open_stream(self.builder)
            self.core.answer.head_sent = True

    # The model's answer

    def receive_silence(self) -> None:
        """A client whose upstream's head is late gets its own head and first events now."""
        if self.core.machine.state is State.CALLING and self.streaming and not self.core.answer.head_sent:
            self.core.answer.open_stream(self.builder)
        else:
            super().receive_silence()

    def receive_source(self, name: str, tried: int) -> None:
        super().receive_source(name, tried)
        if self.core.fallback:
            self.builder.response.metadata = with_fallback(self.builder.response.metadata, self.core.fallback)

    def receive_head(self, status: int, headers: Headers) -> None:
        core = self.core
        core.answer.upstream = headers
        if not 200 <= status < 300:
            self._body = self.reader = BodyReader(core.options.limits.upstream_error_bytes)
            core.machine.go(State.REFUSED)
            return
        chat = self._make_chat()
        if "text/event-stream" in (header_value(headers, "content-type") or "").lower():
            self.reader = StreamReader(chat, self.builder, core.actions)
            core.machine.go(State.STREAMING)
            if self.streaming:
                self.core.answer.open_stream(self.builder)
        else:
            # JSON although a stream was asked for, or something that is no answer at all: judged when it is whole.
            self.reader = ChatBodyReader(chat, self.builder, core.options.limits.upstream_body_bytes)
            core.machine.go(State.COLLECTING)

    def _make_chat(self) -> ChatStream:
        options, summary, turns = self.core.options, self._summary, self._tool_turns
        return ChatStream(
            self.builder if summary is None else summary.builder,
            self.profile,
            tools=self._tools,
            logprobs=summary is None and self.request.logprobs,
            citations=citations_of(turns, self.items) if summary is None else None,
            event_limit=options.limits.sse_event_bytes,
            idle_limit=options.limits.no_output_bytes,
            secrets=self.secrets,
            max_calls=options.limits.tool_calls,
        )

    def stop_reading(self) -> None:
        state = self.core.machine.state
        if state is State.STREAMING:
            self._end_model_turn(None)
        elif state is State.REFUSED:
            self._end_refused()
        else:
            too_large = Ending("failed", code="upstream_too_large", message="The upstream's answer is too large.")
            self._end_model_turn(too_large)

    def receive_end(self, error: UpstreamError | None) -> None:
        state = self.core.machine.state
        if state is State.CALLING:
            self.fail(transport_failure(error))
        elif state is State.REFUSED:
            self._end_refused()
        elif error is None:
            self.reader.read_whole()
            self._end_model_turn(None)
        else:
            mapped = transport_failure(error)
            self.core.note_failure(whose(refusal(mapped, state, self.asked), error))
            self._end_model_turn(Ending("failed", code=mapped.code or "server_error", message=mapped.message))

    def _end_refused(self) -> None:
        """Of an upstream's error enough is known."""
        error = self.refused_upstream(self._body.body, self._sent)
        if not self.upstream_status:
            # Whoever answered instead is named in the line alone.
            self.core.note_failure(self.failure_of(error))
        self.fail(error)

    def reject(self, error: ApiError) -> None:
        self.fail(error)

    def fail(self, error: ApiError) -> None:
        """There will be no answer: an HTTP error while that is possible, else the failed path."""
        if not self.core.answer.head_sent and not self.core.counts:
            self.refuse(error)
            return
        code, message = as_event_failure(error)
        self._end_model_turn(Ending("failed", code=code, message=message, error=error))

    def cancel(self, reason: CancelReason, message: str) -> None:
        # The events of an end hold all text several times over, and nobody is there to read them.
        self.builder.mute()
        if reason is CancelReason.SHUTTING_DOWN and self.builder.size > _LARGE_END and not self.core.counts:
            # The process has a moment left for all its responses: of a large one the row alone is kept.
            self.reader, self._summary = AnswerReader(), None
            self.builder.drop_output()
        self._end_model_turn(Ending("failed", code="server_error", message=message))

    def break_off(self) -> None:
        self.builder.mute()
        self.reader.end(_NOT_OVER)
        self._tell_usage(self._summary)

    def _end_model_turn(self, cut: Ending | None) -> None:
        """The model's output is over: the turn's, or the response's."""
        ending = self.reader.end(cut)
        cancelled = self.core.cancelled
        if cancelled and cut is not None:
            ending = cut
        summary, self._summary = self._summary, None
        self._tell_usage(summary)
        if summary is not None:
            self._end_summary(summary, ending)
        elif ending.status != "completed" or cancelled or not self._goes_on():
            self._conclude(ending)

    def _tell_usage(self, summary: SummaryTurn | None) -> None:
        """What the call has taken. Upstreams count at the end, and some never do; whoever was not heard to the end, or
        does not count, has worked all the same."""
        untold, self._untold = self._untold, False
        used = summary.usage if summary is not None else self.builder.response.usage
        if not untold:
            # A response may also end between two calls.
            return
        if used is not None:
            self.core.observer.call_used(Usage.of(used))
        elif 200 <= self.upstream_status < 300:
            written = summary.builder.size if summary is not None else self.builder.size - self._size_before
            self.core.observer.call_used(Usage.estimated(self.call_bytes, written), estimated=True)

    # Compaction: a turn of its own, before the answer or instead of it

    def _sum_up(self) -> bool:
        """Have the model sum up what can be summed up (files may have to be fetched first); False when there is
        nothing."""
        request = self.request
        limit = self.core.options.limits.upstream_body_bytes
        summary = SummaryTurn(request, self.items, self.builder.response, limit, self.core.new_id)
        if not summary.worthwhile:
            return False
        self.sealed_content.check()
        translated = self.translate(*summary.asked(request))
        if translated is None:
            return True
        self.core.answer.ignored = (*request.ignored, *self.unknown)
        self.prepare_stored()
        self._summary = summary
        self._ask_model(translated)
        self._tools = ToolMap()
        return True

    def _end_summary(self, summary: SummaryTurn, ending: Ending) -> None:
        """The model's summary is there, or failed."""
        self.reader = AnswerReader()
        self._spent = summary.usage
        if ending.status == "failed" or self.core.cancelled:
            self._conclude(ending)
            return
        sealed = summary.sealed(self.sealed_content.seal)
        if sealed is None:
            message = "The model gave no summary of the conversation."
            self._conclude(Ending("failed", code="model_error", message=message))
            return
        self.builder.compaction(sealed)
        self.core.observer.compacted()
        if self.request.compact:
            self.builder.response.service_tier = summary.builder.response.service_tier
            self._conclude(Ending("completed"))
            return
        if self.core.answer.head_sent:
            self.core.answer.events(self.builder)
        try:
            self.items = summary.goes_on_with(sealed, self.sealed_content.unseal)
            self._fits = True
            self.proceed()
        except (ApiError, RecursionError) as error:
            self.fail(refused_for(error))

    # Tools that run here: the model's next turn follows their results

    def _begin_tools(self) -> bool:
        """Have the tools prepared that run here, and calls run that the client has approved; whether that is under
        way."""
        tools = hosted_tools(self.request, self.core.options.tool_types, self.items)
        if not tools:
            return False
        if self.prepared is None:
            self.core.machine.go(State.PREPARING)
            self.core.actions.append(PrepareTools(self.head.owner, self.response_id, tools))
            return True
        limits = self.core.options.tool_limits
        self._tool_turns = turns = ToolTurns(
            self.builder, self.prepared, self.items, self.core.new_id, self.head.owner, self.request, limits
        )
        approved = approved_calls(self.items, self.used)
        listed = turns.list_tools(self.items)
        if not approved:
            if listed and self.streaming:
                self.core.answer.open_stream(self.builder)
                self.core.answer.events(self.builder)
            return False
        self.prepare_stored()
        self._run_tools(turns, turns.begin_approved(approved))
        return True

    def _goes_on(self) -> bool:
        """Whether the model called tools that run here: the response goes on with them."""
        turns, response = self._tool_turns, self.builder.response
        calls = turns.take_calls() if turns is not None else []
        if turns is None or not calls:
            return False
        self.reader = AnswerReader()
        turns.pay(self.request, response.usage)
        if response.usage is not None:
            self._spent = add_usage(response.usage, self._spent)
            response.usage = None
        self._run_tools(turns, turns.begin(calls))
        return True

    def _run_tools(self, turns: ToolTurns, calls: tuple[HostedCall, ...]) -> None:
        self.core.machine.go(State.RUNNING)
        if self.streaming:
            self.core.answer.open_stream(self.builder)
        self.core.answer.events(self.builder)
        claim = None
        if turns.sends:
            self._had_sent = self.core.counts
            # However the response ends, its calls may have changed something.
            self.core.counts = True
            if calls and (self.stored or self.core.keyed):
                claim = self._left_behind(turns)
        if calls:
            self.core.actions.append(RunTools(calls, claim))
        else:
            self._end_tools(turns)

    def _left_behind(self, turns: ToolTurns) -> ResponseRecord:
        """The record to store if the process dies while these calls run."""
        self._ended_at = self.core.clock()
        record = self._record(Ending("failed", code="server_error", message=LEFT_BEHIND))
        unanswered = stored_output(turns.unanswered, {})
        return replace(record, output_items=(*record.output_items, *unanswered))

    def receive_unclaimed(self, error: StoreError) -> None:
        if self._tool_turns is None:
            raise self._unexpected("a claim")
        self.core.counts = self._had_sent
        self._tool_turns.drop()
        self.fail(store_refusal(error, "The server could not record the tool calls, and did not send them"))

    def receive_tool_result(self, result: ToolResult) -> None:
        turns = self._tool_turns
        if turns is None:
            raise self._unexpected("a tool's result")
        ended = turns.receive(result)
        self.core.answer.events(self.builder)
        if ended:
            self._end_tools(turns)

    def _end_tools(self, turns: ToolTurns) -> None:
        """All calls of the turn have their results: the model goes on, unless the client must do something first."""
        if turns.end_turn():
            self._conclude(Ending("completed"))
            return
        if self.request.max_output_tokens == 0:
            self._conclude(Ending("incomplete", reason="max_output_tokens"))
            return
        self.request.tool_choice = later_choice(self.request.tool_choice, last=turns.exhausted)
        self.items = turns.items
        try:
            translated = self.translate(self.request, self.items)
        except (ApiError, RecursionError) as error:
            self.fail(refused_for(error))
            return
        if translated is not None:
            self._ask_model(translated)

    # The end

    def _conclude(self, ending: Ending) -> None:
        """The response is over: save, and tell the client."""
        core, builder = self.core, self.builder
        self._ended_at = core.clock()
        self._ending = ending
        if ending.status == "failed":
            core.note_failure(self.failure_of(core.answer.as_http_error(ending)))
        if self._tool_turns is not None:
            self._tool_turns.stop()
        builder.emit_all_later()
        if self._spent is not None:
            builder.set_usage(add_usage(self._spent, builder.response.usage))
            self._spent = None
        self.tell(ending)

    def tell(self, ending: Ending) -> None:
        """The client gets what there is before its response is saved; then that is done."""
        core = self.core
        failed = ending.status == "failed"
        if self.streaming and not core.cancelled and (core.answer.head_sent or not failed):
            self.core.answer.open_stream(self.builder)
            core.answer.events(self.builder)
        if failed and not core.counts and not core.answer.head_sent and not core.cancelled:
            # The client gets an HTTP error and never sees an id.
            self._send_ending(ending)
        else:
            self._save(ending)

    def _complete_empty(self) -> None:
        """No model is asked: an answer without output, which later requests can continue."""
        self._ended_at = self.core.clock()
        self._ending = Ending("completed")
        self.builder.response.usage = usage_object(0, 0, 0, 0, 0, 0)
        if self.streaming:
            self.core.answer.open_stream(self.builder)
        self._save(self._ending)

    def _save(self, ending: Ending) -> None:
        if not self.stored:
            self._send_ending(ending)
            return
        self.core.machine.go(State.SAVING)
        self.core.actions.append(SaveResponse(self._record(ending)))

    def _record(self, ending: Ending) -> ResponseRecord:
        items = self.stored_input
        if items is None:
            items = stored_input(prepare_input(self.request.input, self.core.new_id))
        builder, owner = self.builder, self.head.owner
        shown = self._tool_turns.shown if self._tool_turns is not None else {}
        record = make_record(builder.response, ending, owner, items, builder.items, self._ended_at, self.usage, shown)
        return replace(record, sent_calls=self.core.counts)

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        if error is not None:
            unsaved = error if isinstance(error, ApiError) else store_refusal(error, "The response could not be stored")
            self.core.note_failure(refusal(unsaved, self.core.machine.state))
            self._unsaved = unsaved
            self._ending = Ending("failed", code="server_error", message=unsaved.message)
        self._send_ending(self._ending)

    def _send_ending(self, ending: Ending) -> None:
        """The terminal event, the JSON answer, or the error; then the end."""
        builder, answer = self.builder, self.core.answer
        self.core.counts = self.core.counts or (ending.status != "failed" and not self.core.cancelled)
        self.release()
        if self.core.cancelled:
            self.finish("cancelled")
            return
        if ending.status == "failed" and not answer.head_sent:
            self.refuse(self._unsaved or self._naming_calls(answer.as_http_error(ending)))
            return
        if ending.status == "completed":
            builder.complete(self._ended_at)
        elif ending.status == "incomplete":
            builder.incomplete(ending.reason)
        else:
            builder.fail(ending.code, ending.message)
        if self.streaming:
            answer.events(builder, DONE)
        else:
            answer.whole(encode(builder.response))
        self.finish(ending.status)

    def _naming_calls(self, error: ApiError) -> ApiError:
        """The error, with the id of the response that has the calls."""
        if self.core.counts and self.stored:
            error.message = f"{error.message} The response '{self.response_id}' has its tool calls."
        return error
