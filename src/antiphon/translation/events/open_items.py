"""The open item of a response: one class for each kind of item, from its event `response.output_item.added` to its
event `response.output_item.done`.

This module makes the events of each kind of item, and the item's final text. `builder.py` decides when to open an item.
`response_draft.py` assigns sequence numbers, and stores bytes and counts. `translation/call_arguments.py` makes the
events of finished native calls, and `item_events.py` the events of hosted tools.

Text consists of fragments of escaped JSON (`types/json.py`), which this module never decodes. The events and their
fields follow OpenAI's service (`types/events.py`).

Invariants: constructing an object emits the event `response.output_item.added`. `close` emits
`response.output_item.done`, the item's last event. The deltas between the events `response.output_item.added` and
`response.output_item.done`, concatenated, are the item's text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar, Final

from msgspec import UNSET, Raw, UnsetType

from antiphon.translation.call_arguments import NATIVE_FORMS, CustomInput, native_call, native_events
from antiphon.translation.events.item_events import begun, ended, opened
from antiphon.translation.events.response_draft import EMPTY, LaterCall, ResponseDraft
from antiphon.translation.item_kinds import prefix_of
from antiphon.translation.tool_map import HOSTED_KINDS, CallKind, CallTarget
from antiphon.translation.values import Seal
from antiphon.types import events as ev
from antiphon.types.items import (
    CustomToolCall,
    FunctionCall,
    HostedItem,
    Message,
    MessagePhase,
    NativeCall,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    SummaryText,
)
from antiphon.types.json import encode, quoted, text_of

_Shape = type[Any]
"""A class of content parts or of events. Classes with the same role differ in the names of their members, but not in
the order of the members."""


class TextOf(Enum):
    """The kind of item that a text belongs to."""

    MESSAGE = "message"
    REASONING = "reasoning"
    CALL = "call"


class OpenItem:
    """An output item that has begun and is not yet complete. Callers pass the item's text to `add`, and call `close`
    once.

    The `ResponseDraft` stores the item's text, because only one item is open at a time. The class is not an abstract
    base class (ABC), because `isinstance` runs for each token, and would take four times as long with an ABC. The type
    checker sees that each kind has a `close`.
    """

    __slots__ = ("_draft", "_index")

    text_of: ClassVar[TextOf | None] = None
    """The kind of the item's text, if the item passes each fragment to the draft unchanged. Otherwise None."""

    def __init__(self, draft: ResponseDraft) -> None:
        self._draft = draft
        self._index = len(draft.output)

    def add(self, fragment: bytes) -> None:
        """Add text, with a delta event. Raises `OutputTooLarge`."""
        self._draft.add(fragment)

    @abstractmethod
    def close(self, status: str) -> None:
        """End the item with the status `completed` or `incomplete`. Emits the item's last events and adds the item to
        the output. Never fails, because `add` has already checked the limits."""


# Message items


class OpenMessage(OpenItem):
    """The base class of messages. If the builder knows the message's `phase`, it sets `phase` before it closes the
    message."""

    __slots__ = ("phase",)

    def __init__(self, draft: ResponseDraft) -> None:
        super().__init__(draft)
        self.phase: MessagePhase | UnsetType = UNSET


class OpenText(OpenMessage):
    """A message with one text part. Log probabilities and annotations belong to the text part."""

    __slots__ = ("_annotations", "_item", "_logprobs", "_part")

    text_of: ClassVar[TextOf | None] = TextOf.MESSAGE

    def __init__(self, draft: ResponseDraft) -> None:
        super().__init__(draft)
        self._logprobs: list[Raw] = []
        self._annotations: list[Raw] = []
        self._part = OutputText(annotations=[], logprobs=[], text=EMPTY)
        self._item = _begin_message(draft, self._index, self._part)
        draft.begin_text(ev.OutputTextDelta(0, self._item.id, self._index, 0, EMPTY, []))

    def add_with_logprobs(self, fragment: bytes, logprobs: Sequence[Raw]) -> None:
        """Add text, with the log probabilities of its tokens. Raises `OutputTooLarge`."""
        draft = self._draft
        draft.hold(fragment)
        draft.size += sum(len(bytes(entry)) for entry in logprobs)
        self._logprobs.extend(logprobs)
        delta = ev.OutputTextDelta(draft.next(), self._item.id, self._index, 0, quoted(fragment), list(logprobs))
        draft.emit_delta(delta, fragment)

    def annotate(self, annotation: Raw) -> None:
        """Add an annotation of the item's text, and emit the annotation's event."""
        draft, number = self._draft, len(self._annotations)
        self._annotations.append(annotation)
        draft.emit(ev.OutputTextAnnotationAdded(draft.next(), self._item.id, self._index, 0, number, annotation))

    def text(self) -> str:
        """The item's current text."""
        return text_of(bytes(self._draft.text))

    def close(self, status: str) -> None:
        """See `OpenItem.close`."""
        draft, item, part, text = self._draft, self._item, self._part, self._draft.end_text()
        item.status, item.phase = status, self.phase
        part.text = text
        part.annotations = self._annotations
        if draft.events:
            draft.emit(ev.OutputTextDone(draft.next(), item.id, self._index, 0, text, self._logprobs))
            draft.emit(ev.ContentPartDone(draft.next(), item.id, self._index, 0, part))
        # In OpenAI's streams, the part's event has no log probabilities, but the item's event has them.
        part.logprobs = self._logprobs
        draft.done(self._index, item)


