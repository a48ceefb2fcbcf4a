"""Encodes events as server-sent events, in bytes.

This module has pre-rendered templates for the frequent delta events. `builder.py` chooses the events and their order.

Invariant: one framed event, with its blank line, is one bytes object, so that no write can end inside an event. A delta
rendered from its template equals the event encoded by its class, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Raw

from antiphon.translation.splice import splice
from antiphon.types.events import Event
from antiphon.types.json import encode

DONE: Final = b"data: [DONE]\n\n"
"""The sentinel that ends an event stream."""

KEEPALIVE: Final = b": keep-alive\n\n"
"""A comment line that keeps idle connections open."""

_EVENT_END: Final = b"}\n\n"
_NUMBER: Final = 987654321123456789
_DELTA: Final = Raw(b'"\\u0000delta"')


def frame(event: Event) -> bytes:
    """Encode one event as a server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (type(event).__struct_config__.tag.encode(), encode(event))  # type: ignore[union-attr]


def padded(event: bytes, padding: bytes) -> bytes:
    """Add the member `obfuscation` to an encoded delta event. Its letters hide the length of the event's text from
    network observers."""
    return b'%b,"obfuscation":"%b"}\n\n' % (event[: -len(_EVENT_END)], padding)


class DeltaTemplate:
    """The rendered bytes of one item's delta events. For each delta, the template replaces only the sequence number and
    the text."""

    __slots__ = ("_head", "_middle", "_tail")

    def __init__(self, event: Event) -> None:
        """Render the template from `event`, whose sequence number and delta may have any value."""
        event.sequence_number = _NUMBER
        event.delta = _DELTA  # type: ignore[attr-defined]
        rendered = frame(event)
        self._head, rest = rendered.split(str(_NUMBER).encode(), 1)
        self._middle, self._tail = rest.split(bytes(_DELTA)[1:-1], 1)

    def render(self, sequence_number: int, fragment: bytes) -> bytes:
        """Return the encoded delta event for this text fragment."""
        return b"%b%d%b%b%b" % (self._head, sequence_number, self._middle, fragment, self._tail)

    def splice(
        self, sequence_number: int, data: bytes, before: bytes, behind: bytes, refused: bytes
    ) -> tuple[bytes, bytes, int, int]:
        """Make the encoded delta events for the texts of similar chunks (see `splice.splice`). `sequence_number` is the
        number of the first event."""
        return splice(data, before, behind, self._head, self._middle, self._tail, sequence_number, refused)


class PaddedTemplate(DeltaTemplate):
    """A template whose events have `obfuscation`. The function `padding` returns the letters of `obfuscation` for a
    fragment."""

    __slots__ = ("_padding",)

    def __init__(self, event: Event, padding: Callable[[bytes], bytes]) -> None:
        super().__init__(event)
        self._padding = padding

    def render(self, sequence_number: int, fragment: bytes) -> bytes:
        """Return the encoded delta event for this text fragment, with `obfuscation`."""
        return padded(super().render(sequence_number, fragment), self._padding(fragment))

    def render_many(self, sequence_number: int, fragments: Sequence[bytes]) -> bytes:
        """Return the encoded delta events for these text fragments, each with `obfuscation`. `sequence_number` is the
        number of the first event."""
        return b"".join([self.render(number, one) for number, one in enumerate(fragments, sequence_number)])
