"""The error object: its keys, and which request's id it has."""

from __future__ import annotations

import json

import pytest

from antiphon.errors import NotFound

_FIELDS = {"message": "none", "type": "invalid_request_error", "param": None, "code": "c"}


@pytest.mark.parametrize(
    ("given", "named"),
    [("req_1", {"request_id": "req_1"}), ("x" * 128, {"request_id": "x" * 128}), ("", {}), ("x" * 129, {}), ("é", {})],
)
def test_an_error_names_its_request(given: str, named: dict[str, str]) -> None:
    assert json.loads(NotFound("none", code="c").body(given)) == {"error": {**_FIELDS, **named}}