class OpenRefusal(OpenMessage):
    """A message with one refusal part. The delta events of a refusal never have the member `obfuscation`."""

    __slots__ = ("_item", "_part")

    def __init__(self, draft: ResponseDraft) -> None:
        super().__init__(draft)
        self._part = Refusal(refusal=EMPTY)
        self._item = _begin_message(draft, self._index, self._part)
        draft.begin_text(ev.RefusalDelta(0, self._item.id, self._index, 0, EMPTY), padded=False)

    def close(self, status: str) -> None:
        """See `OpenItem.close`."""
        draft, item, part, text = self._draft, self._item, self._part, self._draft.end_text()
        item.status, item.phase = status, self.phase
        part.refusal = text
        draft.emit(ev.RefusalDone(draft.next(), item.id, self._index, 0, text))
        draft.emit(ev.ContentPartDone(draft.next(), item.id, self._index, 0, part))
        draft.done(self._index, item)


def _begin_message(draft: ResponseDraft, index: int, part: OutputText | Refusal) -> Message:
    item = Message(id=draft.new_id("msg"), status="in_progress", content=[])
    draft.added(index, item)
    if draft.events:
        draft.emit(ev.ContentPartAdded(draft.next(), item.id, index, 0, part))
    item.content.append(part)
    return item


class OpenReasoning(OpenItem):
    """A reasoning item with its text. A sealed item also carries data that later requests must return to the upstream.
    The client sends the item back with the next request."""

    __slots__ = ("_details", "_item", "_seal", "_signature")

    text_of: ClassVar[TextOf | None] = TextOf.REASONING

    # Subclasses override the member that holds the text part, the type of that part, and the events of part and text.
    _parts: ClassVar[str] = "content"
    _part: ClassVar[_Shape] = ReasoningText
    _part_added: ClassVar[_Shape] = ev.ContentPartAdded
    _delta: ClassVar[_Shape] = ev.ReasoningTextDelta
    _done: ClassVar[_Shape] = ev.ReasoningTextDone
    _part_done: ClassVar[_Shape] = ev.ContentPartDone

    def __init__(self, draft: ResponseDraft, seal: Seal | None) -> None:
        super().__init__(draft)
        self._seal = seal
        self._details: list[Raw] = []
        self._signature: Raw | None = None
        self._item = Reasoning(id=draft.new_id("rs"), summary=[])
        self._begin()

    def add_details(self, details: Sequence[Raw]) -> None:
        """Add details that later requests must return to the upstream together with this reasoning. Raises
        `OutputTooLarge`."""
        self._draft.count(sum(len(bytes(detail)) for detail in details))
        self._details.extend(details)

    def sign(self, signature: Raw) -> None:
        """Add the signature of the next tool call, which later requests must return to the upstream together with that
        call. Raises `OutputTooLarge`."""
        self._draft.count(len(bytes(signature)))
        self._signature = signature

    def close(self, status: str) -> None:
        """See `OpenItem.close`. A reasoning item has no status."""
        text = self._draft.end_text()
        self._draft.reasoned += len(bytes(text)) - 2
        if self._seal is not None:
            payload: dict[str, object] = {"text": text, "details": self._details}
            if self._signature is not None:
                payload["call"] = self._signature
            self._item.encrypted_content = self._seal(encode(payload))
        self._end(text)
        self._draft.done(self._index, self._item)

    def _begin(self) -> None:
        draft, item, index = self._draft, self._item, self._index
        setattr(item, self._parts, [])
        if self._seal is not None:
            item.encrypted_content = self._seal(b"{}")
        draft.added(index, item)
        if draft.events:
            draft.emit(self._part_added(draft.next(), item.id, index, 0, self._part(EMPTY)))
        draft.begin_text(self._delta(0, item.id, index, 0, EMPTY))

    def _end(self, text: Raw) -> None:
        draft, item, index = self._draft, self._item, self._index
        part = self._part(text)
        setattr(item, self._parts, [part])
        draft.emit(self._done(draft.next(), item.id, index, 0, text))
        draft.emit(self._part_done(draft.next(), item.id, index, 0, part))


