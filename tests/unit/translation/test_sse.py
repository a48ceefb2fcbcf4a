"""The event stream decoder at its seams: where chunks end, and what is held then. (Grammar: `test_chat_stream.py`.)"""

from __future__ import annotations

import pytest

from antiphon.translation.answer.sse import EventTooLarge, SseDecoder


def _read(*pieces: bytes, limit: int = 1000) -> list[tuple[bytes, bytes]]:
    decoder = SseDecoder(limit)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [(event.type, event.data) for event in (*events, *decoder.close())]


_A, _B = (b"", b"a"), (b"", b"b")


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        # A byte order mark in pieces, or what only begins like one.
        ((b"\xef", b"\xbb", b"\xbfdata: a\n\n"), [_A]),
        ((b"\xef\xbb", b"\xbfdata: a\n\n"), [_A]),
        ((b"\xef", b"data: a\n\n", b"data: b\n\n"), [_B]),
        ((b"\xef",), []),
        ((b"", b"data: a\n\n"), [_A]),
        # CR and LF of one line end in two pieces; a CR that is a line end of its own.
        ((b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n"), [_A, _B]),
        ((b"data: a\r", b"\rdata: b\r", b"\r"), [_A, _B]),
        ((b"data: a\r", b"data: b\r\r"), [(b"", b"a\nb")]),
        ((b"data: a\r\r", b"", b"\ndata: b\n\n"), [_A, _B]),
        # Several events at once, of one line each or not.
        ((b": hi\n\n", b"data: a\n\ndata: b\n\n"), [_A, _B]),
        ((b": hi\n\n", b"data: a\ndata: b\n\n"), [(b"", b"a\nb")]),
        ((b": hi\n\n", b"data: a\n\ndata: b\nevent: e\n\n"), [_A, (b"e", b"b")]),
        ((b": hi\n\n", b"data: a\n\n\n\ndata: b\n\n"), [_A, _B]),
    ],
)
def test_events_are_the_same_wherever_pieces_end(pieces: tuple[bytes, ...], events: list[tuple[bytes, bytes]]) -> None:
    assert _read(*pieces) == events
    whole = b"".join(pieces)
    for cut in range(len(whole)):
        assert _read(whole[:cut], whole[cut:]) == events
    assert _read(*(whole[at : at + 1] for at in range(len(whole)))) == events


def test_an_event_that_is_too_large_is_so_at_the_end_too() -> None:
    """Its last line had no end: together with the lines before it is more than the limit."""
    decoder = SseDecoder(20)
    assert decoder.feed(b"data: 0123456789\ndata: 0123456789ab") == []
    with pytest.raises(EventTooLarge):
        decoder.close()
    assert _read(b"data: 0123456789\ndata: 0123456789", limit=20) == [(b"", b"0123456789\n0123456789")]


def test_an_event_over_the_limit_is_too_large_in_any_feed() -> None:
    """The second feed is one whole event of one line, which the decoder reads without looking at its parts."""
    decoder = SseDecoder(20)
    assert [event.data for event in decoder.feed(b"data: a\n\n")] == [b"a"]
    with pytest.raises(EventTooLarge):
        decoder.feed(b"data: " + b"x" * 30 + b"\n\n")
