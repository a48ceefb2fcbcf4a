"""Bodies that an upstream sends compressed: whole, in any pieces, broken, and grown out of all proportion."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest

from antiphon.doors.extproc.answers import Inflate, decoder_for

_DATA = b"some words, " * 50


def _bare(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


_CODED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "two members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": ("deflate", zlib.compress),
    "bare": ("deflate", _bare),
}


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_a_plain_body_needs_no_decoder(encoding: str | None) -> None:
    assert decoder_for(encoding) is None


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("kind", _CODED)
def test_what_was_compressed_comes_back_in_any_pieces(kind: str, step: int) -> None:
    encoding, compress = _CODED[kind]
    coded, decoder = compress(_DATA), decoder_for(f" {encoding.upper()} ")
    assert decoder is not None
    parts = [decoder.feed(coded[at : at + step]) for at in range(0, len(coded), step)]
    decoder.end()
    assert (b"".join(parts), decoder.fault) == (_DATA, "")


@pytest.mark.parametrize("kind", _CODED)
def test_a_body_that_stops_in_the_middle_is_a_fault(kind: str) -> None:
    encoding, compress = _CODED[kind]
    for left_out in (1, 4, 8):
        decoder = Inflate(encoding)
        decoder.feed(compress(_DATA)[:-left_out])
        decoder.end()
        assert "an incomplete" in decoder.fault


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_no_body_at_all_is_a_fault(encoding: str) -> None:
    decoder = Inflate(encoding)
    assert decoder.feed(b"") == b"" and decoder.fault == ""
    decoder.end()
    assert "an incomplete" in decoder.fault


@pytest.mark.parametrize(
    ("encoding", "coded", "fault"),
    [
        ("br", b"x", "content-encoding 'br'"),
        ("gzip", b"no gzip at all", "a broken gzip body"),
        ("deflate", zlib.compress(b"x") + b"more", "extra bytes after the end of a deflate body"),
        ("gzip", gzip.compress(b"x", mtime=0) + b"more", "a broken gzip body"),
    ],
)
def test_what_is_wrong_is_named_and_stays(encoding: str, coded: bytes, fault: str) -> None:
    decoder = Inflate(encoding)
    decoder.feed(coded)
    assert decoder.fault == fault
    assert decoder.feed(gzip.compress(b"later")) == b""
    decoder.end()
    assert decoder.fault == fault


@pytest.mark.parametrize("members", [1, 2])
def test_a_part_grows_to_a_limit_and_no_further(members: int) -> None:
    for size, fits in ((1000, True), (1001, False)):
        decoder = Inflate("gzip", 1000)
        data = bytes(size)
        coded = gzip.compress(data) if members == 1 else gzip.compress(data[:600]) + gzip.compress(data[600:])
        made = decoder.feed(coded)
        assert ("too many bytes" in decoder.fault) is not fits and (made == data) is fits
