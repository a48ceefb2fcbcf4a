"""What every answer to Envoy says beside its own words, and how a body is cut into messages."""

from __future__ import annotations

import pytest

from antiphon.doors.extproc import peer
from antiphon.doors.extproc.peer import head_metadata, in_parts, with_request_id

_OWN = (("x-request-id", "theirs"),)


def test_an_answer_names_its_request_once() -> None:
    assert with_request_id((("a", "b"),), "r1") == (("a", "b"), ("x-request-id", "r1"))
    assert with_request_id(_OWN, "r1") == _OWN
    assert with_request_id((("a", "b"),), "") == (("a", "b"),) and with_request_id(_OWN, "") == _OWN


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", [(b"", True)]),
        (b"123", [(b"123", True)]),
        (b"1234", [(b"1234", True)]),
        (b"12345", [(b"1234", False), (b"5", True)]),
        (b"12345678", [(b"1234", False), (b"5678", True)]),
        (b"123456789", [(b"1234", False), (b"5678", False), (b"9", True)]),
    ],
)
def test_a_body_is_cut_into_parts_of_which_the_last_is_marked(
    body: bytes, parts: list[tuple[bytes, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_PART", 4)
    assert list(in_parts(body)) == parts


def test_a_model_that_is_not_known_is_not_told() -> None:
    assert head_metadata("m") == {"model": "m"} and head_metadata("") == {}
