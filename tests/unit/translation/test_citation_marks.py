"""Marks by which a model cites a source: found wherever they are cut, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from antiphon.translation.events.citations import Citations, Source, mark, unmarked


def _fed(parts: list[str], sources: int = 2, known: int = 0) -> tuple[str, int]:
    """The text that came out, and how many annotations."""
    citations = Citations(known)
    citations.add(tuple(Source({"type": "url_citation", "url": f"u{n}"}) for n in range(sources)), "")
    text, marks = b"", 0
    for part in parts:
        for piece in citations.feed(json.dumps(part)[1:-1].encode()):
            marks += isinstance(piece, Raw)
            text += b"" if isinstance(piece, Raw) else piece
    text += citations.end()
    return str(json.loads(b'"%b"' % text)), marks


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_mark_is_found_wherever_it_is_cut(cut: int) -> None:
    whole = "It rains【1】, as【2】 said"
    at = 7 + cut
    assert _fed([whole[:at], whole[at:]]) == ("It rains, as said", 2)
    assert _fed(list(whole)) == ("It rains, as said", 2)


@pytest.mark.parametrize(
    ("text", "left", "marks"),
    [
        ("a【3】b", "ab", 0),
        ("a【0】b", "ab", 0),
        ("a【x】b", "a【x】b", 0),
        ("a【1", "a【1", 0),
        ("a【【1】b", "a【b", 1),
    ],
)
def test_what_names_no_source(text: str, left: str, marks: int) -> None:
    assert _fed([text]) == (left, marks) and _fed(list(text)) == (left, marks)


def test_numbers_go_on_from_the_response_before() -> None:
    assert _fed(["a【3】【4】【2】【5】"], known=2) == ("a", 2)
    citations = Citations(2)
    assert citations.highest == 2
    told = citations.add((Source({}), Source({})), "x {cite:0} y {cite:1} z {cite:2}")
    assert told == "x 【3】 y 【4】 z " and citations.highest == 4


@pytest.mark.parametrize(("size", "held"), [(63, True), (64, True), (65, False)])
def test_an_open_mark_is_held_up_to_a_length(size: int, held: bool) -> None:
    citations = Citations()
    said = list(citations.feed(("【" + "1" * size).encode()))
    assert (said == []) is held
    assert (citations.end() == b"") is not held


def test_a_strangers_text_holds_no_marks() -> None:
    assert unmarked("a【1】 {cite:1} [2]") == "a[1] {cite :1} [2]"
    assert mark(12) == "【12】"


@pytest.mark.parametrize(
    ("parts", "spans"),
    [
        (["It rains【1】."], [(0, 8)]),
        (["It rains. It pours【1】"], [(10, 18)]),
        # Right behind a full stop it is about the sentence that ended there.
        (["It rains. It pours.【1】 So."], [(10, 19)]),
        (["It rains.", " It pours", "【1】"], [(10, 18)]),
        (["【1】It rains【2】"], [(0, 0), (0, 8)]),
    ],
)
def test_a_mark_is_about_the_sentence_before_it(parts: list[str], spans: list[tuple[int, int]]) -> None:
    citations = Citations()
    citations.add((Source({"type": "url_citation"}), Source({"type": "url_citation"})), "")
    pieces = [piece for part in parts for piece in citations.feed(part.encode())]
    made = [json.loads(bytes(piece)) for piece in pieces if isinstance(piece, Raw)]
    assert [(one["start_index"], one["end_index"]) for one in made] == spans


def test_a_file_is_cited_at_a_place() -> None:
    citations = Citations()
    citations.add((Source({"type": "file_citation"}),), "")
    (made,) = (piece for piece in citations.feed("It rains【1】".encode()) if isinstance(piece, Raw))
    assert json.loads(bytes(made)) == {"type": "file_citation", "index": 8}