class OpenOwnReasoning(OpenReasoning):
    """Reasoning that uses the event names of Open Responses."""

    __slots__ = ()

    _delta: ClassVar[_Shape] = ev.ReasoningDelta
    _done: ClassVar[_Shape] = ev.ReasoningDone


class OpenSummary(OpenReasoning):
    """Reasoning whose text the client gets as a summary."""

    __slots__ = ()

    _parts: ClassVar[str] = "summary"
    _part: ClassVar[_Shape] = SummaryText
    _part_added: ClassVar[_Shape] = ev.ReasoningSummaryPartAdded
    _delta: ClassVar[_Shape] = ev.ReasoningSummaryTextDelta
    _done: ClassVar[_Shape] = ev.ReasoningSummaryTextDone
    _part_done: ClassVar[_Shape] = ev.ReasoningSummaryPartDone


# Calls


class OpenFunctionCall(OpenItem):
    """A call of a function. The item emits the call's arguments as soon as they arrive."""

    __slots__ = ("_item",)

    text_of: ClassVar[TextOf | None] = TextOf.CALL

    def __init__(self, draft: ResponseDraft, call_id: str, target: CallTarget) -> None:
        super().__init__(draft)
        self._item = FunctionCall(
            id=draft.new_id("fc"),
            status="in_progress",
            arguments=EMPTY,
            call_id=call_id,
            name=target.name,
            namespace=_namespace(target),
            encrypted_function_args=[] if target.told_plain else UNSET,
        )
        draft.added(self._index, self._item)
        draft.begin_text(ev.FunctionCallArgumentsDelta(0, self._item.id, self._index, EMPTY))

    def close(self, status: str) -> None:
        """See `OpenItem.close`."""
        if not self._draft.text and status == "completed":
            # The call has no arguments (seen: databricks). Clients parse arguments as JSON, and OpenAI sends an empty
            # object.
            self._draft.append(b"{}")
        draft, item, text = self._draft, self._item, self._draft.end_text()
        item.arguments = text
        item.status = status
        draft.emit(ev.FunctionCallArgumentsDone(draft.next(), item.id, self._index, text, item.name))
        draft.done(self._index, item)


class OpenCustomCall(OpenItem):
    """A call of a custom tool. The item emits the text inside the call's arguments. If `bare` is true, the arguments
    are this text itself, without JSON around it."""

    __slots__ = ("_input", "_item")

    def __init__(self, draft: ResponseDraft, call_id: str, target: CallTarget, *, bare: bool = False) -> None:
        super().__init__(draft)
        self._input = CustomInput(bare=bare)
        self._item = CustomToolCall(
            id=draft.new_id("ctc"),
            status="in_progress",
            call_id=call_id,
            name=target.name,
            input=EMPTY,
            namespace=_namespace(target),
        )
        draft.added(self._index, self._item)
        draft.begin_text(ev.CustomToolCallInputDelta(0, self._item.id, self._index, EMPTY))

    def add(self, fragment: bytes) -> None:
        """Add arguments, and emit the text inside the arguments. Raises `OutputTooLarge`."""
        if piece := self._input.feed(fragment):
            super().add(piece)

    def close(self, status: str) -> None:
        """See `OpenItem.close`."""
        draft, item = self._draft, self._item
        if piece := self._input.end():
            draft.append(piece)
        if not self._input.complete:
            # An incomplete input must not look like a complete one, which the client would run.
            draft.cut_calls = draft.cut_calls or status == "completed"
            status = "incomplete"
        text = self._draft.end_text()
        item.input = text
        item.status = status
        draft.emit(ev.CustomToolCallInputDone(draft.next(), item.id, self._index, text))
        draft.done(self._index, item)


