"""The builder: the only code that makes items, ids, indices, sequence numbers and events of a response.

This module decides the order of a response's events: the response's lifecycle events, and the events of the one open
item. `open_items.py` makes the events of an open item, and `response_draft.py` their sequence numbers and bytes.
`translation/answer/stream.py` interprets a chat chunk. `engine/exchange/response_end.py` saves and sends a response.

Invariants: at most one item is open. Every opened item is closed exactly once, in order. `sequence_number` is 0, 1, 2,
… without gaps. `response` always equals the state that a client computes from the events so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Raw

from antiphon.ids import IdFactory
from antiphon.translation import error_words
from antiphon.translation.events.open_items import (
    OPEN_CALLS,
    OpenCustomCall,
    OpenHostedItem,
    OpenItem,
    OpenLaterCall,
    OpenMessage,
    OpenOwnReasoning,
    OpenReasoning,
    OpenRefusal,
    OpenSummary,
    OpenText,
    TextOf,
)
from antiphon.translation.events.response_draft import ResponseDraft
from antiphon.translation.tool_map import HOSTED_KINDS, CallTarget
from antiphon.translation.values import BuilderOptions
from antiphon.types import events as ev
from antiphon.types.items import Compaction, HostedItem
from antiphon.types.json import fragment_of, raw
from antiphon.types.response import Response, ResponseError


class ResponseBuilder:
    """Builds one response. Methods append encoded server-sent events, which `take` returns."""

    def __init__(self, response: Response, options: BuilderOptions, new_id: IdFactory) -> None:
        self.response = response
        self._options = options
        self._started = False
        self._open: OpenItem | None = None
        # The state that the items write to: finished items, event numbers, and the size of the output.
        self.draft = ResponseDraft(
            new_id,
            events=options.events,
            obfuscate=options.obfuscate,
            max_bytes=options.max_bytes,
            number=options.first_number,
        )
        self._reasoning = _reasoning_form(options)
        response.output = self.draft.output

    def take(self) -> bytes:
        """Return all events since the last call, encoded as server-sent events."""
        draft = self.draft
        out = draft.out
        if not out:
            return b""
        draft.out = []
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def has_output(self) -> bool:
        """Whether there is any output. Calls of hosted tools count as output."""
        return bool(self.draft.output or self.draft.hosted_calls) or self._open is not None

    @property
    def seals(self) -> bool:
        """Whether the builder seals the reasoning. Only sealed content contains the reasoning details that later
        requests must return to the upstream."""
        return self._options.seal is not None

    def take_hosted_calls(self) -> list[tuple[CallTarget, str, str]]:
        """Return the new calls since the last `take_hosted_calls`: calls of hosted tools, and calls of the client's
        tools that follow these hosted calls. Each entry has the tool, the call's id and the arguments as text. The
        builder has not yet emitted any of these calls."""
        calls, self.draft.hosted_calls = self.draft.hosted_calls, []
        self.draft.calling = False
        return calls

    # Lifecycle

    def queue(self) -> None:
        """Emit the events `response.created` and `response.queued`. The stream of a background response begins with
        these events, before the response runs."""
        self.response.status = "queued"
        self.draft.emit(ev.ResponseCreated(self.draft.next(), self.response))
        self.draft.emit(ev.ResponseQueued(self.draft.next(), self.response))

    def start(self) -> None:
        """Emit `response.created` and `response.in_progress`. A second call does nothing. For a queued response, the
        method emits only `response.in_progress`, because the stream already has the other event."""
        if self._started:
            return
        self._started = True
        draft = self.draft
        if not draft.events:
            return
        if not self._options.first_number:
            draft.emit(ev.ResponseCreated(draft.next(), self.response))
        draft.emit(ev.ResponseInProgress(draft.next(), self.response))

    def complete(self, completed_at: float) -> None:
        """Emit the terminal event `response.completed`. The caller has already closed all items (`close`)."""
        self._settle("completed")
        self.response.completed_at = int(completed_at)
        self.draft.emit(ev.ResponseCompleted(self.draft.next(), self.response))

    def incomplete(self, reason: str) -> None:
        """Emit the terminal event `response.incomplete`. `reason` is max_output_tokens or content_filter."""
        self._settle("incomplete")
        self.response.incomplete_details = raw({"reason": reason})
        self.draft.emit(ev.ResponseIncomplete(self.draft.next(), self.response))

    def fail(self, code: str, message: str) -> None:
        """Emit the `error` event, if the options ask for it, and the terminal event `response.failed`."""
        self._settle("failed")
        self.response.error = ResponseError(code=code, message=message)
        if self._options.error_events:
            detail = ev.ErrorDetail(type=event_error_type(code), code=code, message=message, param=None)
            self.draft.emit(ev.ErrorEvent(self.draft.next(), code=code, message=message, param=None, error=detail))
        self.draft.emit(ev.ResponseFailed(self.draft.next(), self.response))

    def _settle(self, status: str) -> None:
        assert self._open is None, "an item is still open"
        self.response.status = status

    # Message items

    def text(self, fragment: bytes, logprobs: Sequence[Raw] = ()) -> None:
        """Add text to the answer. `logprobs` has the log probabilities of the text's tokens, if the request asked for
        log probabilities."""
        item = self._open
        if item.__class__ is not OpenText:
            item = self._open_text()
        if logprobs:
            item.add_with_logprobs(fragment, logprobs)
        else:
            self.draft.add(fragment)

    def empty_message(self) -> None:
        """Open a message without text, for a complete answer that is empty. As in OpenAI's streams, such a message has
        no deltas, and its text is empty."""
        self._open_text()

    def annotate(self, make: Callable[[str], Sequence[Raw]]) -> None:
        """Add annotations to the open text. The builder calls `make` with the open text, and `make` returns the
        annotations. Does nothing if no text is open."""
        item = self._open
        if isinstance(item, OpenText):
            for annotation in make(item.text()):
                item.annotate(annotation)

    def cite(self, annotation: Raw) -> None:
        """Add an annotation at the current end of the open text."""
        item = self._open
        if not isinstance(item, OpenText):
            item = self._open_text()
        item.annotate(annotation)

    def refusal(self, fragment: bytes) -> None:
        """Add text to a refusal."""
        if not isinstance(self._open, OpenRefusal):
            self._close("completed")
            self._open = OpenRefusal(self.draft)
        self.draft.add(fragment)

    def reasoning(self, fragment: bytes) -> None:
        """Add reasoning text."""
        if not isinstance(self._open, OpenReasoning):
            self._open_reasoning()
        self.draft.add(fragment)

    def reasoning_details(self, details: Sequence[Raw]) -> None:
        """Add details that later requests must return to the upstream together with this reasoning. A client gets the
        details only inside sealed content."""
        if self.seals:
            self._open_reasoning().add_details(details)

    def sign_next_call(self, signature: Raw) -> None:
        """Add the signature of the next tool call, which later requests must return to the upstream together with that
        call. The client gets the signature only inside sealed content."""
        self._open_reasoning().sign(signature)

    def compaction(self, encrypted_content: str) -> None:
        """Add an item that replaces the conversation so far. (OpenAI sends nothing between a compaction's added and
        done events.)"""
        self._close("completed")
        draft = self.draft
        item, index = Compaction(id=draft.new_id("cmp"), encrypted_content=encrypted_content), len(draft.output)
        draft.added(index, item)
        draft.done(index, item)

    def _open_text(self) -> OpenText:
        self._close("completed")
        self._open = item = OpenText(self.draft)
        return item

    def _open_reasoning(self) -> OpenReasoning:
        """Return the open reasoning item, or open a new reasoning item."""
        item = self._open
        if not isinstance(item, OpenReasoning):
            self._close("completed")
            self._open = item = self._reasoning(self.draft, self._options.seal)
        return item

    # Calls

    def open_call(self, call_id: str, target: CallTarget, *, bare: bool = False) -> None:
        """Begin a call of this tool. The caller passes the call's arguments to the method `arguments`. If `bare` is
        true, the arguments are the tool's input itself, without JSON around it. Such a call becomes a custom tool's
        call, whatever the kind of `target`."""
        if isinstance(self._open, OpenMessage):
            self._open.phase = "commentary"
        self._close("completed")
        draft = self.draft
        draft.calling = True
        call_id = call_id or draft.new_id("call")
        if draft.hosted_calls and (bare or target.kind not in HOSTED_KINDS):
            self._open = OpenLaterCall(draft, call_id, target, bare=bare)
        else:
            self._open = self._begun(call_id, target, bare)

    def _begun(self, call_id: str, target: CallTarget, bare: bool) -> OpenItem:
        if bare:
            return OpenCustomCall(self.draft, call_id, target, bare=True)
        return OPEN_CALLS[target.kind](self.draft, call_id, target)

    def emit_later(self, target: CallTarget, call_id: str, arguments: str) -> None:
        """Emit a call of a client tool that waited for the end of a hosted tool."""
        self._close("completed")
        draft = self.draft
        told = draft.later.pop(call_id)
        # The draft counted the bytes when the call came, and `add` counts them again.
        draft.size -= told.size
        draft.written -= told.size
        item = self._begun(call_id, target, told.bare)
        if arguments:
            item.add(fragment_of(arguments))
        item.close(told.status)

    def emit_all_later(self) -> None:
        """Emit the waiting calls of client tools, because no hosted tool runs any more."""
        for target, call_id, arguments in self.take_hosted_calls():
            if call_id in self.draft.later:
                self.emit_later(target, call_id, arguments)

    def arguments(self, fragment: bytes) -> None:
        """Add arguments to the open call."""
        item = self._open
        assert item is not None, "no call is open"
        item.add(fragment)

    # Open text

    @property
    def text_of(self) -> TextOf | None:
        """The kind of the open text, if the builder emits each text fragment immediately. Otherwise None. The caller
        may use `ResponseDraft.splice` only if this property is not None."""
        return None if self._open is None else self._open.text_of

    # Hosted tools

    def hosted(self, item: HostedItem) -> None:
        """Begin the item of a hosted tool that starts to run. `item` has the members whose values are known before the
        tool ends."""
        self._close("completed")
        self._open = OpenHostedItem(self.draft, item)

    def hosted_done(self, item: HostedItem) -> None:
        """End the item of the hosted tool that began last. `item` is the complete item."""
        open_item, self._open = self._open, None
        assert isinstance(open_item, OpenHostedItem), "no tool runs"
        open_item.end(item)

    def close(self, status: str) -> None:
        """End the output of a model call. Closes the open item, if any, with the status `completed` or `incomplete`."""
        if isinstance(self._open, OpenMessage) and status == "completed":
            self._open.phase = "commentary" if self.draft.calling else "final_answer"
        self._close(status)

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._open.close(status)
            self._open = None


def _reasoning_form(options: BuilderOptions) -> type[OpenReasoning]:
    if options.reasoning_as_summary:
        return OpenSummary
    return OpenOwnReasoning if options.open_responses_names else OpenReasoning


def event_error_type(code: str) -> str:
    """Return the `type` of an `error` event for the code of a failed response."""
    if code == "rate_limit_exceeded":
        return "too_many_requests"
    if code == "insufficient_quota":
        return "insufficient_quota"
    if code in error_words.OF_THE_CLIENT:
        return "invalid_request_error"
    return "server_error"
