"""The builder: the only maker of items, ids, indices, sequence numbers and events.

Lives here: the grammar of a response. Not here: what a chat chunk means (`chat_stream.py`), the bytes of an event
(`encode.py`), and when a response is saved or sent (`engine/exchange.py`).

Invariants: at most one item is open; an item that was opened is closed exactly once, in order; `sequence_number` is
0, 1, 2, … without gaps; `response` always equals the fold of the events made so far.

Text comes as fragments (`types/json.py`): escaped JSON, never decoded here. Grammar and fields: observed from OpenAI's
service; see `types/events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UNSET, Raw, Struct

from antiphon.ids import IdFactory
from antiphon.translation.custom_input import CustomInput
from antiphon.translation.encode import DeltaTemplate, frame, padded
from antiphon.translation.hosted_events import begun, ended, opened
from antiphon.translation.native_calls import NATIVE_PREFIXES, native_call
from antiphon.translation.native_events import native_events
from antiphon.translation.tool_map import HOSTED_KINDS, CallKind, CallTarget
from antiphon.translation.upstream_errors import event_error_type
from antiphon.types import events as ev
from antiphon.types.items import (
    Compaction,
    CustomToolCall,
    FunctionCall,
    HostedItem,
    Message,
    NativeCall,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    SummaryText,
)
from antiphon.types.json import encode, quoted, text_of
from antiphon.types.response import (
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    UsageObject,
)

__all__ = ["BuilderOptions", "OutputTooLarge", "ResponseBuilder", "add_usage", "usage_object"]

_EMPTY = Raw(b'""')
_PADDED_TO = 16


class OutputTooLarge(Exception):
    """The model's output grew past the limit."""


class BuilderOptions(Struct, frozen=True):
    """`events`: whether events are wanted at all (a JSON client wants none), `error_events`: whether `error` is one.

    `reasoning_as_summary` and `open_responses_names` choose the form of reasoning; `obfuscate` pads deltas to hide
    their length; `seal` makes a reasoning item's `encrypted_content` of its payload; `most_bytes` bounds all text of
    the response; `first_number` is where the numbers go on of a stream that was begun already (`queue`)."""

    events: bool
    error_events: bool = True
    reasoning_as_summary: bool = False
    open_responses_names: bool = False
    obfuscate: bool = False
    seal: Callable[[bytes], str] | None = None
    most_bytes: int = 1 << 26
    first_number: int = 0


