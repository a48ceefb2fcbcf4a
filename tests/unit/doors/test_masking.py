"""Unmasked frames are found wherever the bytes are cut, and masked ones pass as they are."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from antiphon.doors.http.connection import MaskedFrames

_REFUSED = b"\x83\x80\0\0\0\0"


class _Reader:
    def __init__(self) -> None:
        self.got = b""
        self.ended = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.got += data
        return False, b""

    def feed_eof(self) -> None:
        self.ended = True


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    size = draw(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536]))
    length = (
        bytes([0x80 | size])
        if size < 126
        else b"\xfe" + size.to_bytes(2, "big")
        if size < 65_536
        else b"\xff" + size.to_bytes(8, "big")
    )
    # Text that looks like the head of an unmasked frame.
    return (
        bytes([draw(st.sampled_from([0x81, 0x01, 0x89]))])
        + length
        + b"mask"
        + b"\x81\x05" * (size // 2)
        + b"x" * (size % 2)
    )


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


@given(st.lists(_frames(), max_size=4), st.lists(st.integers(0, 70_000), max_size=6), st.booleans())
def test_any_frames_in_any_cut(frames: list[bytes], cuts: list[int], unmasked: bool) -> None:
    good = b"".join(frames)
    data = good + (b"\x81\x02hi" + frames[0] if unmasked and frames else b"")
    reader = _Reader()
    checked = MaskedFrames(reader.feed_data, reader.feed_eof)
    for piece in _pieces(data, cuts):
        checked.feed_data(piece)
        if reader.got.endswith(_REFUSED):
            break
    assert reader.got == good + (_REFUSED if unmasked and frames else b"")
    checked.feed_eof()
    assert reader.ended


def test_byte_by_byte() -> None:
    data = b"\x81\x85maskhello" + b"\x89\x80mask"
    reader = _Reader()
    checked = MaskedFrames(reader.feed_data, reader.feed_eof)
    for at in range(len(data)):
        checked.feed_data(data[at : at + 1])
    assert reader.got == data


def test_the_smallest_frames_are_judged_as_soon_as_they_are_there() -> None:
    reader = _Reader()
    checked = MaskedFrames(reader.feed_data, reader.feed_eof)
    checked.feed_data(b"\x89\x80mas")
    checked.feed_data(b"k\x81")
    assert reader.got == b"\x89\x80mask", "of the next one nothing is known yet"
    checked.feed_data(b"\x00")
    assert reader.got == b"\x89\x80mask" + _REFUSED
    checked.feed_eof()
    assert reader.ended
