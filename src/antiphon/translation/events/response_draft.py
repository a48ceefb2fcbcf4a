"""The response under construction: its event numbers and bytes, its finished items, and the counts of both.

Lives here: the state that the builder and its open items share. Not here: the order of events (`builder.py`,
`open_items.py`), encoding an event as bytes (`encode.py`).

Invariants: `sequence_number` has no gaps. If the counted text exceeds `max_bytes`, the draft raises `OutputTooLarge`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Raw

from antiphon.ids import IdFactory
from antiphon.translation.events.encode import DeltaTemplate, PaddedTemplate, frame, padded
from antiphon.translation.splice import cut
from antiphon.translation.tool_map import CallTarget
from antiphon.types import events as ev
from antiphon.types.items import OutputItem
from antiphon.types.json import quoted

EMPTY: Final = Raw(b'""')
"""The text of a part that has just begun."""

_PADDED_TO: Final = 16


class LaterCall(NamedTuple):
    """A call of a client's tool that waits for a hosted tool. `status` is the call's status when it is emitted. `bare`:
    the call's arguments are the input itself. `size` is the call's size in bytes, which `ResponseDraft.size` already
    includes."""

    status: str
    bare: bool
    size: int


class OutputTooLarge(Exception):
    """The model's output grew past the limit."""


class ResponseDraft:
    """The response under construction, to which all its items write.

    - `events`: the draft makes events.
    - `obfuscate`: deltas get padding that hides their length.
    - `max_bytes` limits all text of the response.
    - `number` is the sequence number of the next event.
    """

    __slots__ = (
        "calling",
        "cut_calls",
        "events",
        "hosted_calls",
        "later",
        "max_bytes",
        "new_id",
        "number",
        "obfuscate",
        "out",
        "output",
        "reasoned",
        "size",
        "template",
        "text",
        "written",
    )

    def __init__(self, new_id: IdFactory, *, events: bool, obfuscate: bool, max_bytes: int, number: int) -> None:
        self.new_id = new_id
        self.events = events
        self.obfuscate = obfuscate
        self.max_bytes = max_bytes
        self.number = number
        self.out: list[bytes] = []
        """Framed events that are not yet sent."""
        self.output: list[OutputItem] = []
        """The finished items, in order."""
        # A bytearray instead of a list, because a token has only a few bytes and a separate object would need many
        # more.
        self.text = bytearray()
        """The text of the open item so far: its fragments, concatenated."""
        self.template: DeltaTemplate | None = None
        """The template of the open item's deltas."""
        self.size = 0
        """Bytes of output so far, including open items and log probabilities."""
        self.written = 0
        """Bytes of text in all closed items, including calls of hosted tools."""
        self.reasoned = 0
        """Bytes of reasoning among the bytes in `written`."""
        self.hosted_calls: list[tuple[CallTarget, str, str]] = []
        """Complete calls of hosted tools: the tool, the call's id, and the arguments as text. Calls of the client's
        tools that follow a hosted call wait in the same list."""
        self.later: dict[str, LaterCall] = {}
        """The state of each waiting call of a client's tool, by its call id."""
        self.calling = False
        """Whether the model calls tools in this turn. If so, the turn's text is not the final answer."""
        self.cut_calls = False
        """Whether a call is incomplete because its arguments have no valid form."""

    def next(self) -> int:
        """Return the sequence number of the next event, and increment the counter."""
        number = self.number
        self.number += 1
        return number

    def emit(self, event: ev.Event) -> None:
        """Append an event, if the draft makes events."""
        if self.events:
            self.out.append(frame(event))

    def emit_delta(self, event: ev.Event, fragment: bytes) -> None:
        """Append a delta event without a template. `fragment` is the delta's text, which determines the padding."""
        if self.events:
            self.out.append(padded(frame(event), self.padding(fragment)) if self.obfuscate else frame(event))

    def padding(self, fragment: bytes) -> bytes:
        """Letters of padding for a fragment. The length of fragment and padding together is a multiple of 16."""
        letters = self.new_id("pad").removeprefix("pad_").encode() * _PADDED_TO
        return letters[: -len(fragment) % _PADDED_TO]

    # Open text

    def begin_text(self, delta: ev.Event, *, padded: bool = True) -> None:
        """Begin an item's text. `delta` is the template of the item's delta events. `padded`: the deltas get padding if
        the draft obfuscates."""
        if self.events:
            hides = padded and self.obfuscate
            self.template = PaddedTemplate(delta, self.padding) if hides else DeltaTemplate(delta)

    def add(self, fragment: bytes) -> None:
        """Add text, with a delta event. Raises `OutputTooLarge`."""
        self.size = size = self.size + len(fragment)
        if size > self.max_bytes:
            raise OutputTooLarge
        self.append(fragment)

    def append(self, fragment: bytes) -> None:
        """Add text with a delta event, without a check of the limit. The text was counted before, or has only a few
        bytes, because the end of an item must not fail."""
        self.text += fragment
        template = self.template
        if template is not None:
            number = self.number
            self.out.append(template.render(number, fragment))
            self.number = number + 1

    def splice(self, data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[bytes, int]:
        """Add the texts of the chunks at the beginning of `data`, with a delta event for each. Each chunk consists of
        `before`, a text and `behind`, as in `splice.cut`. Returns the added text and the chunks' size in bytes. If the
        text would exceed the limit, adds nothing and returns an empty text and 0."""
        template = self.template
        if template is None or isinstance(template, PaddedTemplate):
            return self._add_cut(template, *cut(data, before, behind, refused))
        events, text, count, used = template.splice(self.number, data, before, behind, refused)
        if text:
            size = self.size + len(text)
            if size > self.max_bytes:
                return b"", 0
            self.size = size
            self.text += text
            self.out.append(events)
            self.number += count
        return text, used

    def _add_cut(self, template: PaddedTemplate | None, texts: list[bytes], used: int) -> tuple[bytes, int]:
        """Add texts as `splice` does, for a draft without events, or with separate padding for each delta."""
        text = b"".join(texts)
        size = self.size + len(text)
        if size > self.max_bytes:
            return b"", 0
        self.size = size
        self.text += text
        if template is not None and texts:
            self.out.append(template.render_many(self.number, texts))
            self.number += len(texts)
        return text, used

    def hold(self, fragment: bytes) -> None:
        """Add text without an event. Raises `OutputTooLarge`."""
        self.count(len(fragment))
        self.text += fragment

    def end_text(self) -> Raw:
        """End the item's text. Returns the whole text as a JSON string, and adds its size to `written`."""
        text = quoted(bytes(self.text))
        self.written += len(self.text)
        self.text = bytearray()
        self.template = None
        return text

    def take_text(self) -> bytes:
        """Remove and return the whole text so far. The text's size stays counted, because the caller adds the text
        again."""
        text = bytes(self.text)
        self.text = bytearray()
        return text

    def count(self, size: int) -> None:
        """Add this number of bytes to the size of the output. Raises `OutputTooLarge`."""
        self.size += size
        if self.size > self.max_bytes:
            raise OutputTooLarge

    # Items

    def added(self, index: int, item: OutputItem) -> None:
        """Emit the added event of an item."""
        if self.events:
            self.emit(ev.OutputItemAdded(self.next(), index, item))

    def done(self, index: int, item: OutputItem) -> None:
        """Add a finished item to the output, and emit its done event, which is the item's last event."""
        self.output.append(item)
        if self.events:
            self.emit(ev.OutputItemDone(self.next(), index, item))

    def mute(self) -> None:
        """Stop making events, because the client takes no more events. Drops events that are not yet sent."""
        self.events = False
        self.template = None
        self.out = []