class ResponseBuilder:
    """Builds one response. Methods append framed events, which `take` returns."""

    def __init__(self, response: Response, options: BuilderOptions, new_id: IdFactory) -> None:
        self.response = response
        self._options = options
        self._new_id = new_id
        self._number = options.first_number
        self._started = False
        self._out: list[bytes] = []
        self._output: list[OutputItem] = []
        self._item: OutputItem | None = None
        self._fragments: list[bytes] = []
        self._template: DeltaTemplate | None = None
        self._logprobs: list[Raw] = []
        self._annotations: list[Raw] = []
        self._details: list[Raw] = []
        self._signature: Raw | None = None
        self._custom: CustomInput | None = None
        self._native: tuple[CallTarget, str] | None = None
        self._size = 0
        self.hosted_calls: list[tuple[CallTarget, str, str]] = []
        """Calls of tools that run here, whole: the tool, the call's id, the arguments as text. Nothing of them was put
        out yet."""
        self.cut_calls = False
        """Whether a call was put out as incomplete because its arguments do not make sense."""
        response.output = self._output

    def take(self) -> bytes:
        """All events since the last call, as bytes."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def items(self) -> list[OutputItem]:
        """The items that are closed, in order."""
        return self._output

    @property
    def has_output(self) -> bool:
        """Whether anything was put out."""
        return bool(self._output or self.hosted_calls) or self._item is not None or self._native is not None

    # Lifecycle

    def queue(self) -> None:
        """`response.created`, `response.queued`: what a background stream begins with, before it is run."""
        self.response.status = "queued"
        self._emit(ev.ResponseCreated(self._next(), self.response))
        self._emit(ev.ResponseQueued(self._next(), self.response))

    def start(self) -> None:
        """`response.created`, `response.in_progress`; the second call does nothing. A stream that goes on (it was
        queued) was created already."""
        if self._started:
            return
        self._started = True
        if not self._options.first_number:
            self._emit(ev.ResponseCreated(self._next(), self.response))
        self._emit(ev.ResponseInProgress(self._next(), self.response))

    def complete(self, completed_at: float) -> None:
        """The terminal event `response.completed`. Items are closed already (`close`)."""
        self._settle("completed")
        self.response.completed_at = int(completed_at)
        self._emit(ev.ResponseCompleted(self._next(), self.response))

    def incomplete(self, reason: str) -> None:
        """The terminal event `response.incomplete`; `reason` is max_output_tokens or content_filter."""
        self._settle("incomplete")
        self.response.incomplete_details = Raw(encode({"reason": reason}))
        self._emit(ev.ResponseIncomplete(self._next(), self.response))

    def fail(self, code: str, message: str) -> None:
        """The `error` event (where it is wanted) and the terminal event `response.failed`."""
        self._settle("failed")
        self.response.error = ResponseError(code=code, message=message)
        if self._options.error_events:
            detail = ev.ErrorDetail(type=event_error_type(code), code=code, message=message, param=None)
            self._emit(ev.ErrorEvent(self._next(), code=code, message=message, param=None, error=detail))
        self._emit(ev.ResponseFailed(self._next(), self.response))

    def _settle(self, status: str) -> None:
        assert self._item is None, "an item is still open"
        self.response.status = status

    def set_usage(self, usage: UsageObject) -> None:
        """What the response cost; goes into the terminal snapshot."""
        self.response.usage = usage

    # Text, refusal, reasoning

    def text(self, fragment: bytes, logprobs: Sequence[Raw] = ()) -> None:
        """More text of the answer, with the log probabilities of its tokens where they were asked for."""
        item = self._item
        if item.__class__ is not Message or item.content[0].__class__ is not OutputText:
            self._open_message(OutputText(annotations=[], logprobs=[], text=_EMPTY))
        if logprobs:
            self._delta_with_logprobs(fragment, logprobs)
        else:
            self._delta(fragment)

    def annotate(self, make: Callable[[str], Sequence[Raw]]) -> None:
        """Annotations of the open text: `make` gets the text so far. Does nothing when no text is open."""
        item = self._item
        if not isinstance(item, Message) or not isinstance(item.content[0], OutputText):
            return
        index = len(self._output)
        for annotation in make(text_of(b"".join(self._fragments))):
            number = len(self._annotations)
            self._annotations.append(annotation)
            self._emit(ev.OutputTextAnnotationAdded(self._next(), item.id, index, 0, number, annotation))

    def empty_message(self) -> None:
        """Open a message without text: an answer that is complete and empty (observed: no deltas, text "")."""
        self._open_message(OutputText(annotations=[], logprobs=[], text=_EMPTY))

    def refusal(self, fragment: bytes) -> None:
        """More text of a refusal."""
        item = self._item
        if item.__class__ is not Message or item.content[0].__class__ is not Refusal:
            self._open_message(Refusal(refusal=_EMPTY))
        self._delta(fragment)

    def reasoning(self, fragment: bytes) -> None:
        """More reasoning text."""
        if self._item.__class__ is not Reasoning:
            self._open_reasoning()
        self._delta(fragment)

    def reasoning_details(self, details: Sequence[Raw]) -> None:
        """What the upstream wants to see again with this reasoning; carried by the client, if at all, sealed."""
        if self._options.seal is None:
            return
        if self._item.__class__ is not Reasoning:
            self._open_reasoning()
        self._size += sum(len(bytes(detail)) for detail in details)
        if self._size > self._options.most_bytes:
            raise OutputTooLarge
        self._details.extend(details)

    @property
    def seals(self) -> bool:
        """Whether reasoning is sealed, so that the client brings back what the upstream wants to see again."""
        return self._options.seal is not None

    def sign_next_call(self, signature: Raw) -> None:
        """What the upstream wants to see again with the call that follows. Carried like `reasoning_details`."""
        if self._item.__class__ is not Reasoning:
            self._open_reasoning()
        self._count(bytes(signature))
        self._signature = signature

    def _open_message(self, part: OutputText | Refusal) -> None:
        self.close("completed")
        item = Message(id=self._new_id("msg"), status="in_progress", content=[])
        self._open(item)
        index = len(self._output)
        if self._options.events:
            self._emit(ev.ContentPartAdded(self._next(), item.id, index, 0, part))
            if isinstance(part, OutputText):
                self._template = DeltaTemplate(ev.OutputTextDelta(0, item.id, index, 0, _EMPTY, []))
            else:
                self._template = DeltaTemplate(ev.RefusalDelta(0, item.id, index, 0, _EMPTY))
        item.content.append(part)

    def _open_reasoning(self) -> None:
        self.close("completed")
        summary = self._options.reasoning_as_summary
        item = Reasoning(id=self._new_id("rs"), summary=[], content=UNSET if summary else [])
        if self._options.seal is not None:
            item.encrypted_content = self._options.seal(b"{}")
        self._open(item)
        index = len(self._output)
        if not self._options.events:
            return
        if summary:
            self._emit(ev.ReasoningSummaryPartAdded(self._next(), item.id, index, 0, SummaryText(_EMPTY)))
            self._template = DeltaTemplate(ev.ReasoningSummaryTextDelta(0, item.id, index, 0, _EMPTY))
        else:
            self._emit(ev.ContentPartAdded(self._next(), item.id, index, 0, ReasoningText(_EMPTY)))
            delta = ev.ReasoningDelta if self._options.open_responses_names else ev.ReasoningTextDelta
            self._template = DeltaTemplate(delta(0, item.id, index, 0, _EMPTY))

    def compaction(self, encrypted_content: str) -> None:
        """What stands for the conversation so far (observed: nothing comes between its added and done events)."""
        self.close("completed")
        item = Compaction(id=self._new_id("cmp"), encrypted_content=encrypted_content)
        index = len(self._output)
        self._emit(ev.OutputItemAdded(self._next(), index, item))
        self._output.append(item)
        self._emit(ev.OutputItemDone(self._next(), index, item))

    # Calls

    def open_call(self, call_id: str, target: CallTarget, *, bare: bool = False) -> None:
        """Begin a call of this tool; its arguments follow with `arguments` (`bare`: a custom tool's input itself)."""
        self.close("completed")
        call_id = call_id or self._new_id("call")
        namespace = UNSET if target.namespace is None else target.namespace
        if target.kind in HOSTED_KINDS:
            self._native = (target, call_id)
        elif target.kind in NATIVE_PREFIXES:
            # Its form is known only when its arguments are whole.
            self._native = (target, call_id)
        elif target.kind is CallKind.CUSTOM:
            self._custom = CustomInput(bare=bare)
            self._open(
                CustomToolCall(
                    id=self._new_id("ctc"),
                    status="in_progress",
                    call_id=call_id,
                    name=target.name,
                    input=_EMPTY,
                    namespace=namespace,
                )
            )
        else:
            self._open_function(call_id, target)
        item = self._item
        if self._options.events and item is not None:
            delta = ev.CustomToolCallInputDelta if self._custom is not None else ev.FunctionCallArgumentsDelta
            self._template = DeltaTemplate(delta(0, item.id, len(self._output), _EMPTY))

    def _open_function(self, call_id: str, target: CallTarget) -> None:
        self._open(
            FunctionCall(
                id=self._new_id("fc"),
                status="in_progress",
                arguments=_EMPTY,
                call_id=call_id,
                name=target.name,
                namespace=UNSET if target.namespace is None else target.namespace,
            )
        )

    def arguments(self, fragment: bytes) -> None:
        """More arguments of the open call."""
        if self._native is not None:
            self._count(fragment)
            self._fragments.append(fragment)
        elif self._custom is not None:
            if piece := self._custom.feed(fragment):
                self._delta(piece)
        else:
            self._delta(fragment)

    # Tools that run here

    def hosted(self, item: HostedItem) -> None:
        """Begin the item of a tool that runs now; `item` holds what is known before it ends."""
        self.close("completed")
        self._item = item
        index = len(self._output)
        self._emit(ev.OutputItemAdded(self._next(), index, opened(item)))
        for event, more in begun(item):
            self._emit(event(self._next(), item.id, index, *more))

    def hosted_done(self, item: HostedItem) -> None:
        """The tool that began last has ended; `item` is what it is now."""
        self._item = None
        index = len(self._output)
        for event, more in ended(item):
            self._emit(event(self._next(), item.id, index, *more))
        self._output.append(item)
        self._emit(ev.OutputItemDone(self._next(), index, item))

    def cite(self, annotation: Raw) -> None:
        """An annotation at the end of the text so far."""
        if self._item.__class__ is not Message:
            self.empty_message()
        item = self._item
        assert isinstance(item, Message)
        number = len(self._annotations)
        self._annotations.append(annotation)
        self._emit(ev.OutputTextAnnotationAdded(self._next(), item.id, len(self._output), 0, number, annotation))

    # Opening and closing

    def _open(self, item: OutputItem) -> None:
        self._item = item
        if self._options.events:
            self._emit(ev.OutputItemAdded(self._next(), len(self._output), item))

    def _count(self, fragment: bytes) -> None:
        self._size += len(fragment)
        if self._size > self._options.most_bytes:
            raise OutputTooLarge

    def _delta(self, fragment: bytes) -> None:
        self._size += len(fragment)
        if self._size > self._options.most_bytes:
            raise OutputTooLarge
        self._fragments.append(fragment)
        template = self._template
        if template is not None:
            if self._options.obfuscate and not self._is_refusal():
                self._out.append(template.render_padded(self._number, fragment, self._padding(fragment)))
            else:
                self._out.append(template.render(self._number, fragment))
            self._number += 1

    def _delta_with_logprobs(self, fragment: bytes, logprobs: Sequence[Raw]) -> None:
        self._count(fragment)
        self._size += sum(len(bytes(entry)) for entry in logprobs)
        self._fragments.append(fragment)
        self._logprobs.extend(logprobs)
        item = self._item
        assert item is not None
        event = ev.OutputTextDelta(self._next(), item.id, len(self._output), 0, quoted(fragment), list(logprobs))
        if self._options.events and self._options.obfuscate:
            self._out.append(padded(frame(event), self._padding(fragment)))
        else:
            self._emit(event)

    def _is_refusal(self) -> bool:
        item = self._item
        return isinstance(item, Message) and isinstance(item.content[0], Refusal)

    def _padding(self, fragment: bytes) -> bytes:
        """So many letters that fragment and padding together have a length that tells little."""
        letters = self._new_id("pad").removeprefix("pad_").encode() * _PADDED_TO
        return letters[: -len(fragment) % _PADDED_TO]

    def close(self, status: str) -> None:
        """Close the open item, if there is one, as `completed` or `incomplete`."""
        if self._native is not None:
            self._close_native(status)
        item = self._item
        if item is None:
            return
        if self._custom is not None:
            if piece := self._custom.end():
                self._delta(piece)
            if not self._custom.complete:
                # Half an input must not look like one that can be run.
                self.cut_calls = self.cut_calls or status == "completed"
                status = "incomplete"
            self._custom = None
        elif not self._fragments and status == "completed" and isinstance(item, FunctionCall):
            # No arguments at all (seen: databricks): clients parse them as JSON, and OpenAI sends an empty object.
            self._delta(b"{}")
        text = quoted(b"".join(self._fragments))
        self._fragments = []
        self._template = None
        self._item = None
        index = len(self._output)
        if isinstance(item, Message):
            self._close_message(item, index, text, status)
        elif isinstance(item, Reasoning):
            self._close_reasoning(item, index, text)
        elif isinstance(item, CustomToolCall):
            item.input = text
            item.status = status
            self._emit(ev.CustomToolCallInputDone(self._next(), item.id, index, text))
        elif isinstance(item, FunctionCall):
            item.arguments = text
            item.status = status
            self._emit(ev.FunctionCallArgumentsDone(self._next(), item.id, index, text, item.name))
        self._output.append(item)
        self._emit(ev.OutputItemDone(self._next(), index, item))

    def _close_native(self, status: str) -> None:
        """Put out a call whose arguments are whole: in its own form, or as a function call where they do not fit."""
        assert self._native is not None
        (target, call_id), self._native = self._native, None
        arguments = b"".join(self._fragments)
        if target.kind in HOSTED_KINDS:
            self._fragments = []
            self.hosted_calls.append((target, call_id, text_of(arguments)))
            return
        made: NativeCall | None = None
        if status == "completed":
            made = native_call(target.kind, self._new_id(NATIVE_PREFIXES[target.kind]), call_id, text_of(arguments))
        if made is None:
            self._fragments = []
            self._open_function(call_id, target)
            if arguments and self._options.events and self._item is not None:
                delta = ev.FunctionCallArgumentsDelta(0, self._item.id, len(self._output), _EMPTY)
                self._template = DeltaTemplate(delta)
            self._size -= len(arguments)
            self._delta(arguments)
            return
        self._fragments = []
        for event in native_events(made, len(self._output), self._next):
            self._emit(event)
        self._output.append(made)

    def _close_message(self, item: Message, index: int, text: Raw, status: str) -> None:
        part = item.content[0]
        item.status = status
        if isinstance(part, OutputText):
            part.text = text
            part.annotations, self._annotations = self._annotations, []
            logprobs, self._logprobs = self._logprobs, []
            self._emit(ev.OutputTextDone(self._next(), item.id, index, 0, text, logprobs))
            self._emit(ev.ContentPartDone(self._next(), item.id, index, 0, part))
            # Observed: the part's own event goes without them, the item's has them.
            part.logprobs = logprobs
        else:
            part.refusal = text
            self._emit(ev.RefusalDone(self._next(), item.id, index, 0, text))
            self._emit(ev.ContentPartDone(self._next(), item.id, index, 0, part))

    def _close_reasoning(self, item: Reasoning, index: int, text: Raw) -> None:
        if self._options.seal is not None:
            details, self._details = self._details, []
            payload: dict[str, object] = {"text": text, "details": details}
            if self._signature is not None:
                payload["call"], self._signature = self._signature, None
            item.encrypted_content = self._options.seal(encode(payload))
        if self._options.reasoning_as_summary:
            part = SummaryText(text)
            item.summary.append(part)
            self._emit(ev.ReasoningSummaryTextDone(self._next(), item.id, index, 0, text))
            self._emit(ev.ReasoningSummaryPartDone(self._next(), item.id, index, 0, part))
            return
        content = ReasoningText(text)
        item.content = [content]
        done = ev.ReasoningDone if self._options.open_responses_names else ev.ReasoningTextDone
        self._emit(done(self._next(), item.id, index, 0, text))
        self._emit(ev.ContentPartDone(self._next(), item.id, index, 0, content))

    # Numbers and bytes

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number

    def _emit(self, event: ev.Event) -> None:
        if self._options.events:
            self._out.append(frame(event))


def usage_object(
    input_tokens: int, output_tokens: int, total_tokens: int, cached: int, cache_write: int, reasoning: int
) -> UsageObject:
    """The usage object with both of its details objects."""
    return UsageObject(
        input_tokens=input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=cache_write),
        output_tokens=output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
        total_tokens=total_tokens,
    )


def add_usage(one: UsageObject, other: UsageObject | None) -> UsageObject:
    """What two model calls of one response cost together."""
    if other is None:
        return one
    return usage_object(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.total_tokens + other.total_tokens,
        one.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens,
        one.input_tokens_details.cache_write_tokens + other.input_tokens_details.cache_write_tokens,
        one.output_tokens_details.reasoning_tokens + other.output_tokens_details.reasoning_tokens,
    )
