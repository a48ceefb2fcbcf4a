"""Ends a response: saves it, then sends its terminal event.

The other phases decide when and why a response ends. `stored_items.py` converts the response for the store.

Invariant: the store saves the response before the client gets the terminal event.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from msgspec import Raw

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.failure import refusal
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.phase import Phase
from antiphon.engine.exchange.prompt_comparison import PromptComparison
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.stored_items import make_record, prepare_input, stored_input
from antiphon.engine.exchange.tool_turns import ToolTurns
from antiphon.engine.ports.actions import CancelReason, ResponseRecord, SaveResponse
from antiphon.errors import ApiError, StoreError, store_refusal
from antiphon.translation.chat.compaction import latest_users
from antiphon.translation.events.encode import DONE
from antiphon.translation.token_usage import add_usage, usage_object
from antiphon.translation.values import ChatTranslation, Ending
from antiphon.types.json import encode

_LARGE: Final = 1 << 20


class ResponseEnd(Phase):
    """The last phase of a response. `turns` has the response's hosted tool calls, or is None without hosted tools."""

    def __init__(self, loaded: LoadedRequest) -> None:
        super().__init__(loaded.core)
        self.loaded = loaded
        self.builder = loaded.builder
        self.turns: ToolTurns | None = None
        self._comparison = PromptComparison(loaded) if loaded.compares else None
        self._ending: Ending | None = None
        self._at = 0.0
        self._unsaved: ApiError | None = None

    def compare(self, chat: ChatTranslation) -> None:
        """If the request has a `comparison_response_id`, compare the prompt of the next model call with that response's
        prompt."""
        if self._comparison is not None:
            self._comparison.compare(chat)

    def conclude(self, ending: Ending) -> None:
        """End the response: send the client all events except the last, and request that the store saves the
        response."""
        core, builder = self.core, self.builder
        core.phase = self
        self._ending, self._at = ending, core.clock()
        failed = ending.status == "failed"
        if failed:
            # The model call's error has the cause, which the client's error lacks. While tools run, the upstream is not
            # at fault.
            known = ending.error if core.machine.state is not State.RUNNING else None
            core.note_failure(core.failure_of(known or core.answer.as_http_error(ending)))
        if self.turns is not None:
            self.turns.stop()
        builder.emit_all_later()
        spent, core.known.spent = core.known.spent, None
        if self._comparison is not None:
            self._comparison.report(builder.response.usage if spent is None else None)
        if spent is not None:
            builder.response.usage = add_usage(spent, builder.response.usage)
        if core.known.streaming and not core.cancelled and (core.answer.head_sent or not failed):
            core.answer.open_stream(builder)
            core.answer.events(builder)
        # A client that gets an HTTP error never sees the response's id, so the store does not need the response.
        unseen = failed and not core.counts and not core.answer.head_sent and not core.cancelled
        if unseen or not core.known.stored:
            self._tell(ending)
        else:
            core.machine.go(State.SAVING)
            core.actions.append(SaveResponse(self.record(ending)))

    def fall_silent(self, reason: CancelReason) -> None:
        """Stop emitting events, because the client has disconnected. This saves CPU time, because several of the last
        events repeat the whole text."""
        builder = self.builder
        builder.draft.mute()
        if reason is CancelReason.SHUTTING_DOWN and builder.draft.size > _LARGE and not self.core.counts:
            # A stopping process has little time for all its responses. So the process saves a large response without
            # its output.
            self.core.call.reader = AnswerReader()
            builder.draft.output.clear()

    def record(self, ending: Ending) -> ResponseRecord:
        """Return the response in the form that the store saves if the response ends with `ending`."""
        core, builder, known = self.core, self.builder, self.core.known
        items, shown = self.loaded.stored_input(), self.turns.shown if self.turns is not None else {}
        owner, usage = core.head.owner, known.usage
        record = make_record(builder.response, ending, owner, items, builder.draft.output, self._at, usage, shown)
        return replace(record, sent_calls=core.counts)

    def unstored_record(self) -> ResponseRecord | None:
        return self.record(self._ending) if self._ending is not None and not self.core.known.stored else None

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        assert self._ending is not None
        if error is not None:
            unsaved = error if isinstance(error, ApiError) else store_refusal(error, "The response could not be stored")
            self.core.note_failure(refusal(unsaved, self.core.machine.state))
            self._unsaved = unsaved
            self._ending = Ending("failed", code="server_error", message=unsaved.message)
        self._tell(self._ending)

    def _tell(self, ending: Ending) -> None:
        """Send the client the terminal event, the JSON answer or the HTTP error. Then finish the exchange."""
        core, builder, answer = self.core, self.builder, self.core.answer
        core.counts = core.counts or (ending.status != "failed" and not core.cancelled)
        core.release()
        if core.cancelled:
            core.finish("cancelled")
            return
        if ending.status == "failed" and not answer.head_sent:
            core.refuse(self._unsaved or self._naming_calls(answer.as_http_error(ending)))
            return
        if ending.status == "completed":
            builder.complete(self._at)
        elif ending.status == "incomplete":
            builder.incomplete(ending.reason)
        else:
            builder.fail(ending.code, ending.message)
        if core.known.streaming:
            answer.events(builder, DONE)
        else:
            answer.whole(self._compaction() if self.loaded.compacts else encode(builder.response))
        core.finish(ending.status)

    def _naming_calls(self, error: ApiError) -> ApiError:
        """Add the id of the stored response to the error's message, if approved or possibly state-changing tool calls
        have run. The client can read the calls in that response."""
        known = self.core.known
        if self.core.counts and known.stored:
            error.message = f"{error.message} The stored response '{known.response_id}' contains its tool calls."
        return error

    def _compaction(self) -> bytes:
        """Return the answer of `/v1/responses/compact`: the latest user messages and the compaction. A client continues
        the conversation with these items."""
        response = self.builder.response
        users = stored_input(prepare_input(latest_users(self.loaded.items), self.core.new_id))
        return encode(
            {
                "id": response.id,
                "object": "response.compaction",
                "created_at": response.created_at,
                "output": [*(Raw(item.body) for item in users), *self.builder.draft.output],
                "usage": response.usage or usage_object(0, 0, 0, 0, 0, 0),
            }
        )
