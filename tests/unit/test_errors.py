"""The error object: its keys, and which request's id it has."""

from __future__ import annotations

import json

import pytest

from antiphon.errors import NotFound, StoreError, StoreReason, store_refusal

_FIELDS = {"message": "none", "type": "invalid_request_error", "param": None, "code": "c"}


@pytest.mark.parametrize(
    ("given", "named"),
    [("req_1", {"request_id": "req_1"}), ("x" * 128, {"request_id": "x" * 128}), ("", {}), ("x" * 129, {}), ("é", {})],
)
def test_an_error_names_its_request(given: str, named: dict[str, str]) -> None:
    assert json.loads(NotFound("none", code="c").body(given)) == {"error": {**_FIELDS, **named}}


@pytest.mark.parametrize(
    ("reason", "status", "code", "passes"),
    [
        ("failed", 500, "storage_failed", False),
        ("damaged", 500, "storage_failed", False),
        ("full", 507, "insufficient_storage", False),
        ("slow", 503, "storage_timed_out", True),
        ("unknown", 503, "storage_timed_out", True),
        ("predecessor_gone", 400, "previous_response_not_found", False),
        ("sealed", 500, "storage_sealed", False),
        ("gone", 503, "storage_unavailable", False),
        ("locked", 503, "storage_locked", True),
        ("read_only", 503, "storage_read_only", False),
        ("busy", 503, "overloaded", True),
        ("unavailable", 503, "storage_unavailable", True),
        ("elsewhere", 503, "content_elsewhere", False),
    ],
)
def test_a_client_learns_whether_a_retry_may_help(reason: StoreReason, status: int, code: str, passes: bool) -> None:
    refused = store_refusal(StoreError("/a/path of the server", reason=reason), "It was not stored")
    assert (refused.status, refused.code) == (status, code)
    assert refused.headers == ((("retry-after", "1"),) if passes else ())
    assert refused.message.startswith("It was not stored") and "/a/path" not in refused.message
    assert refused.cause == "/a/path of the server"
