"""The text search in contents: JSON's escapes, both sides of a request, and the limit of each side."""

from __future__ import annotations

import json

import pytest

from antiphon.console.text_search import MOST_BYTES, SearchedText, contents_of, limited, unescaped
from antiphon.engine.ports.journal import Part, Recording

_WRITTEN = 'ligne1\nQUOTED "word" back\\slash C:\\new Grüße Żółw 東京 😀'


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize(
    "sought",
    [
        *(
            'quoted "word"',
            'QUOTED \\"word\\"',
            "back\\slash",
            "back\\\\slash",
            "C:\\new",
            "C:\\\\new",
            "ligne1\\nquoted",
        ),
        *("ligne1 QUOTED", "  Grüße   Żółw ", "GRÜSSE", "東京", "😀", '"input"'),
    ],
)
async def test_a_text_is_found_with_and_without_escapes(sought: str, ascii: bool) -> None:
    body = json.dumps({"input": _WRITTEN}, ensure_ascii=ascii).encode()
    assert await SearchedText(sought).is_in_contents(limited([body]))
    assert await SearchedText(sought).is_in_contents(limited([body, b" " * 100_000])), "another thread searches"


@pytest.mark.parametrize("sought", ["nword", "slashC", "QUOTEDword", "new\nGrüße x", "\\n", "u00fc x"])
async def test_another_text_is_not_found(sought: str) -> None:
    assert not await SearchedText(sought).is_in_contents(limited([b'{"input":"some word"}', b'"Gr\\u00fc\\u00dfe"']))


def test_escapes_are_replaced_once() -> None:
    assert unescaped(r"\\n \\\" \\u00fc \u00fc \ud83d\ude00 \x") == '\\n \\" \\u00fc ü 😀 \\x'
    assert unescaped(r"\ud83d") == "\N{REPLACEMENT CHARACTER}" and unescaped("\\") == "\\"


def test_a_large_request_does_not_hide_its_answer() -> None:
    long = b"x" * (MOST_BYTES + 1)
    parts = [Part(0, "request", long), Part(0, "call", long), Part(0, "data", b"Hel"), Part(0, "data", b"lo")]
    found = contents_of(Recording((*parts, Part(0, "tool", b"Rain"), Part(0, "event", b"by"), Part(0, "event", b"e"))))
    assert found.cut and [len(one) for one in found.texts if one[:1] == b"x"] == [MOST_BYTES] * 2
    assert {b"bye", b"HelloRain\n"} <= set(found.texts)


def test_contents_know_whether_they_are_whole() -> None:
    assert not contents_of(Recording((Part(0, "request", b"x" * MOST_BYTES),))).cut
    assert contents_of(Recording((Part(0, "request", b"x"),), cut=True)).cut