class HeldCall(OpenItem):
    """The base class of calls that emit nothing before their arguments are complete."""

    __slots__ = ("_call_id", "_target")

    def __init__(self, draft: ResponseDraft, call_id: str, target: CallTarget) -> None:
        super().__init__(draft)
        self._call_id = call_id
        self._target = target

    def add(self, fragment: bytes) -> None:
        """Add arguments without an event. Raises `OutputTooLarge`."""
        self._draft.hold(fragment)


class OpenNativeCall(HeldCall):
    """A native call, for example a shell call. Only the complete arguments show whether they have the form of a native
    call."""

    __slots__ = ()

    def close(self, status: str) -> None:
        """Emit a native item. If the arguments do not have the form of a native call, emit a function call instead."""
        draft, kind = self._draft, self._target.kind
        made: NativeCall | None = None
        if status == "completed":
            arguments = text_of(bytes(draft.text))
            made = native_call(kind, draft.new_id(prefix_of(kind)), self._call_id, arguments)
        if made is None:
            self._close_as_function(status)
            return
        draft.end_text()
        for event in native_events(made, self._index, draft.next):
            draft.emit(event)
        draft.output.append(made)

    def _close_as_function(self, status: str) -> None:
        draft = self._draft
        arguments = draft.take_text()
        call = OpenFunctionCall(draft, self._call_id, self._target)
        if arguments:
            draft.append(arguments)
        call.close(status)


class OpenHostedCall(HeldCall):
    """A call of a hosted tool. The item emits nothing before the tool runs."""

    __slots__ = ()

    def close(self, status: str) -> None:
        """End the call, and queue it with the arguments that the model wrote. `ToolTurns` runs the tool later."""
        draft = self._draft
        arguments = text_of(bytes(draft.text))
        draft.end_text()
        draft.hosted_calls.append((self._target, self._call_id, arguments))


class OpenLaterCall(HeldCall):
    """A call of the client's tool that follows a call of a hosted tool. The builder emits the call after the hosted
    tool has run, so that items keep the order of the calls."""

    __slots__ = ("_bare",)

    def __init__(self, draft: ResponseDraft, call_id: str, target: CallTarget, *, bare: bool = False) -> None:
        super().__init__(draft, call_id, target)
        self._bare = bare

    def close(self, status: str) -> None:
        """End the call, and append it to the queue of hosted calls."""
        draft = self._draft
        fragment = draft.take_text()
        draft.written += len(fragment)
        if status == "completed" and self._target.kind is CallKind.CUSTOM and not self._bare:
            whole = CustomInput()
            whole.feed(fragment)
            whole.end()
            draft.cut_calls = draft.cut_calls or not whole.complete
        draft.hosted_calls.append((self._target, self._call_id, text_of(fragment)))
        draft.later[self._call_id] = LaterCall(status, self._bare, len(fragment))


class OpenHostedItem(OpenItem):
    """The item of a hosted tool that runs. `item` has the members whose values are known before the tool ends."""

    __slots__ = ("_item",)

    def __init__(self, draft: ResponseDraft, item: HostedItem) -> None:
        super().__init__(draft)
        self._item = item
        draft.emit(ev.OutputItemAdded(draft.next(), self._index, opened(item)))
        for event, more in begun(item):
            draft.emit(event(draft.next(), item.id, self._index, *more))

    def end(self, item: HostedItem) -> None:
        """End the item after the tool has ended. `item` is the complete item."""
        draft = self._draft
        for event, more in ended(item):
            draft.emit(event(draft.next(), item.id, self._index, *more))
        draft.done(self._index, item)

    def close(self, status: str) -> None:
        """End the item although the tool has not ended. The item keeps its initial members."""
        self._draft.done(self._index, self._item)


def _namespace(target: CallTarget) -> str | UnsetType:
    return UNSET if target.namespace is None else target.namespace


OPEN_CALLS: Final[dict[CallKind, Callable[[ResponseDraft, str, CallTarget], OpenItem]]] = {
    CallKind.FUNCTION: OpenFunctionCall,
    CallKind.CUSTOM: OpenCustomCall,
    **dict.fromkeys(NATIVE_FORMS, OpenNativeCall),
    **dict.fromkeys(HOSTED_KINDS, OpenHostedCall),
}
"""The class of the open item for each kind of call."""
