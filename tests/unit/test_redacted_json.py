"""Error bodies of upstreams: no secret remains, and JSON stays JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.redacted_json import error_without
from antiphon.redaction import bytes_without

KEY = "gsk_Zq9InjectedOperatorKey77abcd0123"


def test_a_part_of_a_key_at_the_end_of_a_message_leaves_the_json_whole() -> None:
    said = {"error": {"message": f"Incorrect API key: {KEY[:12]}", "type": "invalid_request_error", "code": None}}
    body = json.dumps(said).encode()
    with pytest.raises(ValueError, match=r"delimiter|Expecting"):
        json.loads(bytes_without(body, [KEY]))
    clean = json.loads(error_without(body, [KEY]))
    assert clean["error"] == {**said["error"], "message": "Incorrect API key: [redacted]"}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": {"message": f"a {KEY} b"}}).encode(),
        f"no JSON: {KEY}".encode(),
        json.dumps({KEY: 1}).encode(),
        json.dumps([KEY[:10], KEY[10:20], KEY[20:]]).encode(),
        b"\xff" + KEY.encode(),
    ],
)
def test_no_key_stays(body: bytes) -> None:
    clean = error_without(body, [KEY])
    assert b"[redacted]" in clean and bytes_without(clean, [KEY]) == clean
    for at in range(len(KEY) - 8):
        assert KEY[at : at + 8].encode() not in clean


def test_digits_outside_of_strings_do_not_stay() -> None:
    assert b"4567" not in error_without(b'["12", 34567890, 1]', ["1234567890"])


@given(st.recursive(st.none() | st.text(st.sampled_from(KEY + '"\\ '), max_size=40), lambda one: st.lists(one)))
def test_json_without_a_secret_in_a_name_stays_json(value: object) -> None:
    body = json.dumps({"error": value}).encode()
    json.loads(error_without(body, [KEY]))


def test_a_body_without_a_secret_is_returned_itself() -> None:
    body = b'{"error": {"message": "no"}}'
    assert error_without(body, [KEY]) is body
