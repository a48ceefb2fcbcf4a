"""What servers say of their reasoning beside its text: pieces that were streamed apart are kept as one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.translation.answer.chunk import ReasoningDetails
from antiphon.types.json import text_of


def _kept(*deltas: Any) -> tuple[str, list[Any]]:
    """The text in all these deltas, and what must be sent back of them."""
    details = ReasoningDetails()
    text = b"".join(details.receive(Raw(json.dumps(delta).encode())) for delta in deltas)
    kept = [json.loads(bytes(detail)) for detail in details.take()]
    assert details.take() == [], "it is taken once"
    return text_of(text), kept


_TEXT = {"type": "reasoning.text", "index": 0, "id": "r1"}


def test_pieces_of_one_detail_are_joined() -> None:
    first, more = {**_TEXT, "text": "I "}, {**_TEXT, "text": "look.", "signature": "s", "format": None}
    assert _kept([first], [more]) == ("I look.", [{**_TEXT, "text": "I look.", "signature": "s"}])


def test_what_comes_later_and_is_no_text_replaces_what_was_there() -> None:
    """null is no value: what was there stays."""
    pieces = [{**_TEXT, "signature": None}, {**_TEXT, "signature": "a"}, {**_TEXT, "signature": None}]
    assert _kept(pieces) == ("", [{**_TEXT, "signature": "a"}])
    assert _kept([{**_TEXT, "text": None}], [{**_TEXT, "text": "so"}]) == ("so", [{**_TEXT, "text": "so"}])


@pytest.mark.parametrize("other", [{"index": 1}, {"id": "r2"}, {"type": "reasoning.encrypted", "data": "x"}])
def test_another_detail_is_kept_beside_the_first(other: dict[str, Any]) -> None:
    one, two = {**_TEXT, "text": "a"}, {**_TEXT, **other, "text": "b"}
    assert _kept([one, two]) == ("ab", [one, two])


@pytest.mark.parametrize("delta", [None, "hm", {"text": "hm"}, [5, "hm", None], []])
def test_what_is_no_list_of_objects_says_nothing(delta: Any) -> None:
    assert _kept(delta) == ("", [])


def test_a_summary_is_text_where_there_is_no_other() -> None:
    summary = {"type": "reasoning.summary", "summary": "Thus."}
    assert _kept([summary]) == ("Thus.", [summary])
    assert _kept([{**summary, "summary": 5}])[0] == ""
