"""The response under construction: its event numbers and bytes, its finished items, and the counts of both.

Lives here: the state that the builder and its open items share. Not here: which event comes when (`builder.py`,
`open_items.py`), how one event becomes bytes (`encode.py`).

Invariants: `sequence_number` has no gaps; the counted text never exceeds `max_bytes` without `OutputTooLarge`.
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
"""The text of a part that was added and has none yet."""

_PADDED_TO: Final = 16


class LaterCall(NamedTuple):
    """`status` of a call when it is emitted; `bare`: its arguments are its input itself; `size` in bytes, which was
    counted."""

    status: str
    bare: bool
    size: int


class OutputTooLarge(Exception):
    """The model's output grew past the limit."""


class ResponseDraft:
    """The response under construction, to which all its items write.

    `events` says whether events are wanted, `obfuscate` whether deltas are padded to hide their length; `max_bytes`
    bounds all text of the response; `number` is the next event's.
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
        """Framed events that still wait to be sent."""
        self.output: list[OutputItem] = []
        """The items that are done, in order."""
        # Not a list: a token is a few bytes, and an object of its own many.
        self.text = bytearray()
        """The text of the open item so far, as fragments."""
        self.template: DeltaTemplate | None = None
        """The template of the open item's deltas."""
        self.size = 0
        """Bytes of output so far, those of open items and of log probabilities among them."""
        self.written = 0
        """Bytes of text in all items that are closed, calls of tools that run here among them."""
        self.reasoned = 0
        """How many of them are reasoning."""
        self.hosted_calls: list[tuple[CallTarget, str, str]] = []
        """Calls of tools that run here, whole: the tool, the call's id, the arguments as text. Those of the client's
        own tools that came behind one of them wait there too."""
        self.later: dict[str, LaterCall] = {}
        """The kind of emission for each of the latter, by its id."""
        self.calling = False
        """Whether the model calls tools in this turn. Its text is then not the final answer."""
        self.cut_calls = False
        """Whether a call is incomplete because its arguments do not make sense."""

    def next(self) -> int:
        """The next event's number, which is used up."""
        number = self.number
        self.number += 1
        return number

    def emit(self, event: ev.Event) -> None:
        """Append an event, where events are wanted."""
        if self.events:
            self.out.append(frame(event))

    def emit_delta(self, event: ev.Event, fragment: bytes) -> None:
        """Append a delta event that has no template, for this text."""
        if self.events:
            self.out.append(padded(frame(event), self.padding(fragment)) if self.obfuscate else frame(event))

    def padding(self, fragment: bytes) -> bytes:
        """Letters of padding, so that the length of fragment and padding reveals little."""
        letters = self.new_id("pad").removeprefix("pad_").encode() * _PADDED_TO
        return letters[: -len(fragment) % _PADDED_TO]

    # The text of the item that is open

    def begin_text(self, delta: ev.Event, *, padded: bool = True) -> None:
        """An item begins whose deltas look like this one (`padded`: where lengths are hidden, theirs are)."""
        if self.events:
            hides = padded and self.obfuscate
            self.template = PaddedTemplate(delta, self.padding) if hides else DeltaTemplate(delta)

    def add(self, fragment: bytes) -> None:
        """More text, with a delta event. Raises `OutputTooLarge`."""
        self.size = size = self.size + len(fragment)
        if size > self.max_bytes:
            raise OutputTooLarge
        self.append(fragment)

    def append(self, fragment: bytes) -> None:
        """Add text with a delta event, without a check of the limit. The text was counted before, or is a byte or two,
        because the end of an item must not fail."""
        self.text += fragment
        template = self.template
        if template is not None:
            number = self.number
            self.out.append(template.render(number, fragment))
            self.number = number + 1

    def splice(self, data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[bytes, int]:
        """Add the texts of the chunks at the beginning of `data`, with a delta event for each. A chunk is `before`, a
        text and `behind` (`splice.cut`). Returns the added text and the chunks' size in bytes. When the text would be
        too much, adds nothing and returns none."""
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
        """Add texts like `splice`, for a client that takes no events, or with a separate padding for each."""
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
        """The whole text, as a JSON string: it was written."""
        text = quoted(bytes(self.text))
        self.written += len(self.text)
        self.text = bytearray()
        self.template = None
        return text

    def take_text(self) -> bytes:
        """Take the whole text so far. The caller appends it again, so it stays counted."""
        text = bytes(self.text)
        self.text = bytearray()
        return text

    def count(self, size: int) -> None:
        """So many bytes of output more. Raises `OutputTooLarge`."""
        self.size += size
        if self.size > self.max_bytes:
            raise OutputTooLarge

    # Items

    def added(self, index: int, item: OutputItem) -> None:
        """An item begins: its added event."""
        if self.events:
            self.emit(ev.OutputItemAdded(self.next(), index, item))

    def done(self, index: int, item: OutputItem) -> None:
        """An item is whole: it joins the output, and its done event is the last of it."""
        self.output.append(item)
        if self.events:
            self.emit(ev.OutputItemDone(self.next(), index, item))

    def mute(self) -> None:
        """Stop the events: the client takes no more of them."""
        self.events = False
        self.template = None
        self.out = []
