"""Events of chunks that are alike, in Python and in C: one contract."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from antiphon.translation.splice import Splice, cut, splice_in_python
from tests.support import splices

BEFORE, BEHIND = b'data: {"c":"', b'"}\n\n'
HEAD, MIDDLE, TAIL = b'event: x\ndata: {"n":', b',"d":"', b'"}\n\n'


@pytest.fixture(params=["Python", "C"])
def splice(request: pytest.FixtureRequest) -> Splice:
    if request.param == "Python":
        return splice_in_python
    if why := splices.missing():
        pytest.skip(why)
    return splices.splice_in_c()


def _chunks(*texts: bytes, behind: bytes = BEHIND) -> bytes:
    return b"".join(BEFORE + text + behind for text in texts)


def _events(number: int, *texts: bytes) -> bytes:
    return b"".join(HEAD + str(at).encode() + MIDDLE + text + TAIL for at, text in enumerate(texts, number))


def _spliced(splice: Splice, data: bytes, number: int = 7, refused: bytes = b"", behind: bytes = BEHIND) -> list[bytes]:
    """The texts, by way of what came of them; the data must have been taken as far as their chunks go."""
    events, text, count, used = splice(data, BEFORE, behind, HEAD, MIDDLE, TAIL, number, refused)
    texts, size = cut(data, BEFORE, behind, refused)
    assert (events, text, count, used) == (_events(number, *texts), b"".join(texts), len(texts), size)
    return texts


@pytest.mark.parametrize("number", [0, 1, 9, 10, 95, 99, 100, 999_999_999, 10**17])
@pytest.mark.parametrize("count", [1, 2, 5, 64, 65, 1000])
def test_each_chunk_becomes_an_event(splice: Splice, number: int, count: int) -> None:
    texts = [b"text %d" % at for at in range(count)]
    data = _chunks(*texts)
    found = splice(data, BEFORE, BEHIND, HEAD, MIDDLE, TAIL, number, b"")
    assert found == (_events(number, *texts), b"".join(texts), count, len(data))


def test_chunks_without_text_are_taken_and_have_no_event(splice: Splice) -> None:
    assert _spliced(splice, _chunks(b"", b"a", b"", b"", b"b", b"")) == [b"a", b"b"]
    assert splice(_chunks(b"", b""), BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 0, b"") == (
        b"",
        b"",
        0,
        len(_chunks(b"", b"")),
    )


TEXTS = [
    b"a",
    b" ",
    b"\x7f",
    rb"\"",
    rb"\\",
    rb"\\\"\/\b\f\n\r\t",
    rb"\u0000",
    rb"\uABCDx\uefAB",
    rb"\ud7ff",
    rb"\uD000",
    rb"\ue000",
    "\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff".encode(),
    b'\\"}\\n\\n',
    BEFORE.replace(b'"', rb"\""),
]
NO_TEXTS = [
    b'"',
    b'a"b',
    b"\\",
    rb"\x",
    rb"\U0041",
    rb"\u",
    rb"\u004",
    rb"\u00g0",
    rb"\u00 0",
    rb"\ud800",
    rb"\uDbff\uDC00",
    rb"\udfff",
    b"\x00",
    b"\n",
    b"\x1f",
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xc2",
    b"\xc2a",
    b"\xdf\xc0",
    b"\xe0\x9f\xbf",
    b"\xe0\xa0",
    b"\xe1\x80a",
    b"\xe1a\x80",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x90\x80",
    b"\xf1\x80\x80a",
    b"\xf1\x80a\x80",
    b"\xf1a\x80\x80",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_inside_of_a_json_string(splice: Splice, text: bytes) -> None:
    assert _spliced(splice, _chunks(text)) == [text]
    assert _spliced(splice, _chunks(b"a", text, text, b"b")) == [b"a", text, text, b"b"]


@pytest.mark.parametrize("text", NO_TEXTS)
def test_what_is_none_ends_the_run(splice: Splice, text: bytes) -> None:
    assert _spliced(splice, _chunks(text)) == []
    assert _spliced(splice, _chunks(text, b"a")) == []
    assert _spliced(splice, _chunks(b"a", b"", b"b", text, b"c")) == [b"a", b"b"]
    # Not even together with what another text begins with.
    assert _spliced(splice, _chunks(b"a" + text, b"\x80\x80\x80b")) == []


def test_another_chunk_ends_the_run(splice: Splice) -> None:
    for other in (b": a comment\n\n", b'data: {"c":1}\n\n', b"data: [DONE]\n\n", b'data: {"c":"x","d":"y"}\n\n', b"\n"):
        assert _spliced(splice, other) == []
        assert _spliced(splice, other + _chunks(b"a")) == []
        assert _spliced(splice, _chunks(b"a", b"b") + other + _chunks(b"c")) == [b"a", b"b"]


def test_what_is_not_whole_waits(splice: Splice) -> None:
    data = _chunks(b"abc", rb"\u00e4", "ä😀".encode())
    first, second = len(_chunks(b"abc")), len(_chunks(b"abc", rb"\u00e4"))
    for size in range(len(data)):
        assert len(_spliced(splice, data[:size])) == (size >= first) + (size >= second), size


def test_an_end_of_lines_of_two(splice: Splice) -> None:
    behind = b'"}\r\n\r\n'
    assert _spliced(splice, _chunks(b"a", b"\\r", b"b", behind=behind) + b"data", behind=behind) == [b"a", rb"\r", b"b"]
    assert _spliced(splice, _chunks(b"a", b"b"), behind=behind) == []
    assert _spliced(splice, _chunks(b"a", b"\r", b"b", behind=behind), behind=behind) == [b"a"]


def test_a_text_that_is_refused_ends_the_run(splice: Splice) -> None:
    assert _spliced(splice, _chunks(b"a", b"b {", b"", b"{", b"c"), refused=b"{") == [b"a", b"b {"]
    assert _spliced(splice, _chunks(b"{"), refused=b"{") == []
    assert _spliced(splice, _chunks(b"a", b"b", b"bc", b"c"), refused=b"bc") == [b"a", b"b"]
    assert _spliced(splice, _chunks(b" {", b" b"), refused=b"{") == [b" {", b" b"]


def test_nothing_of_nothing(splice: Splice) -> None:
    assert _spliced(splice, b"") == []
    # Every part of an event may be empty, and so may what stands before a text.
    assert splice(b'a"b"', b"", b'"', b"", b"", b"", 9, b"") == (b"9a10b", b"ab", 2, 4)


def _in_c() -> Splice:
    if why := splices.missing():
        pytest.skip(why)
    return splices.splice_in_c()


def test_arguments_of_other_types_are_refused() -> None:
    """By what is in C; a type checker sees them otherwise."""
    splice = _in_c()
    right: list[object] = [b"", BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 0, b""]
    for place in range(len(right)):
        for wrong in ("text", bytearray(b"x"), None, 1.5):
            with pytest.raises(TypeError):
                splice(*[*right[:place], wrong, *right[place + 1 :]])  # type: ignore[arg-type]
    for few_or_many in (right[:-1], [*right, b""], []):
        with pytest.raises(TypeError, match="8 arguments"):
            splice(*few_or_many)  # type: ignore[arg-type]


def test_numbers_beyond_all_and_other_ends_are_refused() -> None:
    splice = _in_c()
    for number, wrong in ((-1, ValueError), (-2, ValueError), (10**18 + 1, ValueError), (2**63, OverflowError)):
        with pytest.raises(wrong):
            splice(b"", BEFORE, BEHIND, HEAD, MIDDLE, TAIL, number, b"")
    for behind in (b"", b"}", b'}"'):
        with pytest.raises(ValueError, match="a quote"):
            splice(_chunks(b"a"), BEFORE, behind, HEAD, MIDDLE, TAIL, 0, b"")
    with pytest.raises(ValueError, match="a number"):
        splice(_chunks(b"a"), BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 10**18, b"")


def test_nothing_is_left_behind() -> None:
    """No memory, whatever becomes of the call."""
    splice = _in_c()
    data, many = _chunks(b"a", b"b", b"\n"), _chunks(*[b"a"] * 100)

    def calls() -> None:
        for _ in range(100):
            splice(data, BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 1000, b"")
            splice(many, BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 1000, b"")
            splice(b"", BEFORE, BEHIND, HEAD, MIDDLE, TAIL, 1000, b"")
            for number in (-1, 2**63):
                with contextlib.suppress(ValueError, OverflowError):
                    splice(data, BEFORE, BEHIND, HEAD, MIDDLE, TAIL, number, b"")

    calls()
    blocks, counted = sys.getallocatedblocks(), [sys.getrefcount(each) for each in (data, many, BEFORE, TAIL)]
    calls()
    assert abs(sys.getallocatedblocks() - blocks) < 50
    assert [sys.getrefcount(each) for each in (data, many, BEFORE, TAIL)] == counted


_WHICH = """
import sys
import antiphon.translation
antiphon.translation.__path__.insert(0, sys.argv[1])
from antiphon.translation import splice
from antiphon.translation.events import encode
print("Python" if encode.splice is splice.splice_in_python else "C")
"""
_ABSENT = "import sys; sys.modules['antiphon.translation._splice'] = None"


def _used(*words: str | Path, before: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", before + _WHICH, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_was_compiled_is_used(tmp_path: Path) -> None:
    if why := splices.missing():
        pytest.skip(why)
    splices.build(tmp_path)
    assert _used(tmp_path) == "C"


def test_python_is_used_where_nothing_was_compiled(tmp_path: Path) -> None:
    assert _used(tmp_path, before=_ABSENT) == "Python"
